"""Which engine trains: plain torch in this process, or DeepSpeed on several ranks. Neither is imported before that."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from common.errors import SettingsError
from common.settings import Settings
from learner.engine import Engine
from learner.ranks.children import start_ranks
from learner.ranks.place import Place, place_of

if TYPE_CHECKING:
    from learner.ranks.group import Backend


def own_place(settings: Settings, environment: Mapping[str, str] = os.environ) -> Place:
    """Which rank this process is. Raises SettingsError when its engine cannot run on so many, or not as asked."""
    place, learner = place_of(environment, settings.learner.processes), settings.learner
    if learner.engine == "torch" and place.world_size > 1:
        wanted = f"WORLD_SIZE={place.world_size}" if place.launched else f"learner.processes={place.world_size}"
        raise SettingsError(f"learner.engine='torch' trains in one process, but {wanted}; set it to 'deepspeed'")
    if learner.engine == "deepspeed" and settings.lora.rank > 0:
        raise SettingsError(
            f"lora.rank={settings.lora.rank}, but learner.engine='deepspeed' trains all weights; "
            "set it to 'torch', or lora.rank to 0"
        )
    return place


@contextmanager
def open_engine(settings: Settings) -> Iterator[Engine]:
    """The engine of the learner, for rank 0. With ``deepspeed`` the other ranks live as long as the block.

    Raises SettingsError, and RankFailed when another rank dies.
    """
    place = own_place(settings)
    if settings.learner.engine == "torch":
        _set_up_torch(settings)
        from learner.torch_engine import TorchEngine

        yield TorchEngine(settings)
        return
    job = start_ranks(settings, place)
    _set_up_torch(settings)
    from learner.ranks.leader import leading

    with leading(settings, job, _backend(settings), _open_deepspeed) as engine:
        yield engine


def follow_rank(settings: Settings, place: Place) -> int:
    """What ranks 1 and up do; returns the exit code."""
    _set_up_torch(settings)
    from learner.ranks.follower import follow

    return follow(settings, place, _backend(settings), _open_deepspeed)


def _set_up_torch(settings: Settings) -> None:
    import torch

    torch.set_num_threads(settings.learner.torch_threads)
    torch.manual_seed(settings.run.seed)


def _open_deepspeed(settings: Settings, place: Place) -> Engine:
    from learner.deepspeed_engine import DeepSpeedEngine

    return DeepSpeedEngine(settings, place)


def _backend(settings: Settings) -> Backend:
    from learner.model import device_of

    return "nccl" if device_of(settings).type == "cuda" else "gloo"
