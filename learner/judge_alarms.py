"""Alarms about the judge: it accepts nearly no right answers, or rejects nearly no wrong ones."""

from __future__ import annotations

from typing import Final

import structlog

from common.settings import Metrics
from learner.judge_panel import JudgePanel, Rate

log = structlog.get_logger()

MARGIN: Final = 0.05
"""An alarm is over when its rate is this far above the bound again: one at the bound is not raised at every step."""
UNREADABLE: Final = 0.5
"""Share of verdicts without a choice above which an alarm blames them."""
SAYS: Final = {
    "tpr": ("accepts", "right", "it rejects nearly everything"),
    "tnr": ("rejects", "wrong", "it accepts nearly everything"),
}


class JudgeAlarms:
    """Looks at the panel after every step. Logs an alarm when it is raised and when it is over."""

    def __init__(self, panel: JudgePanel, settings: Metrics) -> None:
        self.panel = panel
        self._bounds = {"tpr": settings.min_tpr, "tnr": settings.min_tnr}
        self._standing: dict[str, str] = {}

    def look(self) -> list[str]:
        """The alarms that stand, as sentences."""
        for name, bound in self._bounds.items():
            found = self.panel.newest(name)
            raised = name in self._standing
            if found is None:
                continue
            if alarming(found.value, bound, raised=raised):
                self._standing[name] = sentence(name, found, bound)
                if not raised:
                    log.warning("judge.alarm", rate=name, value=round(found.value, 3), says=self._standing[name])
            elif raised:
                del self._standing[name]
                log.info("judge.alarm_over", rate=name, value=round(found.value, 3))
        return list(self._standing.values())


def alarming(value: float, bound: float, *, raised: bool) -> bool:
    """``raised``: the alarm stands already."""
    return value < (min(bound + MARGIN, 1.0) if raised else bound)


def sentence(name: str, found: Rate, bound: float) -> str:
    verb, what, cause = SAYS[name]
    if found.unread > UNREADABLE:
        cause = f"{found.unread:.0%} of its verdicts name none of the choices"
    return (
        f"the judge {verb} {found.value:.0%} of {what} answers (newest {found.tasks} tasks), "
        f"metrics.min_{name} is {bound:.0%}: {cause}"
    )
