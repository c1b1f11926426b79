"""The real redis-py client on a memory server: only the connection is another one."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import redis
from redis._parsers.base import BaseParser
from redis.backoff import NoBackoff
from redis.connection import ConnectionInterface, ConnectionPool
from redis.retry import Retry

from simulation.memory_server import MemoryServer, ServerDown
from simulation.replies import Reply, ReplyError, Waiting

Words = list[bytes]


class Intercept:
    """What happens around every command of a client, also around each of a pipeline. This one lets all pass.

    A method may do anything: switch to another process of the simulation, advance its clock, raise to kill this one.
    """

    def before(self, command: Words) -> None:
        """Raise redis.ConnectionError and the request is lost: the server never sees it, nor what follows it in its
        pipeline."""

    def after(self, command: Words) -> None:
        """Raise redis.ConnectionError and the reply is lost, with those of what follows in the pipeline, which is not
        executed: to lose the replies to a pipeline that ran, raise after its last command."""

    def waits(self, command: Words, wait_ms: int) -> None:
        """A blocking read found nothing and may wait so long (0: for ever). It reads once more when this returns."""


class MemoryConnection(ConnectionInterface):
    """Executes in ``read_response``, one command for each reply that is read."""

    db = 0
    port = credential_provider = None

    def __init__(self, *, server: MemoryServer, intercept: Intercept, path: str, **options: Any) -> None:
        self.host = path
        self.pid = os.getpid()
        self.retry = Retry(NoBackoff(), 0)
        self._server, self._intercept = server, intercept
        self._session = server.session()
        self._sent: list[Words] = []

    # -- what a client sends and reads ------------------------------------------------------------------------

    def send_command(self, *args: Any, **options: Any) -> None:
        self._sent.append(words_of(args))

    def pack_commands(self, commands: Iterable[tuple[Any, ...]]) -> list[Words]:
        return [words_of(args) for args in commands]

    def send_packed_command(self, command: list[Words], check_health: bool = True) -> None:
        self._sent += command

    def read_response(self, *args: Any, **options: Any) -> Any:
        """Raises what the real connection would: redis.ConnectionError, or the error the server answered."""
        try:
            return self._execute(self._sent.pop(0))
        except ReplyError as error:
            raise BaseParser.parse_error(error.text) from None
        except ServerDown as error:
            raise redis.ConnectionError(f"{error} ({self.host})") from None

    def _execute(self, command: Words) -> Reply:
        self._intercept.before(command)
        try:
            reply = self._server.execute(self._session, command)
            if isinstance(reply, Waiting):
                self._intercept.waits(command, reply.wait_ms)
                reply = self._server.again(self._session, reply)
        except ReplyError:
            self._intercept.after(command)
            raise
        self._intercept.after(command)
        if isinstance(reply, list) and reply and command[0] == b"EXEC":
            return [BaseParser.parse_error(part.text) if isinstance(part, ReplyError) else part for part in reply]
        return reply

    # -- being connected --------------------------------------------------------------------------------------

    def connect(self) -> None:
        """Nothing on its way belongs to an earlier use. A connection that a restart cut is made again."""
        self._sent.clear()
        if self._session.life != self._server.life or self._session.queued is not None:
            self._session = self._server.session()

    def disconnect(self, *args: Any, **options: Any) -> None:
        self._sent.clear()
        self._session = self._server.session()

    def can_read(self, timeout: float = 0) -> bool:
        return bool(self._sent)

    def should_reconnect(self) -> bool:
        return False

    def get_protocol(self) -> int:
        return 2

    def repr_pieces(self) -> list[tuple[str, str]]:
        return [("path", self.host)]


class MemoryPool(ConnectionPool):
    """Without the locks and metrics of the real pool, which take half of the time of a command."""

    def get_connection(self, command_name: str | None = None, *keys: Any, **options: Any) -> MemoryConnection:
        connection = self._available_connections.pop() if self._available_connections else self.make_connection()
        self._in_use_connections.add(connection)
        connection.connect()
        return connection

    def release(self, connection: MemoryConnection) -> None:
        self._in_use_connections.discard(connection)
        self._available_connections.append(connection)


class LeanClient(redis.Redis):
    """Without what the real client does around a command: metrics, retries (there are none), import of hashes."""

    def execute_command(self, *args: Any, **options: Any) -> Any:
        pool = self.connection_pool
        connection = pool.get_connection()
        try:
            connection.send_command(*args)
            return self.parse_response(connection, args[0], **options)
        finally:
            pool.release(connection)


def connect_memory(
    server: MemoryServer, intercept: Intercept | None = None, client: type[redis.Redis] = redis.Redis
) -> redis.Redis:
    """A client as ``common.server.connect`` makes it."""
    pool = MemoryPool(
        connection_class=MemoryConnection,
        server=server,
        intercept=intercept or Intercept(),
        path="memory",
        protocol=2,
    )
    return client(connection_pool=pool)


def words_of(args: tuple[Any, ...]) -> Words:
    """As on the wire; redis-py writes a subcommand into one word with its command."""
    words = [word if type(word) is bytes else word.encode() if type(word) is str else _encode(word) for word in args]
    if b" " in words[0]:
        words[:1] = words[0].split()
    return words


def _encode(word: Any) -> bytes:
    if isinstance(word, str):
        return word.encode()
    if isinstance(word, bytes | bytearray | memoryview):
        return bytes(word)
    if isinstance(word, bool) or not isinstance(word, int | float):
        raise redis.DataError(
            f"Invalid input of type: {type(word).__name__!r}. Convert to bytes, string, int or float."
        )
    return repr(word).encode()
