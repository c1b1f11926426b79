"""The command channel: rank 0 broadcasts one command at a time to all others, through the control group (gloo)."""

from __future__ import annotations

import numpy as np
import torch
import torch.distributed as dist

from learner.ranks.commands import Command, decode, encode


class Channel:
    """``send`` on rank 0 and ``receive`` on all others are the two ends of one collective call.

    ``receive`` waits as long as rank 0 has nothing to do, for hours if it waits for groups. What ends it besides a
    command: the connection to a rank 0 that died, or this rank's vigil.
    """

    def __init__(self, group: dist.ProcessGroup | None) -> None:
        self._group = group

    def send(self, command: Command) -> None:
        payload = encode(command)
        self._broadcast(torch.tensor([len(payload)]))
        self._broadcast(torch.from_numpy(np.frombuffer(bytearray(payload), dtype=np.uint8)))

    def receive(self) -> Command:
        """Raises InvalidMessage, and RuntimeError when rank 0 is gone."""
        size = self._broadcast(torch.zeros(1, dtype=torch.int64))
        return decode(self._broadcast(torch.empty(int(size), dtype=torch.uint8)).numpy().tobytes())

    def meet(self) -> None:
        """Every rank waits here for all others."""
        dist.barrier(self._group)

    def _broadcast(self, tensor: torch.Tensor) -> torch.Tensor:
        dist.broadcast(tensor, src=0, group=self._group)
        return tensor
