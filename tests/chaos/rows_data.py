"""Rows 13-17, 19, 21: slow readers, poison, repeats, clocks, broken weights, and verifiers that never end."""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any, Final

import redis

from chaos.faults import deliver_twice
from chaos.poison import DAMAGES
from chaos.rig import Rig
from chaos.rows import CannotRun, Done, check, row, stop_and_audit
from common.codec import MAX_MESSAGE_BYTES
from common.keys import RECYCLER
from common.messages import WeightFile, WeightManifest
from common.server import connect

HOUR_S: Final = 3600
FAKETIME: Final = ("usr/lib/*/faketime/libfaketime.so.1", "usr/lib*/faketime/libfaketime.so.1")


@row(13, "recycler twenty times slower", "the learner goes on; memory stays below its limit")
def slow_recycler(folder: Path) -> Done:
    options = {"maxmemory": "24mb"}
    with Rig(folder, extra={"recycler": ["--slow", "20"]}, server_options=options) as rig:
        rig.start()
        highest, behind, learner = 0.0, 0, rig.settings.learner
        for _ in range(12):
            rig.steps(10)
            highest = max(highest, rig.streams.memory_share())
            behind = max(behind, rig.streams.backlog(rig.streams.keys.rollouts("policy"), RECYCLER).total)
        check(behind > learner.groups_per_step, f"the recycler was never behind: {behind}")
        check(highest < 1.0, f"{highest:.0%} of the memory was in use")
        note = f"up to {behind} groups behind, {highest:.0%} of the memory"
        return Done(times=1, note=note, items=stop_and_audit(rig).items)


@row(14, "poison on every stream", "each ends in the dead letters with a reason; nobody dies of it", ci=True)
def poison(folder: Path) -> Done:
    extra = {name: ["--poison", "9"] for name in ("learner", "recycler", "actor-0", "actor-1")}
    # on a busy machine more die between two batches than a run puts up with
    with Rig(folder, "learner.refill=40", extra=extra) as rig:
        rig.start()
        rig.until(lambda: len(_dead_by_stream(rig)) == 4, "dead letters of four streams")
        rig.until(lambda: sum(_dead_by_stream(rig).values()) > 4 * len(DAMAGES), "each kind of poison")
        _refuse_a_giant(rig)
        rig.steps(2)
        letters = rig.streams.dead_letters(count=10_000)
        check(all(letter.reason for letter in letters), "a dead letter has no reason")
        reasons = {letter.reason.partition(":")[0] for letter in letters}
        check(not rig.exits, f"members ended: {rig.exits}")
        note = f"{len(letters)} dead letters, {len(reasons)} kinds of reason"
        return Done(times=len(letters), note=note, items=stop_and_audit(rig).items)


@row(15, "duplicate delivery: pending entries change hands", "no effect: 0 lost, 0 twice")
def delivered_again(folder: Path) -> Done:
    draw, times = random.Random(15), 100
    with Rig(folder) as rig:
        rig.start()
        rig.steps(2)
        for _ in range(times):
            for delay_s, give_back in deliver_twice(rig, draw):
                rig.rest(min(delay_s, 0.05))
                give_back()
        rig.steps(3)
        return Done(times=times, items=stop_and_audit(rig).items)


@row(16, "clocks of the actors an hour ahead and behind", "nothing decides by them")
def clocks_of_members(folder: Path) -> Done:
    extra = {"actor-0": ["--clock-offset", str(HOUR_S)], "actor-1": ["--clock-offset", str(-HOUR_S)]}
    with Rig(folder, extra=extra) as rig:
        rig.start()
        rig.steps(8)
        rig.members["actor-0"].kill()
        rig.steps(4)
        dropped = rig.streams.ledger()["dropped_stale:policy"]
        check(dropped == 0, f"{dropped} prompts were dropped as too stale")
        return Done(times=2, items=stop_and_audit(rig).items)


@row(16, "server's clock set back by an hour: ids are ahead of it", "order and deliveries are as ever", ci=True)
def clock_of_the_server(folder: Path) -> Done:
    with Rig(folder) as rig:
        ahead = f"{int((time.time() + HOUR_S) * 1000)}-0"
        rig.streams.create_groups()
        for stream in (*rig.streams.keys.groups(), rig.streams.keys.events):
            rig.client.xadd(stream, {"uid": "", "m": b""})
            rig.client.xtrim(stream, maxlen=0)
            rig.client.execute_command("XSETID", stream, ahead)
        rig.start()
        rig.steps(6)
        rig.members["learner"].kill()
        rig.members["actor-0"].kill()
        rig.steps(4)
        note = "ids an hour ahead, as after such a step; the clock itself belongs to the machine"
        return Done(times=1, note=note, items=stop_and_audit(rig).items)


@row(16, "server's clock steps an hour ahead and back, under way", "the run goes on; 0 lost, 0 twice")
def stepping_clock_of_the_server(folder: Path) -> Done:
    library = next((path for place in FAKETIME for path in Path("/").glob(place)), None)
    if library is None:
        raise CannotRun("libfaketime is not installed, and the clock itself belongs to the machine")
    folder.mkdir(parents=True, exist_ok=True)
    offset = folder / "offset"
    offset.write_text("+0\n", encoding="utf-8")
    environment = {
        "LD_PRELOAD": str(library),
        "FAKETIME_TIMESTAMP_FILE": str(offset),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    with Rig(folder, server_environment=environment) as rig:
        rig.start()
        rig.steps(3)
        for seconds in (HOUR_S, 0, -HOUR_S, 0):
            offset.write_text(f"{seconds:+d}\n", encoding="utf-8")
            rig.until(lambda seconds=seconds: abs(_ahead_s(rig) - seconds) < 60, "the server's clock to step")
            rig.members["actor-0"].kill()
            rig.steps(4)
            rig.members["learner"].kill()
            rig.steps(4)
        return Done(times=4, items=stop_and_audit(rig).items)


@row(17, "weights truncated, flipped, deleted, or announced before they are there", "the old ones stay", ci=True)
def broken_weights(folder: Path) -> Done:
    damages = (_truncate, _flip, _delete)
    with Rig(folder) as rig:
        rig.start()
        for damage in damages * 3:
            rig.steps(2)
            newest = max(rig.settings.weights_dir.glob("e*-v*[0-9]"), key=lambda path: path.name)
            damage(newest)
        epoch, version = rig.version()
        missing = (WeightFile(name="weights.json", sha256="0" * 64, size=1),)
        uri = str(rig.settings.weights_dir / "not-there-yet")
        early = WeightManifest(epoch=epoch, version=version + 1, parent=version, uri=uri, files=missing)
        rig.streams.publish(early)
        rig.steps(4)
        failures = sum(int(beat.get("apply_failures", 0)) for beat in rig.streams.members().values() if beat)
        note = f"actors refused weights {failures} times" if failures else ""
        return Done(times=3 * len(damages) + 1, note=note, items=stop_and_audit(rig).items)


@row(19, "an actor that can never take new weights", "it pauses at the bound; nothing older is trained")
def stuck_actor(folder: Path) -> Done:
    with Rig(folder, extra={"actor-1": ["--refuse-from", "3"]}) as rig:
        rig.start()
        rig.steps(12)
        rig.until(lambda: _state(rig, "actor-1") in ("waiting for weights", "stalled"), "actor-1 to pause")
        lines = (rig.directory.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        oldest = max(json.loads(line)["staleness_before"] for line in lines)
        bound = rig.settings.staleness.max_staleness
        check(oldest <= bound, f"groups {oldest} steps old were trained, the bound is {bound}")
        return Done(times=1, note=f"it paused; oldest group trained: {oldest:.0f}", items=stop_and_audit(rig).items)


@row(21, "verifier bombs", "killed at the time limit; never a reward of 0; other groups go on")
def verifier_bombs(folder: Path) -> Done:
    settings = (
        'prompts.verifier="python:chaos.verifiers:patient"',
        "prompts.args={size=64, bombs=16}",
        "verifier.timeout_s=0.3",
        "verifier.workers=2",
        "redis.max_deliveries=2",
        "redis.lease_s=20",
    )
    with Rig(folder, *settings, actors=1, extra={"actor-0": ["--pool"]}) as rig:
        rig.start()
        rig.until(lambda: len(rig.streams.dead_letters()) >= 2, "two bombs in the dead letters")
        reasons = [letter.reason for letter in rig.streams.dead_letters()]
        check(all("timeout" in reason for reason in reasons), f"dead for another reason: {reasons}")
        rig.steps(2)
        return Done(times=len(reasons), note=reasons[0], items=stop_and_audit(rig).items)


def _ahead_s(rig: Rig) -> float:
    now: Any = rig.client.time()
    return float(now[0]) - time.time()


def _dead_by_stream(rig: Rig) -> Counter[str]:
    return Counter(letter.stream for letter in rig.streams.dead_letters(count=10_000))


def _refuse_a_giant(rig: Rig) -> None:
    """64 MiB by a foreign hand: the server does not even receive it."""
    stream = rig.streams.keys.rollouts("policy")
    before = rig.client.xlen(stream)
    client = connect(rig.server.url)
    try:
        client.xadd(stream, {"uid": "0" * 32, "m": bytes(64 * 2**20)})
    except redis.RedisError:
        check(MAX_MESSAGE_BYTES < 64 * 2**20, "the limit on messages is above it")
    else:
        raise AssertionError(f"the server took an entry of 64 MiB; {before} entries before")
    finally:
        client.close()


def _state(rig: Rig, member: str) -> str:
    beat: Any = rig.streams.members().get(member) or {}
    return str(beat.get("state", ""))


def _truncate(folder: Path) -> None:
    path = folder / "weights.json"
    path.write_bytes(path.read_bytes()[:-3])


def _flip(folder: Path) -> None:
    path = folder / "weights.json"
    data = bytearray(path.read_bytes())
    data[-4] ^= 1
    path.write_bytes(bytes(data))


def _delete(folder: Path) -> None:
    (folder / "weights.json").unlink(missing_ok=True)
