"""How many groups of one kind are where, as the learner sees it: the arithmetic of the admission gate."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Account:
    """``ended`` includes endings that no checkpoint has made durable yet; the server's ledger lags behind it."""

    ended: int = 0
    arrived_since_cut: int = 0
    filtered_since_cut: int = 0

    def arrived(self) -> None:
        self.arrived_since_cut += 1

    def end(self, *, filtered: bool = False) -> None:
        self.ended += 1
        self.filtered_since_cut += filtered

    def cut(self) -> None:
        """A batch was taken."""
        self.arrived_since_cut = self.filtered_since_cut = 0

    def in_flight(self, issued: int, dead: int) -> int:
        """Issued and not ended anywhere."""
        return issued - dead - self.ended

    def withheld(self, groups_per_batch: int, refill: float) -> int:
        """Room of filtered groups that is not given back before the next cut: the refill has an end."""
        return max(0, self.filtered_since_cut - int((refill - 1.0) * groups_per_batch))

    def refill_spent(self, groups_per_batch: int, refill: float) -> bool:
        """Enough groups were looked at for this batch: it is taken smaller than wanted."""
        return self.arrived_since_cut >= int(refill * groups_per_batch)
