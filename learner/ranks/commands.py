"""What rank 0 tells the other ranks to do with it, as msgpack: a closed set of commands, never pickle."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgpack
import numpy as np
from numpy.typing import NDArray

from common.errors import InvalidMessage
from common.settings import Settings
from learner.packing import Microbatch

MAX_COMMAND_BYTES: Final = 2**31 - 1
"""About 70 million packed tokens with their old log-probs."""
_LIMITS: Final = {
    "max_str_len": 64,
    "max_bin_len": MAX_COMMAND_BYTES,
    "max_array_len": 1_000_000,
    "max_map_len": 32,
    "max_ext_len": 0,
}
_DTYPES: Final = ("|b1", "<i4", "<i8", "<f4")


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """Other settings from the next step on: all of them but those of the server, as JSON."""

    settings: bytes

    @classmethod
    def of(cls, settings: Settings) -> Use:
        return cls(settings=settings.model_dump_json(exclude={"redis"}).encode())

    def to_settings(self) -> Settings:
        return Settings.model_validate_json(self.settings)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OldLogprobs:
    """Log-probs of these microbatches under the weights as they are now."""

    microbatches: tuple[Microbatch, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Step:
    """One optimizer step on these microbatches. ``old``: what ``ppo`` takes the ratio to, [N] each; None: behaviour."""

    microbatches: tuple[Microbatch, ...]
    old: tuple[NDArray[np.float32], ...] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteWeights:
    """Gather the weights; rank 0 writes them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteCheckpoint:
    """Gather weights and optimizer state; rank 0 writes them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadCheckpoint:
    """Take over the weights and the optimizer state that rank 0 reads."""

    policy_version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """Gather the weights; rank 0 writes a directory that users load."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """The last command. ``exit_code``: how every rank ends."""

    exit_code: int


Command = Use | OldLogprobs | Step | WriteWeights | WriteCheckpoint | ReadCheckpoint | Export | Stop
_KINDS: Final[dict[str, type[Any]]] = {
    kind.__name__: kind
    for kind in (Use, OldLogprobs, Step, WriteWeights, WriteCheckpoint, ReadCheckpoint, Export, Stop)
}


def encode(command: Command) -> bytes:
    """Raises InvalidMessage when it is too large to travel."""
    fields = {f.name: _dump(getattr(command, f.name)) for f in dataclasses.fields(command)}
    packed: bytes = msgpack.packb({"kind": type(command).__name__, **fields}, use_bin_type=True)
    if len(packed) > MAX_COMMAND_BYTES:
        raise InvalidMessage(
            f"{type(command).__name__} of {len(packed)} bytes is over the limit of {MAX_COMMAND_BYTES}; "
            "lower learner.groups_per_step or sampling.max_new_tokens"
        )
    return packed


def decode(payload: bytes) -> Command:
    """Raises InvalidMessage with the reason, and nothing else."""
    try:
        raw = msgpack.unpackb(payload, raw=False, strict_map_key=True, **_LIMITS)
        kind = _KINDS[raw.pop("kind")]
        expected = {f.name for f in dataclasses.fields(kind)}
        if raw.keys() != expected:
            raise ValueError(f"{kind.__name__} has the fields {sorted(raw)}, not {sorted(expected)}")
        command: Command = kind(**{name: _LOAD[name](value) for name, value in raw.items()})
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, msgpack.UnpackException) as error:
        raise InvalidMessage(f"not a command: {type(error).__name__}: {error}") from error
    return command


def _dump(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return {"dtype": value.dtype.newbyteorder("<").str, "shape": list(value.shape), "data": value.tobytes()}
    if isinstance(value, Microbatch):
        return {name: _dump(array) for name, array in value.arrays().items()}
    return [_dump(part) for part in value] if isinstance(value, tuple) else value


def _array(raw: Any) -> NDArray[Any]:
    if not isinstance(raw, dict) or raw.keys() != {"dtype", "shape", "data"} or raw["dtype"] not in _DTYPES:
        raise ValueError(f"an array is a dtype of {_DTYPES}, a shape and data")
    dtype, shape, data = np.dtype(raw["dtype"]), [_count(length) for length in raw["shape"]], raw["data"]
    if len(data) != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{len(data)} bytes are no {raw['dtype']} array of shape {shape}")
    return np.frombuffer(data, dtype=dtype).reshape(shape).copy()  # torch takes no read-only memory


def _microbatch(raw: Mapping[str, Any]) -> Microbatch:
    expected = {f.name for f in dataclasses.fields(Microbatch)}
    if raw.keys() != expected:
        raise ValueError(f"a microbatch has the fields {sorted(raw)}, not {sorted(expected)}")
    return Microbatch.from_arrays({name: _array(value) for name, value in raw.items()})


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is no count")
    return value


_LOAD: Final[dict[str, Any]] = {
    "settings": bytes,
    "microbatches": lambda raw: tuple(map(_microbatch, raw)),
    "old": lambda raw: None if raw is None else tuple(map(_array, raw)),
    "policy_version": _count,
    "exit_code": _count,
}
