"""The colours of the report, light and dark. A plot is drawn in the light ones and then refers to them by name."""

from __future__ import annotations

from typing import Final

PALETTE: Final[dict[str, tuple[str, str]]] = {
    "paper": ("#fdfcf9", "#15171b"),
    "card": ("#f6f4ee", "#1c1f24"),
    "ink": ("#1d2025", "#e9e7e2"),
    "quiet": ("#5d626b", "#a3a8b1"),
    "rule": ("#e3e1da", "#2f333a"),
    "blue": ("#2463a6", "#7fb5f0"),
    "orange": ("#a8570a", "#eea356"),
    "green": ("#0d766a", "#55c4b1"),
    "purple": ("#8b3d95", "#d59be0"),
    "alarm": ("#b8262c", "#ff8a85"),
}
"""Name -> (light, dark). All but ``paper``, ``card`` and ``rule`` carry meaning, so they contrast with both grounds."""


def light(name: str) -> str:
    return PALETTE[name][0]


def variables(column: int) -> str:
    """CSS declarations of one column: 0 light, 1 dark."""
    return " ".join(f"--{name}: {values[column]};" for name, values in PALETTE.items())
