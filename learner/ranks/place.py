"""Which rank this process is (pure)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from common.errors import SettingsError

NEEDED: Final = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """``local_rank``: the number of this process on its host, which is also that of its GPU."""

    rank: int
    world_size: int
    local_rank: int
    address: str = "127.0.0.1"
    port: int = 0
    """Where rank 0's store listens; 0 where rank 0 is free to choose, since it starts the others itself."""
    attempt: str = "0"
    """Which start of the same job this is: what an earlier one left in a launcher's store is not read."""

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    @property
    def launched(self) -> bool:
        """A launcher has started this process and the other ranks."""
        return self.port > 0

    def environment(self, rank: int) -> dict[str, str]:
        """What ``place_of`` reads, for another rank on this host."""
        port = str(self.port)
        return {
            "RANK": str(rank),
            "WORLD_SIZE": str(self.world_size),
            "LOCAL_RANK": str(rank),
            "MASTER_ADDR": self.address,
            "MASTER_PORT": port,
        }


def place_of(environment: Mapping[str, str], processes: int) -> Place:
    """The place that a launcher has given this process; without one it is rank 0 of ``processes``.

    Raises SettingsError when a launcher has set some of the variables but not all, or they make no sense.
    """
    if not {"RANK", "WORLD_SIZE"} & environment.keys():
        return Place(rank=0, world_size=processes, local_rank=0)
    if missing := [name for name in NEEDED if not environment.get(name)]:
        raise SettingsError(
            f"the launcher of this process has set no {' and no '.join(missing)}; set {', '.join(NEEDED)} for every "
            "process, or none of them, and the learner starts its ranks itself"
        )
    numbers = {name: _number(name, environment[name]) for name in NEEDED if name != "MASTER_ADDR"}
    rank, world_size = numbers["RANK"], numbers["WORLD_SIZE"]
    if rank >= world_size:
        raise SettingsError(f"RANK={rank} is not below WORLD_SIZE={world_size}; ranks count from 0")
    if not 0 < numbers["MASTER_PORT"] < 65536:
        raise SettingsError(f"MASTER_PORT={numbers['MASTER_PORT']} is no port; set one that is free on rank 0's host")
    return Place(
        rank=rank,
        world_size=world_size,
        local_rank=numbers["LOCAL_RANK"],
        address=environment["MASTER_ADDR"],
        port=numbers["MASTER_PORT"],
        attempt=environment.get("TORCHELASTIC_RESTART_COUNT", "0"),
    )


def _number(name: str, value: str) -> int:
    if not value.isascii() or not value.isdigit():
        raise SettingsError(f"{name}={value!r} is no number; launchers set it to a count from 0")
    return int(value)
