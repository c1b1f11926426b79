"""Writes docs/configuration.md from the settings: ``python docs/configuration.py [--check]``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

from common.settings import Settings

TARGET: Final = Path(__file__).with_name("configuration.md")
INTRODUCTION: Final = """# Configuration

Generated from `common/settings.py` by `make docs`; `make check` fails when it is out of date.

A run file is TOML. Precedence: run file < environment < command line. A preset (`configs/*.toml`) stands just below the
source that names it, so `--set preset=grpo` overrides the run file. In the environment a key is `SPARK_SECTION__KEY`
(two underscores between the parts), on the command line `--set section.key=value`. Paths in a run file are relative to
that file, all others to where the command runs. An unknown key is an error that names the nearest known one.
"""


def render() -> str:
    top = [line for name, info in Settings.model_fields.items() if not _section(info) for line in _rows(name, info)]
    parts = [INTRODUCTION, "## Top level\n", *_table(top)]
    for name, info in Settings.model_fields.items():
        if section := _section(info):
            parts += [f"\n## [{name}]\n", *_table(list(_section_rows(section)))]
    return "\n".join(parts) + "\n"


def _section(info: FieldInfo) -> type[BaseModel] | None:
    kind = info.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _section_rows(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, info in section.model_fields.items():
        if nested := _section(info):
            yield from _section_rows(nested, f"{prefix}{name}.")
        else:
            yield from _rows(f"{prefix}{name}", info)


def _rows(name: str, info: FieldInfo) -> Iterator[str]:
    default = _shown(info.get_default(call_default_factory=True))
    meaning = " ".join((info.description or "").split()).replace("|", "\\|")
    yield f"| `{name}` | {_type(info)} | {default} | {meaning} |"


def _type(info: FieldInfo) -> str:
    kind: Any = info.annotation
    text = kind.__name__ if isinstance(kind, type) and not getattr(kind, "__args__", None) else str(kind)
    text = (
        text.replace("typing.", "").replace("pathlib._local.", "").replace("pathlib.", "").replace("NoneType", "None")
    )
    bounds = [f"{_sign(item)}" for item in info.metadata if _sign(item)]
    return f"`{text}`".replace("|", "\\|") + (f" {' '.join(bounds)}" if bounds else "")


def _sign(constraint: Any) -> str:
    for name, sign in (("ge", "≥"), ("gt", ">"), ("le", "≤"), ("lt", "<")):
        if (value := getattr(constraint, name, None)) is not None:
            return f"{sign} {value}"
    return ""


def _shown(value: object) -> str:
    if isinstance(value, SecretStr):
        return "empty"
    return "empty" if value in ("", (), {}) else f"`{value}`"


def _table(rows: list[str]) -> list[str]:
    return ["| key | type | default | meaning |", "|---|---|---|---|", *rows]


def main() -> None:
    text = render()
    if "--check" not in sys.argv[1:]:
        TARGET.write_text(text, encoding="utf-8")
    elif not TARGET.is_file() or TARGET.read_text(encoding="utf-8") != text:
        sys.exit("docs/configuration.md is out of date; run `make docs`")


if __name__ == "__main__":
    main()
