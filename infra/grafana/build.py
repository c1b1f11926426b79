"""Writes the dashboards of infra/grafana/dashboards: ``python infra/grafana/build.py [--check]``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Final

from fleet import FLEET
from learning import LEARNING
from run import RUN

FOLDER: Final = Path(__file__).with_name("dashboards")
DASHBOARDS: Final = (RUN, LEARNING, FLEET)


def text_of(dashboard: dict[str, Any]) -> str:
    return json.dumps(dashboard, indent=1, ensure_ascii=False) + "\n"


def main(arguments: list[str]) -> None:
    for dashboard in DASHBOARDS:
        target, text = FOLDER / f"{dashboard['uid']}.json", text_of(dashboard)
        if arguments != ["--check"]:
            target.write_text(text, encoding="utf-8")
        elif not target.is_file() or target.read_text(encoding="utf-8") != text:
            raise SystemExit(f"{target.name} is not what the code says: run python infra/grafana/build.py")


if __name__ == "__main__":
    main(sys.argv[1:])
