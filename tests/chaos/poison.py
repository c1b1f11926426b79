"""Poison: messages that no reader must take, and no reader may die of. A member sends one now and then by accident."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, Final

import msgpack

from common import streams
from common.codec import MAX_MESSAGE_BYTES, encode

Damage = Callable[[dict[str, Any]], bytes]


def _pack(message: dict[str, Any]) -> bytes:
    return bytes(msgpack.packb(message, use_bin_type=True, unicode_errors="surrogatepass"))


def _with_logprobs(message: dict[str, Any], data: bytes) -> bytes:
    """Log-probs of the first rollout replaced; a message without any gets an unknown field."""
    if "rollouts" not in message:
        return _pack({**message, "logprobs": data})
    first, *others = message["rollouts"]
    damaged = {**first, "completion": {**first["completion"], "logprobs": data}}
    return _pack({**message, "rollouts": [damaged, *others]})


def _surrogate(message: dict[str, Any]) -> bytes:
    name = "actor" if "actor" in message else "question"
    return _pack({**message, name: "half a \ud800 pair"})


DAMAGES: Final[dict[str, Damage]] = {
    "bad msgpack": lambda _: b"\xc1",
    "nothing at all": lambda _: b"",
    "torn": lambda message: _pack(message)[:-7],
    "depth bomb": lambda _: b"\x91" * 100_000 + b"\xc0",
    "array bomb": lambda _: b"\xdd\x01\x31\x2d\x00" + b"\xc0" * 4096,
    "wrong schema": lambda message: _pack({**message, "schema": 99}),
    "another message": lambda _: _pack({"epoch": 1, "version": 2, "parent": 1, "uri": "x", "files": [], "schema": 2}),
    "unknown field": lambda message: _pack({**message, "surprise": 1}),
    "missing field": lambda message: _pack({name: message[name] for name in message if name not in ("uid", "actor")}),
    "NaN log-probs": lambda message: _with_logprobs(message, b"\x00\x00\xc0\x7f" * 12),
    "infinite log-probs": lambda message: _with_logprobs(message, b"\x00\x00\x80\x7f" * 12),
    "length mismatch": lambda message: _with_logprobs(message, b"\x00\x00\x00\xbf"),
    "surrogate text": _surrogate,
    "too large": lambda _: bytes(MAX_MESSAGE_BYTES + 1),
}


def plant(every: int) -> None:
    """From now on every ``every``-th message that this process puts on a stream is damaged, in turn in each way."""
    count, damages = itertools.count(1), itertools.cycle(DAMAGES.values())
    huge: Damage = DAMAGES["too large"]

    def poisonous(message: object) -> bytes:
        nonlocal huge
        payload = encode(message)
        if next(count) % every:
            return payload
        damage = next(damages)
        if damage is DAMAGES["too large"]:  # once: it is as large as a thousand others
            damage, huge = huge, DAMAGES["torn"]
        return damage(msgpack.unpackb(payload, raw=False))

    vars(streams)["encode"] = poisonous
