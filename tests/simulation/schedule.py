"""One schedule: a seed makes a scenario, faults and an order of events; what comes out is what was wrong."""

from __future__ import annotations

import random
import shutil
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from simulation.checks import wrong
from simulation.faults import Faults
from simulation.members import BODIES
from simulation.patches import MACHINE
from simulation.scenario import Scenario
from simulation.toys import Weights, read_checkpoint
from simulation.wire import Chaos, Peace
from simulation.world import World

_references: dict[Scenario, Weights] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    seed: int
    scenario: Scenario
    violations: tuple[str, ...]
    faults: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    items: int = 0
    commands: int = 0
    virtual_s: float = 0.0


def run(seed: int, folder: Path, trace: list[str] | None = None) -> Result:
    """On an empty folder, which is left empty. Needs ``on_a_virtual_machine``."""
    draw = random.Random(seed)
    scenario = Scenario.draw(draw)
    reference = _reference(scenario, folder) if scenario.exact else None
    faults = Faults(draw)
    world = _world(scenario, draw.getrandbits(32), folder, faults, trace)
    if "fill_server" in faults.struck:  # while nothing can be issued, batches are taken as they are
        reference = None
    violations = [*world.violations, *(_wrong(world, reference) if world.finished else ())]
    ledger = world.observer().ledger()
    shutil.rmtree(folder)
    return Result(
        seed=seed,
        scenario=scenario,
        violations=tuple(violations),
        faults=faults.struck,
        outcomes=world.outcomes,
        items=ledger["issued:policy"] + ledger["issued:judge"],
        commands=world.commands,
        virtual_s=world.scheduler.now,
    )


def _wrong(world: World, reference: Weights | None) -> list[str]:
    """What is wrong. A check that crashes is: it names the seed, and does not end a campaign of a hundred thousand."""
    found: list[str] = []
    try:
        found.extend(wrong(world, reference))
    except Exception:  # noqa: BLE001 - whatever it is, it is told
        found.append(f"the checks crashed: {traceback.format_exc()}")
    return found


def _world(scenario: Scenario, seed: int, folder: Path, chaos: Chaos, trace: list[str] | None) -> World:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    world = World(scenario, seed, folder, chaos, BODIES, trace)
    MACHINE.fsync = world.fsync
    world.run()
    return world


def _reference(disturbed: Scenario, folder: Path) -> Weights:
    """Final weights when nothing goes wrong. They depend on the batches alone."""
    scenario = Scenario(steps=disturbed.steps, groups=disturbed.groups)
    if scenario not in _references:
        world = _world(scenario, 0, folder, Peace(), None)
        problems = [*world.violations, *wrong(world, None)]
        if problems:
            raise AssertionError(f"{scenario} fails by itself: {problems}")
        _references[scenario], _ = read_checkpoint(world.checkpoints().newest().folder)
    return _references[scenario]
