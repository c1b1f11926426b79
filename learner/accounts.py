"""How many groups of one kind are where, as the learner sees it: the arithmetic of the admission gate."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class Account:
    """``unsettled``: uids that ended here, and of which the server has not been told yet.

    All others are the server's to count. One that loses its last second forgets some; they come again, and end again.
    """

    unsettled: set[str] = field(default_factory=set)
    arrived_since_cut: int = 0
    filtered_since_cut: int = 0

    def arrived(self) -> None:
        self.arrived_since_cut += 1

    def end(self, uid: str, *, filtered: bool = False) -> None:
        self.unsettled.add(uid)
        self.filtered_since_cut += filtered

    def cut(self) -> None:
        """A batch was taken."""
        self.arrived_since_cut = self.filtered_since_cut = 0

    def ended(self, settled: int) -> int:
        """``settled``: as many as the server has counted."""
        return settled + len(self.unsettled)

    def withheld(self, groups_per_batch: int, refill: float) -> int:
        """Room of filtered groups that is not given back before the next cut: the refill has an end."""
        return max(0, self.filtered_since_cut - int((refill - 1.0) * groups_per_batch))

    def refill_spent(self, groups_per_batch: int, refill: float) -> bool:
        """Enough groups were looked at for this batch: it is taken smaller than wanted."""
        return self.arrived_since_cut >= int(refill * groups_per_batch)
