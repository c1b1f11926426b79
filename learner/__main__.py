"""The learner: ``spark learner RUN.toml``. Settings, prompts and server first; torch only when they are right."""

from __future__ import annotations

import os
import sys
from typing import Final

import structlog

from common.process import open_streams, until_told_to_stop
from common.settings import Settings
from common.templates import load_templates
from learner.checkpoint import CheckpointStore
from learner.heartbeat import Heartbeat
from learner.metrics_file import MetricsFile
from learner.prompts import open_prompts
from learner.start import assemble, load, take_over

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
        taken = take_over(streams, checkpoints, prompts, templates, settings)

        import torch

        from learner.loop import run as train
        from learner.torch_engine import TorchEngine

        torch.set_num_threads(settings.learner.torch_threads)
        torch.manual_seed(settings.run.seed)
        engine = TorchEngine(settings)
        load(engine, taken)
        heartbeat = Heartbeat(streams, taken.fence.epoch)
        parts = assemble(
            taken, streams, checkpoints, prompts, templates, settings, stopping=stopping, beat=heartbeat.beat
        )
        log.info("learner.started", epoch=taken.fence.epoch, policy_version=engine.policy_version, cursor=taken.cursor)
        with MetricsFile(settings.run.directory / "metrics.jsonl", engine.policy_version) as metrics:
            train(engine, parts.intake, parts.publisher, parts.committer, settings, metrics.record)
        heartbeat.stop()
        if stopping():
            log.info("learner.stopped", policy_version=engine.policy_version)
            sys.exit(STOPPED)
        engine.export(settings.run.directory / "export")
        log.info("learner.done", policy_version=engine.policy_version)
