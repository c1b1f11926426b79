"""`spark up` with weights that travel as differences, through a shared folder behind a URL."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

from run_harness import Up, processes_of, spark, steps_of, until

STEPS = 10


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def events(run: Path, member: str, name: str) -> list[str]:
    return [line for line in (run / "logs" / f"{member}.log").read_text().splitlines() if f'"{name}"' in line]


def test_a_run_on_differences_by_url_trains_survives_a_kill_and_its_audit_is_clean(
    start: Callable[..., Up], tmp_path: Path
) -> None:
    shared, cache = tmp_path / "shared", tmp_path / "cache"
    up = start(
        f"learner.max_steps={STEPS}",
        "learner.lr=1e-6",
        "learner.lr_schedule=constant",
        "model.dtype=bfloat16",
        "weights.anchor_every=4",
        f"weights.url=file://{shared}",
        f"weights.cache_dir={cache}",
        "redis.lease_s=4",
    )
    until(lambda: len(steps_of(up.run)) >= 3, "three steps")
    killed = processes_of(up.run)["actor-0"]
    os.kill(killed, signal.SIGKILL)  # its copy stays behind, until the next actor comes
    assert up.wait() == 0, up.output.read_text()

    assert steps_of(up.run) == list(range(1, STEPS + 1))
    assert json.loads((up.run / "summary.json").read_text(encoding="utf-8"))["ledger"]["balanced"] is True
    audited = spark("audit", str(up.run), cwd=tmp_path)
    assert audited.returncode == 0, audited.stdout + audited.stderr

    published = {int(path.name.rpartition("v")[2]): size(path) for path in (shared / "demo").iterdir()}
    assert {8, 9, 10} <= published.keys()  # the chain of the newest, back to its anchor
    whole = [version for version, bytes_ in published.items() if bytes_ > published[8] / 4]
    assert sorted(whole) == [version for version in sorted(published) if version % 4 == 0]
    assert [path.name for path in (up.run / "weights").iterdir()] == ["e000001-v00000010.whole"]
    for member in ("actor-0", "actor-1"):
        assert events(up.run, member, "policy.apply_failed") == []
    assert list(cache.iterdir()) == []


def test_a_run_that_trains_an_adapter_publishes_it_alone_and_resumes(start: Callable[..., Up], tmp_path: Path) -> None:
    lora = ("lora.rank=8", "lora.alpha=16", "learner.lr=3e-3", f"weights.cache_dir={tmp_path / 'cache'}")
    up = start("learner.max_steps=4", *lora)
    assert up.wait() == 0, up.output.read_text()
    again = start("learner.max_steps=8", *lora)
    assert again.wait() == 0, again.output.read_text()

    assert steps_of(up.run) == list(range(1, 9))
    audited = spark("audit", str(up.run), cwd=tmp_path)
    assert audited.returncode == 0, audited.stdout + audited.stderr
    newest = max((up.run / "weights").glob("e*-v*"))
    (exported,) = (up.run / "export").glob("*.safetensors")
    assert size(newest) < exported.stat().st_size / 3
    assert (up.run / "export" / "adapter" / "adapter_config.json").is_file()
    for member in ("actor-0", "actor-1"):
        assert events(up.run, member, "policy.apply_failed") == []
    assert list((tmp_path / "cache").iterdir()) == []
