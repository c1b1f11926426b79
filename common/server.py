"""The connection to the Redis-protocol server: one way to connect, and the checks before a run starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from common.errors import ServerError

FUNCTIONS: Final = Path(__file__).with_name("spark.lua")
BLOCK_MS: Final = 2000
"""Longest blocking read. Well below the socket timeout, so that a timeout always means trouble."""

Client = redis.Redis
RETRIABLE: Final = (redis.ConnectionError, redis.TimeoutError, redis.BusyLoadingError, redis.ReadOnlyError)


def connect(url: str) -> Client:
    """A client without automatic retries: redis-py repeats a command whose reply was lost, so one XADD can become five.

    Everything repeated is repeated by us, and only where repeating changes nothing.
    """
    options: dict[str, Any] = {} if url.startswith("unix:") else {"socket_keepalive": True}
    try:
        return redis.Redis.from_url(
            url,
            protocol=2,
            retry=Retry(NoBackoff(), 0),
            socket_timeout=10.0,
            socket_connect_timeout=3.0,
            health_check_interval=0,
            **options,
        )
    except ValueError:  # its text may quote a piece of the password
        raise ServerError(
            "redis.url is no server address; write redis://HOST:PORT, rediss://HOST:PORT or unix:///PATH, "
            "with special characters of a password percent-encoded"
        ) from None


def is_full(error: Exception) -> bool:
    """The server refused a write for want of memory (OOM) or disk (MISCONF); nothing was changed."""
    return isinstance(error, redis.OutOfMemoryError) or str(error).startswith("MISCONF")


def loaded(client: Client) -> bool:
    """The server answers and has read its data from disk."""
    try:
        return not _info(client, "persistence")["loading"]
    except redis.RedisError:
        return False


def shut_down(client: Client) -> None:
    """Tell the server to write what it has and to end; one that is already gone is no error."""
    try:
        client.shutdown()
    except RETRIABLE:
        return


def check_server(client: Client) -> None:
    """Refuse a server that would lose data. Raises ServerError with the command that mends it."""
    try:
        info = _info(client)
    except redis.AuthenticationError as error:
        raise ServerError(
            f"the server refuses these credentials: {error}; check user and password in redis.url"
        ) from None
    except redis.ResponseError as error:
        raise ServerError(f"the server at {address(client)} refuses to be examined: {error}") from None
    except redis.RedisError as error:
        raise ServerError(f"no server answers at {address(client)}: {error}; start one or correct redis.url") from None
    version = str(info.get("redis_version", "0"))
    if int(version.split(".")[0]) < 7:
        raise ServerError(f"server version {version} is too old; need Redis 7.0 or Valkey 8 (functions, ACL selectors)")
    policy = str(info.get("maxmemory_policy", "noeviction"))
    if policy != "noeviction":
        raise ServerError(
            f"maxmemory-policy is {policy!r}: the server would evict whole streams; "
            "run: redis-cli config set maxmemory-policy noeviction"
        )


def load_functions(client: Client) -> None:
    """Install the stream functions. Needs the admin's rights; roles only call them. Raises ServerError."""
    try:
        client.function_load(FUNCTIONS.read_text(encoding="utf-8"), replace=True)
    except redis.RedisError as error:
        raise ServerError(f"the server at {address(client)} does not take the stream functions: {error}") from error


def functions_loaded(client: Client) -> bool:
    answer: Any = client.function_list(library="spark")
    return bool(answer)


def memory_share(client: Client) -> float:
    """used_memory over maxmemory; 0 when the server has no limit."""
    info = _info(client, "memory")
    limit = int(info.get("maxmemory", 0))
    return float(info["used_memory"]) / limit if limit else 0.0


def address(client: Client) -> str:
    """Host and port without credentials."""
    options = client.connection_pool.connection_kwargs
    return str(options.get("path") or f"{options.get('host')}:{options.get('port')}")


def _info(client: Client, section: str | None = None) -> dict[str, Any]:
    answer: Any = client.info(section) if section else client.info()
    return dict(answer)
