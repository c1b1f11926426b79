"""The recycler follows what users have told the run, as the learner says it in the progress hash."""

from __future__ import annotations

from collections.abc import Mapping

import structlog

from common.errors import InvalidMessage, SettingsError
from common.live import steered
from common.records import STEERING
from common.settings import Settings
from common.steering import Steering

log = structlog.get_logger()


class Following:
    def __init__(self, settings: Settings) -> None:
        """``settings``: of the run file."""
        self._file = settings
        self._said = ""

    def look(self, progress: Mapping[str, str]) -> Settings | None:
        """The settings with live values, when those were told anew. A server that lost them changes nothing."""
        said = progress.get(STEERING, "")
        if not said or said == self._said:
            return None
        self._said = said
        try:
            return steered(self._file, Steering.from_json(said).values)
        except (InvalidMessage, SettingsError) as error:
            log.warning("recycler.steering_unreadable", reason=str(error))
            return None


def least_room(settings: Settings) -> int:
    """Judge tasks that must fit before any are made: a group is decided once, so room that trickles would waste it."""
    return max(1, settings.learner.judge_groups_per_step // 4)
