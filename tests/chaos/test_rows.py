"""The cheap rows of the fault table, each on a run of its own. `make chaos` runs all of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from chaos.__main__ import ROWS
from chaos.rows import CannotRun, Row


@pytest.mark.parametrize("row", [row for row in ROWS if row.in_ci], ids=lambda row: row.check.__name__)
def test_row_of_the_fault_table(row: Row, tmp_path: Path) -> None:
    try:
        done = row.check(tmp_path)
    except CannotRun as reason:
        pytest.skip(str(reason))
    assert done.times > 0
