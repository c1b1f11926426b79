"""The learner: ``spark learner RUN.toml``. Settings, prompts and server first; torch only when they are right."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Callable
from typing import Final

import structlog

from common.consumer import Consumer
from common.errors import Fenced, ServerError, SettingsError
from common.keys import LEARNER
from common.process import open_streams, until_told_to_stop
from common.settings import Settings
from common.streams import Streams
from common.templates import load_templates
from common.weights import WeightStore
from learner.checkpoint import Checkpoint, CheckpointStore
from learner.heartbeat import Heartbeat
from learner.metrics_file import MetricsFile
from learner.prompts import open_prompts

log = structlog.get_logger()

STOPPED: Final = 143
"""Exit code after SIGTERM, as shells count it: the run is not finished, and a supervisor may start it again."""


def run(settings: Settings) -> None:
    """Train until max_steps or the end of the prompts; SIGTERM saves and exits with STOPPED. Raises SparkError."""
    os.environ.setdefault("OMP_NUM_THREADS", str(settings.learner.torch_threads))  # read when torch is imported
    prompts = open_prompts(settings.prompts, settings.run.python_path, settings.run.seed)
    templates = load_templates(settings.templates.path)
    with until_told_to_stop() as stopping:
        streams = open_streams(settings, owner=True)
        checkpoints = CheckpointStore(settings.run.directory / "checkpoints", settings.learner.checkpoints_kept)
        epoch, token = _take_over(streams, checkpoints)
        saved = checkpoints.newest()
        fingerprint = prompts.fingerprint()
        cursor = _reconcile(streams, token, saved, fingerprint)
        consumer = _adopt(streams, epoch)

        import torch

        from learner.commit import Committer
        from learner.engine import TorchEngine
        from learner.intake import Intake
        from learner.issuer import Issuer
        from learner.loop import run as train
        from learner.publisher import Publisher

        torch.set_num_threads(settings.learner.torch_threads)
        torch.manual_seed(settings.run.seed)
        engine = TorchEngine(settings)
        if saved is not None:
            engine.read_checkpoint(saved.folder, saved.state.policy_version)
        guard = _guard(checkpoints, epoch)
        issuer = Issuer(streams, token, prompts, templates, settings, cursor)
        ended_uids = set(saved.state.ended_uids) if saved else set()
        heartbeat = Heartbeat(streams, epoch)
        intake = Intake(
            streams,
            issuer,
            settings,
            consumer=consumer,
            ended_uids=ended_uids,
            guard=guard,
            stopping=stopping,
            beat=heartbeat.beat,
        )
        publisher = Publisher(streams, WeightStore(settings.weights_dir), epoch, settings.weights.keep)
        committer = Committer(
            streams,
            checkpoints,
            intake,
            issuer,
            epoch=epoch,
            token=token,
            every=settings.learner.checkpoint_every,
            guard=guard,
            saved=saved,
            prompts=fingerprint,
        )
        log.info("learner.started", epoch=epoch, policy_version=engine.policy_version, cursor=cursor)
        with MetricsFile(settings.run.directory / "metrics.jsonl", engine.policy_version) as metrics:
            train(engine, intake, publisher, committer, settings, metrics.record)
        heartbeat.stop()
        if stopping():
            log.info("learner.stopped", policy_version=engine.policy_version)
            sys.exit(STOPPED)
        engine.export(settings.run.directory / "export")
        log.info("learner.done", policy_version=engine.policy_version)


def _take_over(streams: Streams, checkpoints: CheckpointStore) -> tuple[int, str]:
    """A new epoch, and the fence with it: from now on no older learner can issue or acknowledge."""
    epoch = checkpoints.new_epoch()
    token = f"{epoch}:{secrets.token_hex(8)}"
    if not streams.take_fence(epoch, token):
        raise Fenced(
            f"epoch {epoch} is not the highest on the server: another learner of this run is alive elsewhere, or the "
            "server remembers an earlier run of this name; choose another run.name, or delete the keys of the old one"
        )
    return epoch, token


def _reconcile(streams: Streams, token: str, saved: Checkpoint | None, fingerprint: str) -> int:
    """Acknowledge what the checkpoint says has ended; returns the dataset cursor.

    Raises SettingsError when the prompts are others than those of the checkpoint, ServerError when the server has
    forgotten a run that the checkpoint knows.
    """
    cursor = streams.cursor()
    if saved is None:
        return cursor or 0
    if saved.state.prompts != fingerprint:
        raise SettingsError(
            f"the prompts are not those of checkpoint {saved.folder.name}: prompts, their order and run.seed are fixed "
            "for a run, since each is trained once; restore them, or start under a new run.name"
        )
    if cursor is None or cursor < saved.state.cursor:
        raise ServerError(
            f"checkpoint {saved.folder.name} has issued {saved.state.cursor} prompts, but the server knows of "
            f"{cursor or 0}: it is not the server of this run, or it lost its data; connect to the right one, "
            "or start under a new run.name"
        )
    acked = streams.settle(token, LEARNER, saved.state.policy_version, saved.state.endings)
    log.info("learner.resumes", checkpoint=saved.folder.name, acked=acked)
    return cursor


def _adopt(streams: Streams, epoch: int) -> Consumer:
    """This epoch's consumer, with everything that older epochs had read and not acknowledged."""
    sources = [streams.keys.rollouts("judge"), streams.keys.rollouts("policy")]
    consumer = Consumer(streams, LEARNER, f"learner-e{epoch:06d}", sources)
    if moved := consumer.adopt():
        log.info("learner.adopted", entries=moved)
    return consumer


def _guard(checkpoints: CheckpointStore, epoch: int) -> Callable[[], None]:
    def guard() -> None:
        """Raises Fenced as soon as a newer learner has started."""
        if (highest := checkpoints.highest_epoch()) > epoch:
            raise Fenced(f"a learner of epoch {highest} has taken over from epoch {epoch}; this one stops")

    return guard
