"""Calls to the server that may be repeated: lost connections and full servers are met here, and nowhere else."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

import redis

from common.errors import ServerError, ServerFull
from common.server import RETRIABLE, Client, address, is_full, is_refused

LONGEST_DELAY_S: Final = 2.0

T = TypeVar("T")


class Calls(ABC):
    """One client, and what to do when a call fails. Lost connections are retried until ``give_up_s``."""

    def __init__(
        self,
        client: Client,
        *,
        give_up_s: float,
        seed: int | None,
        clock: Callable[[], float],
        sleep: Callable[[float], None],
    ) -> None:
        self.client = client
        self._give_up_s = give_up_s
        self._jitter = random.Random(seed)
        self._clock = clock
        self._sleep = sleep

    @abstractmethod
    def create_groups(self) -> None:
        """Make streams and groups that are missing."""

    def recover_from(self, error: redis.RedisError) -> None:
        """After a failed read: wait until the server is back or has room, or make lost groups again. Else raises."""
        if isinstance(error, RETRIABLE):
            self._retry(self.client.ping)
        elif _no_group(error):
            self.create_groups()
        elif is_full(error):
            self._sleep(self._jitter.uniform(0.5, 1.0) * LONGEST_DELAY_S)
        else:
            raise error

    def _call(self, function: str, keys: Sequence[str], args: Sequence[Any], *, produces: bool = False) -> Any:
        def call() -> Any:
            return self._retry(lambda: self.client.fcall(function, len(keys), *keys, *args), produces=produces)

        try:
            return call()
        except redis.ResponseError as error:
            if str(error).startswith("Function not found"):
                raise ServerError(
                    f"the server at {address(self.client)} has lost the stream functions, so probably its data too; "
                    "stop this run and start it again"
                ) from error
            if not _no_group(error):
                raise
        self.create_groups()  # the server lost a group: it starts again from 0
        return call()

    def _retry(self, call: Callable[[], T], *, produces: bool = False) -> T:
        """Repeat a call that changes nothing when repeated, with jittered back-off, until ``give_up_s``.

        A full server does answer, so it is waited for without limit; a producer is told instead.
        """
        give_up_at = self._clock() + self._give_up_s
        delay_s = 0.05
        while True:
            try:
                return call()
            except redis.AuthenticationError as error:
                raise ServerError(f"the server at {address(self.client)} refuses the credentials: {error}") from error
            except RETRIABLE as error:
                if self._clock() + delay_s > give_up_at:
                    raise ServerError(
                        f"the server at {address(self.client)} has not answered for {self._give_up_s:.0f} s: {error}"
                    ) from error
            except redis.ResponseError as error:
                if is_refused(error):
                    raise ServerError(
                        f"the credentials in redis.url lack a right that this process needs: {error}; "
                        "give each role its own user, as docs/security.md says"
                    ) from error
                if not is_full(error):
                    raise
                if produces:
                    raise ServerFull(f"the server at {address(self.client)} takes no new entries: {error}") from error
                give_up_at = self._clock() + self._give_up_s
            self._sleep(delay_s * self._jitter.uniform(0.5, 1.0))
            delay_s = min(LONGEST_DELAY_S, delay_s * 2)


def _no_group(error: Exception) -> bool:
    return str(error).startswith("NOGROUP")
