"""Ranks 1 and up: do what rank 0 says, until it says stop or something breaks."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Final

import structlog
import torch.distributed as dist

from common.errors import SparkError
from common.settings import Settings
from learner.engine import Engine
from learner.ranks.channel import Channel
from learner.ranks.commands import (
    Command,
    Export,
    OldLogprobs,
    ReadCheckpoint,
    Step,
    Stop,
    Use,
    WriteCheckpoint,
    WriteWeights,
)
from learner.ranks.group import Backend, another, join, reach
from learner.ranks.place import Place
from learner.ranks.vigil import UNKNOWN, Vigil

log = structlog.get_logger()

NOWHERE: Final = Path(os.devnull)
"""The folder of an engine that takes part in a gather: only rank 0 writes and reads files."""
HEARSAY_S: Final = 3.0
"""How long a rank whose connection broke waits for word of who broke it."""


def follow(settings: Settings, place: Place, backend: Backend, open_engine: Callable[[Settings, Place], Engine]) -> int:
    """Take part in the job until rank 0 stops it; returns the exit code that it says.

    SIGTERM and SIGINT are left to rank 0, which gets them too: it saves first, with this rank's help. An error ends
    this process at once, with the reason in the log: nothing may wait for a partner that is gone.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    store = reach(place)
    vigil = Vigil(another(place), place)
    vigil.start()
    try:
        channel = Channel(join(store, place, backend))
        code = obey(channel, open_engine(settings, place))
        channel.meet()
        vigil.stop()  # from here on rank 0 may be gone
        dist.destroy_process_group()
    except Exception as error:  # noqa: BLE001 - every error ends this rank, and is logged
        os._exit(_end(vigil, error))
    return code


def obey(channel: Channel, engine: Engine) -> int:
    """Do command after command; returns the exit code of the last."""
    log.info("rank.ready")
    while not isinstance(command := channel.receive(), Stop):
        execute(engine, command)
    log.info("rank.stopped")
    return command.exit_code


def execute(engine: Engine, command: Command) -> None:
    """This rank's part of one command."""
    match command:
        case Step():
            engine.step(command.microbatches, command.old)
        case Use():
            engine.use(command.to_settings())
        case OldLogprobs():
            engine.old_logprobs(command.microbatches)
        case WriteWeights():
            engine.write_weights(NOWHERE)
        case WriteCheckpoint():
            engine.write_checkpoint(NOWHERE)
        case ReadCheckpoint():
            engine.read_checkpoint(NOWHERE, command.policy_version)
        case Export():
            engine.export(NOWHERE)
        case Stop():
            raise ValueError("Stop ends the loop, it is not executed")


def _end(vigil: Vigil, error: Exception) -> int:
    """Say why, to the log and to the others; the exit code."""
    if isinstance(error, RuntimeError) and (failure := vigil.failure(HEARSAY_S)) is not None:
        log.error("rank.ended", because=failure.in_words())
        return failure.exit_code
    log.error("rank.failed", exc_info=error)
    code = error.exit_code if isinstance(error, SparkError) else UNKNOWN
    vigil.fail(code, f"failed: {type(error).__name__}: {error}")
    return code
