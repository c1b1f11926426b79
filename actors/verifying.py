"""What the actor's loop and the evaluation ask of whoever scores completions (``actors.verifiers.pool``)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from common.messages import Completion, Task, Verdict


class PendingVerdicts(Protocol):
    """The verdicts of one group, on their way."""

    def done(self) -> bool:
        """``verdicts`` would not wait."""
        ...

    def verdicts(self) -> tuple[Verdict, ...]:
        """One verdict per completion, in order; waits for them."""
        ...


class Verifying(Protocol):
    """Scores the completions of a task without blocking its caller."""

    def submit(self, task: Task, completions: Sequence[Completion]) -> PendingVerdicts: ...
