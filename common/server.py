"""The connection to the Redis-protocol server: one way to connect, and the checks before a run starts."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any, Final

import redis
from redis.backoff import NoBackoff
from redis.exceptions import NoPermissionError
from redis.retry import Retry

from common.errors import ServerAway, ServerError

FUNCTIONS: Final = Path(__file__).with_name("spark.lua")
BLOCK_MS: Final = 2000
"""Longest blocking read. Well below the socket timeout, so that a timeout always means trouble."""

UNCHECKED: Final = {"ssl_cert_reqs", "ssl_check_hostname", "ssl_exclude_verify_flags"}
"""Options of a URL that would switch off what makes TLS worth having."""
CLIENT_CERTIFICATE: Final = "set redis.tls_cert_file and redis.tls_key_file if it asks for a certificate"

Client = redis.Redis
RETRIABLE: Final = (redis.ConnectionError, redis.TimeoutError, redis.BusyLoadingError, redis.ReadOnlyError)


def connect(url: str) -> Client:
    """A client without automatic retries: redis-py repeats a command whose reply was lost, so one XADD can become five.

    Everything repeated is repeated by us, and only where repeating changes nothing. With ``rediss://`` the server's
    certificate and host name are checked, always. Raises ServerError for a URL that is none.
    """
    options: dict[str, Any] = {} if url.startswith("unix:") else {"socket_keepalive": True}
    try:
        client = redis.Redis.from_url(
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
    known = client.connection_pool.connection_kwargs
    if known.get("password"):
        # No CLIENT SETINFO after AUTH: it is no role's right. Without AUTH it stays, for some reply must be read before
        # the first command: redis-py takes the session tickets of TLS 1.3, which come with it, for a forgotten reply.
        known["driver_info"] = None
    if unchecked := UNCHECKED & known.keys():
        raise ServerError(
            f"redis.url sets {min(unchecked)}, but certificates are always checked; remove it, and set "
            "redis.tls_ca_file to the server's own certificate if nobody else signed it"
        )
    return client


def is_full(error: Exception) -> bool:
    """The server refused a write for want of memory (OOM) or disk (MISCONF); nothing was changed."""
    return isinstance(error, redis.OutOfMemoryError) or str(error).startswith("MISCONF")


def is_refused(error: Exception) -> bool:
    """The user of these credentials may not do that; also when a function may not, in the words of Valkey and Redis."""
    words = ("ACL failure in script", "The user executing the script can't")
    return isinstance(error, NoPermissionError) or any(part in str(error) for part in words)


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
        away = isinstance(error, RETRIABLE) and _tls_error(error) is None
        raise (ServerAway if away else ServerError)(_unreachable(client, error)) from None
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
    """Install the stream functions, unless exactly these are installed. Raises ServerError.

    Loading needs the admin's rights. A learner with a learner's rights starts once an admin has loaded them.
    """
    code = FUNCTIONS.read_text(encoding="utf-8")
    try:
        if _installed(client) != code.encode():
            client.function_load(code, replace=True)
    except NoPermissionError as error:
        raise ServerError(
            f"these credentials may not load the stream functions into the server at {address(client)}: {error}; "
            f"an admin does it once: redis-cli -x FUNCTION LOAD REPLACE < common/{FUNCTIONS.name}"
        ) from error
    except RETRIABLE as error:
        raise ServerAway(_unreachable(client, error)) from error
    except redis.RedisError as error:
        raise ServerError(f"the server at {address(client)} does not take the stream functions: {error}") from error


def functions_loaded(client: Client) -> bool:
    """Raises ServerAway."""
    try:
        return _installed(client) is not None
    except RETRIABLE as error:
        raise ServerAway(_unreachable(client, error)) from error


def _installed(client: Client) -> bytes | None:
    """Source of the stream functions that the server has."""
    answer: Any = client.function_list(library="spark", withcode=True)
    for library in answer:
        return bytes(dict(zip(library[::2], library[1::2], strict=True))[b"library_code"])
    return None


def memory_share(client: Client) -> float:
    """used_memory over maxmemory; 0 when the server has no limit."""
    info = _info(client, "memory")
    limit = int(info.get("maxmemory", 0))
    return float(info["used_memory"]) / limit if limit else 0.0


def address(client: Client) -> str:
    """Host and port without credentials."""
    options = client.connection_pool.connection_kwargs
    return str(options.get("path") or f"{options.get('host')}:{options.get('port')}")


def _unreachable(client: Client, error: BaseException) -> str:
    """Why no server answers, and what to do: one sentence."""
    where = address(client)
    cause = _tls_error(error)
    if isinstance(cause, ssl.SSLCertVerificationError):
        return (
            f"the certificate of the server at {where} is not accepted: {cause.verify_message}; set redis.tls_ca_file "
            "to the certificate of the authority that signed it, and write the host in redis.url as it is named there"
        )
    if cause is not None:
        return (
            f"no TLS connection with the server at {where}: {cause.reason or cause}; write redis:// if it has no TLS, "
            f"{CLIENT_CERTIFICATE}"
        )
    hint = "write rediss:// if it wants TLS"
    if client.connection_pool.connection_class is redis.SSLConnection:
        hint = CLIENT_CERTIFICATE  # its alert may come after the handshake, and be lost with the connection
    return f"no server answers at {where}: {error}; start one or correct redis.url; {hint}"


def _tls_error(error: BaseException | None) -> ssl.SSLError | None:
    """The reason that redis-py wraps up in an error of its own."""
    while error is not None and not isinstance(error, ssl.SSLError):
        error = error.__cause__ or error.__context__
    return error


def _info(client: Client, section: str | None = None) -> dict[str, Any]:
    answer: Any = client.info(section) if section else client.info()
    return dict(answer)
