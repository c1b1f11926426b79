"""What all tests on a GPU share. ``python -m bench.gpu`` runs them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Warnings are shown here, not errors: those of other packages differ between GPUs, drivers and builds."""
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.filterwarnings("default"))


@pytest.fixture(autouse=True)
def float32_in_full() -> None:
    """An engine in bfloat16 lets this process round float32 products to TF32, which tests in float32 must not meet."""
    torch.set_float32_matmul_precision("highest")
