"""metrics.jsonl: one line per batch. A resumed run forgets the lines that its checkpoint does not know of."""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import IO, Any


class MetricsFile:
    """Appends metrics; ``elapsed_s`` goes on from where the run was interrupted."""

    def __init__(self, path: Path, policy_version: int) -> None:
        """Keeps what was recorded up to ``policy_version``, and drops what will be trained again."""
        kept = [line for line in _lines(path) if line["policy_version"] <= policy_version]
        self._offset_s = float(kept[-1]["elapsed_s"]) if kept else 0.0
        rewound = path.with_suffix(".tmp")
        rewound.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        rewound.replace(path)
        self._file: IO[str] = path.open("a", encoding="utf-8", buffering=1)

    def record(self, metrics: dict[str, Any]) -> None:
        elapsed_s = round(self._offset_s + metrics["elapsed_s"], 3)
        self._file.write(json.dumps({**metrics, "elapsed_s": elapsed_s}) + "\n")

    def __enter__(self) -> MetricsFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def _lines(path: Path) -> list[dict[str, Any]]:
    """Complete lines; a process that was killed may have left half a line at the end."""
    if not path.is_file():
        return []
    parsed = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            parsed.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return parsed
