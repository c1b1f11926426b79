"""`spark audit` and `spark dead ...` reach the functions behind them with what was typed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic_settings import CliApp

from cli import audit, dead
from cli.__main__ import keep_overrides_whole
from cli.commands import Spark
from common import log

RUN = Path("runs/x")


@pytest.mark.parametrize(
    ("typed", "module", "function", "arguments", "options"),
    [
        ("audit runs/x", audit, "audit_run", (RUN,), {"as_json": False}),
        ("audit runs/x --json", audit, "audit_run", (RUN,), {"as_json": True}),
        ("dead list runs/x", dead, "list_letters", (RUN,), {"most": 50, "as_json": False}),
        ("dead list runs/x -n 3 --json", dead, "list_letters", (RUN,), {"most": 3, "as_json": True}),
        ("dead show runs/x 5-0", dead, "show_letter", (RUN, "5-0"), {"as_json": False}),
        ("dead retry runs/x 5-0 6-1", dead, "retry_letters", (RUN, ["5-0", "6-1"]), {"every": False}),
        ("dead retry runs/x --all", dead, "retry_letters", (RUN, []), {"every": True}),
        ("dead retry runs/x", dead, "retry_letters", (RUN, []), {"every": False}),
        ("dead drop runs/x 5-0", dead, "drop_letters", (RUN, ["5-0"]), {"every": False}),
        ("dead drop runs/x --all", dead, "drop_letters", (RUN, []), {"every": True}),
    ],
)
def test_what_is_typed_is_what_is_done(
    typed: str,
    module: Any,
    function: str,
    arguments: tuple[Any, ...],
    options: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    called: list[Any] = []
    monkeypatch.setattr(log, "configure", lambda **_: None)
    monkeypatch.setattr(module, function, lambda *args, **kwargs: called.append((args, kwargs)))
    CliApp.run(Spark, cli_args=keep_overrides_whole(typed.split()))
    assert called == [(arguments, options)]
