"""How the ranks of a job come together: a store in rank 0, a process group for the data, one for the commands."""

from __future__ import annotations

import os
import sys
from datetime import timedelta
from typing import Final, Literal

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore

from learner.ranks.children import Job
from learner.ranks.place import Place

Backend = Literal["gloo", "nccl"]

DATA_TIMEOUT: Final = timedelta(minutes=60)
"""Of one collective call inside a command, in which rank 0 may write a bucket of weights to a slow disk."""
COMMAND_TIMEOUT: Final = timedelta(days=3650)
"""Rank 0 may wait for groups as long as it likes; the vigil ends a wait for a rank 0 that is gone."""
STORE_TIMEOUT: Final = timedelta(seconds=60)
"""Of one answer of the store."""
REACH_TIMEOUT: Final = timedelta(minutes=15)
"""Until rank 0's store is up: launchers start hosts one after another."""


def open_store(job: Job) -> Store:
    """For rank 0: where all ranks find each other."""
    if job.listener is None:
        return reach(job.place)
    return TCPStore(
        job.place.address,
        job.place.port,
        is_master=True,
        timeout=STORE_TIMEOUT,
        wait_for_workers=False,
        master_listen_fd=job.listener.detach(),
    )


def reach(place: Place) -> Store:
    """The store of a job that a launcher has started: served by rank 0, or by the launcher's own agent (torchrun)."""
    by_agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    return _connect(place, is_master=place.is_first and not by_agent)


def another(place: Place) -> Store:
    """A connection of its own to the store, for a thread."""
    return prefixed(_connect(place, is_master=False), place)


def _connect(place: Place, *, is_master: bool) -> Store:
    store = TCPStore(place.address, place.port, is_master=is_master, timeout=REACH_TIMEOUT, wait_for_workers=False)
    store.set_timeout(STORE_TIMEOUT)
    return store


def prefixed(store: Store, place: Place) -> Store:
    return PrefixStore(f"spark/{place.attempt}", store)


def join(store: Store, place: Place, backend: Backend) -> dist.ProcessGroup:
    """Become one of the ranks of the default process group. Returns the control group, in which commands travel."""
    if place.address == "127.0.0.1" and sys.platform == "linux":
        for library in ("GLOO", "NCCL"):
            os.environ.setdefault(f"{library}_SOCKET_IFNAME", "lo")
    own_gpu = torch.device("cuda", place.local_rank) if backend == "nccl" else None
    dist.init_process_group(
        backend,
        store=PrefixStore("group", prefixed(store, place)),
        rank=place.rank,
        world_size=place.world_size,
        timeout=DATA_TIMEOUT,
        device_id=own_gpu,
    )
    control: dist.ProcessGroup = dist.new_group(backend="gloo", timeout=COMMAND_TIMEOUT)
    return control
