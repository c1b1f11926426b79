"""The documents name tests as evidence; every one of them exists."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
REFERENCE = re.compile(r"\b(test_\w+\.py)::(test_\w+)")


def test_every_test_that_a_document_names_exists() -> None:
    defined = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py")}
    documents = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    named = {(path.name, *found) for path in documents for found in REFERENCE.findall(path.read_text(encoding="utf-8"))}
    assert len(named) > 20
    missing = [one for one in sorted(named) if f"def {one[2]}(" not in defined.get(one[1], "")]
    assert missing == []
