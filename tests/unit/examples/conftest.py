"""The demo's modules are scripts beside their run file, not packages: make them importable as Python itself would."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = next(folder for folder in Path(__file__).resolve().parents if (folder / "pyproject.toml").is_file())
sys.path.append(str(ROOT / "examples" / "arithmetic"))


@pytest.fixture(scope="session")
def demo() -> Path:
    return ROOT / "examples" / "arithmetic"
