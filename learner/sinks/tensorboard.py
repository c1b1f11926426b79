"""TensorBoard: event files in ``runs/NAME/tensorboard``."""

from __future__ import annotations

from typing import Final

from common.settings import Settings
from learner.sinks.base import Metrics

FOLDER: Final = "tensorboard"
FLUSH_S: Final = 10
"""How old what is shown may be."""


class TensorBoard:
    """A resumed run writes another file beside the old ones. Its first entry tells TensorBoard to forget what the old
    ones hold beyond the checkpoint (``purge_step``), so steps that are trained again replace the lost ones."""

    def __init__(self, settings: Settings, policy_version: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(
            str(settings.run.directory / FOLDER), purge_step=policy_version + 1, flush_secs=FLUSH_S
        )

    def record(self, metrics: Metrics) -> None:
        step = metrics["policy_version"]
        for name, value in metrics.items():
            if name != "policy_version":
                self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()
