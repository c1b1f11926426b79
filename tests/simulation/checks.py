"""What must hold after a schedule: the data say what happened, and the code under test must say the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from cli.audit import audit
from simulation.toys import Weights, read_checkpoint
from simulation.world import World


def wrong(world: World, reference: Weights | None) -> Iterator[str]:
    """Violations of a run that has ended. ``reference``: the weights of an undisturbed run that must be the same."""
    saved = world.checkpoints().newest()
    if saved is None:
        yield "there is no checkpoint"
        return
    weights, trained = read_checkpoint(saved.folder)
    if weights.version != world.scenario.steps:
        yield f"the run is over, but its newest checkpoint is at step {weights.version}"
    yield from (f"{uid} was trained {times} times" for uid, times in Counter(trained).items() if times > 1)
    told = {uid for uid, (outcome, _) in saved.state.ended.items() if outcome == "trained"}
    yield from (f"{uid} counts as trained, and is not in the weights" for uid in sorted(told - set(trained)))
    yield from (f"{uid} is in the weights, and does not count as trained" for uid in sorted(set(trained) - told))
    if reference is not None and weights != reference:
        yield f"the weights are {weights.chain}, those of an undisturbed run {reference.chain}"
    if world.flushed and world.observer().generation() is None:
        return  # wiped when the run was over, before anybody could notice: nothing is left to count
    yield from _of_the_server(world)


def _of_the_server(world: World) -> Iterator[str]:
    streams, settings = world.observer(), world.settings
    ledger = streams.conservation()
    yield from (
        f"the {kind} ledger does not balance: {counts}"
        for kind, counts in ledger.kinds.items()
        if not ledger.balances(kind)
    )
    cursor = streams.cursor() or 0
    if ledger.kinds["policy"]["issued"] != cursor:
        yield f"{cursor} prompts were issued, {ledger.kinds['policy']['issued']} of them are counted"
    found = audit(streams, settings.run.directory / "events", world.checkpoints())
    for violation in found.violations:
        yield f"audit: {violation.what} {violation.kind} {violation.uid} {violation.detail}"
