"""Writes the tables of docs/telemetry.md from ``common.telemetry.names``: ``python docs/telemetry.py [--check]``."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from common.telemetry.metric import Metric, Origin, SpanName
from common.telemetry.names import METRICS, SPANS

TARGET: Final = Path(__file__).with_name("telemetry.md")
ORIGINS: Final[dict[Origin, str]] = {
    "heartbeat": "Read from the process's newest heartbeat, so up to two seconds old.",
    "batch": "Told by the learner once per batch; the same figures are in `metrics.jsonl`.",
    "server": "Read from the server by the learner whenever somebody asks; none while the server is away.",
    "moment": "Told by the process when it happens.",
}


def render(text: str) -> str:
    """The document with its tables as they should be; a table is what stands between two of its markers."""
    for name, table in tables().items():
        pattern = re.compile(f"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        if not pattern.search(text):
            raise SystemExit(
                f"docs/telemetry.md has no place for the table {name}: <!-- {name} --> ... <!-- /{name} -->"
            )
        text = pattern.sub(lambda found, table=table: found[1] + table + found[2], text)
    return text


def tables() -> dict[str, str]:
    return {"metrics": "".join(_metrics(origin) for origin in ORIGINS), "spans": _spans(SPANS)}


def _metrics(origin: Origin) -> str:
    rows = "".join(_metric(metric) for metric in METRICS if metric.origin == origin)
    head = "| metric | Prometheus | kind | unit | labels | told by | meaning |\n|---|---|---|---|---|---|---|\n"
    return f"\n{ORIGINS[origin]}\n\n{head}{rows}\n"


def _metric(metric: Metric) -> str:
    cells = [
        f"`{metric.name}`",
        f"`{metric.prometheus}`",
        metric.kind,
        f"`{metric.unit}`",
        _codes(metric.labels),
        ", ".join(metric.roles),
        metric.meaning,
    ]
    return f"| {' | '.join(cells)} |\n"


def _spans(spans: Iterable[SpanName]) -> str:
    head = "\n| span | told by | trace | links | attributes | meaning |\n|---|---|---|---|---|---|\n"
    rows = ([f"`{s.name}`", ", ".join(s.roles), s.trace, s.links, _codes(s.attributes), s.meaning] for s in spans)
    return head + "".join(f"| {' | '.join(row)} |\n" for row in rows) + "\n"


def _codes(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def main() -> None:
    text = TARGET.read_text(encoding="utf-8")
    wanted = render(text)
    if "--check" in sys.argv[1:]:
        sys.exit(0 if text == wanted else "docs/telemetry.md is out of date; run `make docs`")
    TARGET.write_text(wanted, encoding="utf-8")


if __name__ == "__main__":
    main()
