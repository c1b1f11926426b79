"""msgpack on the wire: size limits before unpacking, a closed schema after it, never pickle."""

from __future__ import annotations

from typing import Any, Final, TypeVar

import msgpack
from pydantic import TypeAdapter, ValidationError

from common.errors import InvalidMessage
from common.messages import SCHEMA_VERSION

MAX_MESSAGE_BYTES: Final = 8 * 1024 * 1024
_LIMITS: Final = {
    "max_str_len": 1024 * 1024,
    "max_bin_len": 4 * 1024 * 1024,
    "max_array_len": 4096,
    "max_map_len": 256,
    "max_ext_len": 0,
}

T = TypeVar("T")


_adapters: dict[type[Any], TypeAdapter[Any]] = {}


def _adapter(message_type: type[Any]) -> TypeAdapter[Any]:
    if message_type not in _adapters:
        _adapters[message_type] = TypeAdapter(message_type)
    return _adapters[message_type]


def encode(message: object) -> bytes:
    """Serialize a dataclass of ``common.messages``. Raises InvalidMessage where it cannot travel, or is too large."""
    try:
        packed: bytes = msgpack.packb(_adapter(type(message)).dump_python(message), use_bin_type=True)
    except (ValueError, TypeError, OverflowError, RecursionError) as error:  # a lone surrogate, an int above 64 bits
        raise InvalidMessage(f"{type(message).__name__} cannot be encoded: {error}") from error
    if len(packed) > MAX_MESSAGE_BYTES:
        raise InvalidMessage(
            f"{type(message).__name__} of {len(packed)} bytes is over the limit of {MAX_MESSAGE_BYTES}; "
            "lower sampling.group_size or sampling.max_new_tokens"
        )
    return packed


def decode(message_type: type[T], payload: bytes) -> T:
    """Parse and validate one message. Raises InvalidMessage with the reason, and nothing else."""
    if len(payload) > MAX_MESSAGE_BYTES:
        raise InvalidMessage(f"message of {len(payload)} bytes is over the limit of {MAX_MESSAGE_BYTES}")
    try:
        raw = msgpack.unpackb(payload, raw=False, strict_map_key=True, **_LIMITS)
        _check_schema(raw)
        message: T = _adapter(message_type).validate_python(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InvalidMessage(f"{message_type.__name__}.{where}: {first['msg']}") from error
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise InvalidMessage(f"not a {message_type.__name__}: {type(error).__name__}: {error}") from error
    return message


def _check_schema(raw: Any) -> None:
    """Before validation: of a message from another version, its version is the only thing worth saying."""
    for part in (raw, raw.get("task")) if isinstance(raw, dict) else ():
        schema = part.get("schema", SCHEMA_VERSION) if isinstance(part, dict) else SCHEMA_VERSION
        if schema != SCHEMA_VERSION:
            raise InvalidMessage(
                f"schema {schema!r}, but this process reads {SCHEMA_VERSION}; run one version of SPARK"
            )
