"""Every Redis key name of a run. One hash tag per run keeps all keys in one cluster slot."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from common.messages import Kind

ACTORS: Final = "actors"
RECYCLER: Final = "recycler"
LEARNER: Final = "learner"


@dataclass(frozen=True, slots=True)
class Keys:
    run: str

    def _key(self, name: str) -> str:
        return f"spark:{{{self.run}}}:{name}"

    def tasks(self, kind: Kind) -> str:
        return self._key(f"tasks:{kind}")

    def rollouts(self, kind: Kind) -> str:
        return self._key(f"rollouts:{kind}")

    def heartbeat(self, member: str) -> str:
        return self._key(f"heartbeat:{member}")

    @property
    def weights(self) -> str:
        return self._key("weights")

    @property
    def returned(self) -> str:
        """Policy tasks that a lost learner line issued ahead; the learner issues them again when their time comes."""
        return self._key("returned")

    @property
    def generation(self) -> str:
        """Name of the data set: another one, or none, means that the server lost the run or is not its server."""
        return self._key("generation")

    @property
    def rebuilt(self) -> str:
        """Token of the learner that began to rebuild the data: gone, when the server lost that it did."""
        return self._key("rebuilt")

    @property
    def clock(self) -> str:
        """The server's time when the learner last looked: by it a step back is noticed."""
        return self._key("clock")

    @property
    def dead(self) -> str:
        return self._key("dead")

    @property
    def events(self) -> str:
        return self._key("events")

    @property
    def ledger(self) -> str:
        """Hash ``OUTCOME:KIND`` -> count of uids, written only by the functions that move entries."""
        return self._key("ledger")

    @property
    def fence(self) -> str:
        return self._key("fence")

    @property
    def cursor(self) -> str:
        """How many prompts of the source have been issued."""
        return self._key("cursor")

    @property
    def progress(self) -> str:
        """Hash the learner writes: policy_version, judge_granted, ...; the recycler writes recycled_through."""
        return self._key("progress")

    @property
    def control(self) -> str:
        """What users have told the run: commands, appended by whoever steers, read by the learner."""
        return self._key("control")

    @property
    def members(self) -> str:
        return self._key("members")

    def groups(self, *, recycles: bool = True) -> dict[str, tuple[str, ...]]:
        """Stream -> the consumer groups it must have. A group that nobody reads for would keep entries for ever."""
        return {
            self.tasks("policy"): (ACTORS,),
            self.tasks("judge"): (ACTORS,),
            self.rollouts("policy"): (LEARNER, RECYCLER) if recycles else (LEARNER,),
            self.rollouts("judge"): (LEARNER,),
            self.returned: (LEARNER,),
        }
