"""One process of a chaos run: ``python -m chaos.member ROLE CONFIG --name NAME``.

It runs the entry point of the product. Exchanged before are the modules of the two engines, and torch, which takes
seconds to load and which a toy does not need. The other options are what a row wants to go wrong. Each role imports
what it needs and no more: hundreds of members are started.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from cli.rundir import RunDirectory
from common.errors import SparkError
from common.settings import Settings
from common.settings_sources import load_settings
from common.weights_source import WeightSource

PR_SET_PDEATHSIG: Final = 1


def main() -> None:
    options = _arguments()
    _end_with_parent()
    _replace("torch", set_num_threads=lambda _: None, manual_seed=lambda _: None)
    if options.poison:
        from chaos import poison

        poison.plant(options.poison)
    if options.die_at:
        from chaos.crash import CrashPoint, plant

        plant(CrashPoint.parse(options.die_at))
    try:
        settings = load_settings(options.config, options.set)
        RunDirectory(settings).log_to(options.name, role=options.role)
        ROLES[options.role](settings, options)
    except SparkError as error:
        print(f"spark: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def run_actor(settings: Settings, options: argparse.Namespace) -> None:
    """With verdicts in this process, unless asked for the pool."""
    from actors.__main__ import run as act
    from actors.actor import Actor
    from actors.verifiers import pool
    from chaos.engines import ToyEngine

    def engine(*_: Any, **__: Any) -> ToyEngine:
        return ToyEngine(options.steps, options.refuse_from)

    _replace("actors.adapter_source", open_source=WeightSource.of)  # the real one merges adapters, with torch
    _replace("actors.transformers_engine", load_model=lambda _: (None, None), TransformersEngine=engine)
    if not options.pool:
        pool.VerifierPool = lambda **_: pool.InlineVerifier()
    Actor.__init__.__kwdefaults__["wall_clock"] = lambda: time.time() + options.clock_offset
    Actor.tick = _then(Actor.tick, lambda _: time.sleep(options.pause_s))
    act(settings, options.name)


def run_recycler(settings: Settings, options: argparse.Namespace) -> None:
    """``--slow 20``: each round takes twenty times as long."""
    from recycler.__main__ import run as recycle
    from recycler.loop import RecyclerLoop

    RecyclerLoop.tick = _then(RecyclerLoop.tick, lambda seconds: time.sleep((options.slow - 1.0) * seconds))
    recycle(settings)


def run_learner(settings: Settings, options: argparse.Namespace) -> None:
    """Its engine is told the uids of every batch."""
    from chaos.engines import ToyTrainer
    from learner.__main__ import run as learn
    from learner.intake import Intake

    engine, take = ToyTrainer(), Intake.take

    def told(*args: Any) -> Any:
        groups = take(*args)
        engine.batch = tuple(group.uid for group in groups or ())
        return groups

    Intake.take = told
    _replace("learner.torch_engine", TorchEngine=lambda _: engine)
    learn(settings)


def _then(method: Callable[[Any], None], after: Callable[[float], None]) -> Callable[[Any], None]:
    """The method, and then something that is told how many seconds it took."""

    def wrapped(self: Any) -> None:
        started = time.monotonic()
        method(self)
        after(time.monotonic() - started)

    return wrapped


def _replace(module: str, **contents: Any) -> None:
    fake = ModuleType(module)
    vars(fake).update(contents)
    sys.modules[module] = fake


def _end_with_parent() -> None:
    """No process of a chaos run outlives it, however it ends."""
    parent = os.getppid()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(1)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="chaos.member")
    parser.add_argument("role", choices=sorted(ROLES))
    parser.add_argument("config", type=Path)
    parser.add_argument("--name", required=True)
    parser.add_argument("--set", action="append", default=[], help="section.key=value")
    parser.add_argument("--die-at", default="", help="CLASS.METHOD:before|after:N")
    parser.add_argument("--steps", type=int, default=3, help="decoding steps of a group")
    parser.add_argument("--pause-s", type=float, default=0.0, help="an actor's rest after each round")
    parser.add_argument("--refuse-from", type=int, default=None, help="weights from this version on do not load")
    parser.add_argument("--clock-offset", type=float, default=0.0, help="seconds the actor's wall clock is ahead")
    parser.add_argument("--slow", type=float, default=1.0, help="factor by which the recycler's rounds are longer")
    parser.add_argument("--poison", type=int, default=0, help="every N-th message that it sends is damaged")
    parser.add_argument("--pool", action="store_true", help="verify in processes of their own, with a time limit")
    return parser.parse_args()


ROLES: Final[dict[str, Callable[[Settings, argparse.Namespace], None]]] = {
    "actor": run_actor,
    "learner": run_learner,
    "recycler": run_recycler,
}

if __name__ == "__main__":
    main()
