"""Suspects: tasks that were there when actors died. Each is generated alone, so that a poison takes nobody with it."""

from __future__ import annotations

from common.consumer import Consumer
from common.streams import Delivery


class Suspects:
    """Suspects in hand that wait until nothing else is in flight.

    On the server their latest delivery does not count before they are begun: an actor that dies meanwhile did not die
    of them. So a poison costs its neighbours two deliveries at most, and then only itself.
    """

    def __init__(self, consumer: Consumer, max_deliveries: int) -> None:
        self._consumer = consumer
        self._from_delivery = max(2, min(3, max_deliveries // 2 + 1))
        self._waiting: dict[str, Delivery] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def includes(self, delivery: Delivery) -> bool:
        return delivery.deliveries >= self._from_delivery

    def set_aside(self, delivery: Delivery) -> None:
        """Hold it, as if it had not been delivered this time."""
        if self._recount(delivery, delivery.deliveries - 1):
            self._waiting[delivery.key] = delivery

    def next(self) -> Delivery | None:
        """The one that waits longest, its delivery counted now; None when there is none, or its lease was lost."""
        if not self._waiting:
            return None
        delivery = self._waiting.pop(next(iter(self._waiting)))
        held = delivery.id in self._consumer.held[delivery.stream]
        return delivery if held and self._recount(delivery, delivery.deliveries) else None

    def _recount(self, delivery: Delivery, deliveries: int) -> bool:
        """False when it is another consumer's by now; the next renewal finds that out for good."""
        consumer = self._consumer
        counts = {delivery.id: deliveries}
        return bool(consumer.streams.recount(delivery.stream, consumer.group, consumer.name, counts))
