"""Bugs to be planted in the code under test, so that the simulation is known to find them.

Each is one that a queue service of this kind is likely to have. A bug is a context in which the code has it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Final
from unittest import mock

import redis

import common.server
from common.keys import ACTORS, LEARNER
from common.messages import Kind, Outcome
from common.streams import Delivery, Product, Streams
from learner.commit import Committer
from learner.fence import Fence
from learner.shelf import Shelf
from learner.uid_ledger import UidLedger


def planted(bug: str | None) -> AbstractContextManager[None]:
    return BUGS[bug]() if bug else nullcontext()


@contextmanager
def ack_before_checkpoint() -> Iterator[None]:
    """Groups are acknowledged when a checkpoint is due, and then it is written."""
    save = Committer.save

    def acknowledge_and_save(self: Any, engine: Any) -> bool:
        endings, version = list(self._shelf.endings), engine.policy_version
        if version != self._saved_version:
            self._fence.hold(lambda: self._streams.settle(self._fence.token, LEARNER, version, endings))
        return save(self, engine)

    with mock.patch.object(Committer, "save", acknowledge_and_save):
        yield


@contextmanager
def xadd_then_xack() -> Iterator[None]:
    """Two commands, each repeated until it is answered, in the place of the one transfer."""

    def transfer(
        self: Any,
        source: str,
        group: str,
        target: str,
        moves: Iterable[tuple[str, Sequence[Product]]],
        *,
        issues: Kind | None = None,
    ) -> list[bool]:
        client, applied = self.client, []
        for entry_id, products in moves:
            for product in products:
                fields = {"uid": product.uid, "m": product.payload}
                self._retry(lambda fields=fields: client.xadd(target, fields), produces=True)
            if issues and products:
                uids = " ".join(product.uid for product in products)
                event = {"event": "issued", "kind": issues, "uids": uids}
                self._retry(lambda event=event: client.xadd(self.keys.events, event))
                counted = (self.keys.ledger, f"issued:{issues}", len(products))
                self._retry(lambda counted=counted: client.hincrby(*counted))
            applied.append(bool(self._retry(lambda entry_id=entry_id: client.xack(source, group, entry_id))))
        return applied

    with mock.patch.object(Streams, "transfer", transfer):
        yield


@contextmanager
def id_only_ledger() -> Iterator[None]:
    """What was trained is known by the ids of stream entries; a uid that comes under another id is new."""
    arrive, end_of, end = Shelf._arrive, UidLedger.end_of, Shelf._end
    ids: dict[str, set[str]] = {}
    arriving: list[str] = [""]

    def by_id(self: Any, delivery: Delivery, kind: Kind) -> None:
        arriving[0] = delivery.id
        arrive(self, delivery, kind)

    def known(self: Any, uid: str) -> Outcome | None:
        return end_of(self, uid) if arriving[0] in ids.get(uid, ()) else None

    def remembered(self: Any, delivery: Delivery, kind: Kind, outcome: Outcome) -> None:
        ids.setdefault(delivery.uid, set()).add(delivery.id)
        end(self, delivery, kind, outcome)

    with (
        mock.patch.object(Shelf, "_arrive", by_id),
        mock.patch.object(Shelf, "_end", remembered),
        mock.patch.object(UidLedger, "end_of", known),
    ):
        yield


@contextmanager
def groups_from_now() -> Iterator[None]:
    """A group sees what is added after it was created, not what was there: here when its first reader asks for it."""
    create = Streams._create_group

    def on_demand(self: Any, stream: str, group: str) -> None:
        if group == ACTORS and not self.client.exists(stream):
            return
        create(self, stream, group)

    def from_now(self: Any, name: str, groupname: str, id: str = "$", mkstream: bool = False) -> Any:
        return create_from(self, name, groupname, id="$", mkstream=mkstream)

    create_from = redis.Redis.xgroup_create
    with (
        mock.patch.object(Streams, "_create_group", on_demand),
        mock.patch.object(redis.Redis, "xgroup_create", from_now),
    ):
        yield


@contextmanager
def no_fence() -> Iterator[None]:
    """A learner neither looks for newer ones nor is refused by the server."""
    unfenced = [
        ("if redis.call('GET', keys[1]) ~= args[1] then return -1 end", ""),
        ("if redis.call('GET', keys[1]) ~= args[1] then return {0, cursor} end", ""),
    ]
    with mock.patch.object(Fence, "check"), _lua(unfenced):
        yield


def _lua(changes: Sequence[tuple[str, str]]) -> AbstractContextManager[Any]:
    """The server's functions with these texts replaced. Raises AssertionError when one is not there."""
    code = common.server.FUNCTIONS.read_text(encoding="utf-8")
    for old, new in changes:
        assert old in code, f"{old!r} is not in {common.server.FUNCTIONS.name}; adapt the planted bug"
        code = code.replace(old, new)
    stack = ExitStack()
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    (folder / "planted.lua").write_text(code, encoding="utf-8")
    stack.enter_context(mock.patch.object(common.server, "FUNCTIONS", folder / "planted.lua"))
    return stack


BUGS: Final[dict[str, Callable[[], AbstractContextManager[None]]]] = {
    "ack-before-checkpoint": ack_before_checkpoint,
    "xadd-then-xack": xadd_then_xack,
    "id-only-ledger": id_only_ledger,
    "renew-without-owner-check": lambda: _lua([("return #pending == 1 and pending[1][2] == consumer", "return true")]),
    "trim-ignores-recycler": lambda: _lua(
        [
            (
                "local groups = groups_of(keys[1])\n  if #groups <",
                "local groups = {groups_of(keys[1])[1]}\n  if 1 + #groups <",
            )
        ]
    ),
    "groups-from-now": groups_from_now,
    "no-fence": no_fence,
}
