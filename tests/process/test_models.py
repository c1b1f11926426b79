"""Models of several families, end to end: one run, an actor of each engine, a learner that trains what both sample."""

from __future__ import annotations

import signal
import subprocess
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from run_harness import command, environment, spark, steps_of, until
from tiny_models import FAMILIES, save_tiny_model
from transformers import AutoModelForCausalLM

from common.server import Client, connect
from common.streams import Streams

RUN = """
preset = "grpo"
[run]
name = "families"
[model]
path = "model"
[prompts]
source = "prompts.jsonl"
verifier = "python:reward:even"
[sampling]
group_size = 4
max_new_tokens = 12
[actor]
count = 1
groups_in_flight = 4
[vllm]
max_model_len = 64
kv_cache_gib = 0.05
[learner]
groups_per_step = 4
checkpoint_every = 2
max_steps = 100000
lr = 1e-3
"""
REWARD = """
def even(completion, answer):
    return float(len(completion) % 2 == 0)
"""


class Members:
    """`spark up` with a transformers actor, and a vLLM actor that joins it as one on another machine would."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder, self.run = folder, folder / "runs" / "families"
        self._environment = {**environment(), "SPARK_REDIS__URL": url, "VLLM_LOGGING_LEVEL": "WARNING"}
        self.up = self._start("up", "run.toml")
        self.vllm = self._start(
            "actor", "run.toml", "--name", "actor-vllm", "--set", "actor.engine=vllm", "--set", "run.no_progress_s=600"
        )

    def _start(self, *arguments: str) -> subprocess.Popen[bytes]:
        with (self.folder / f"{arguments[0]}.log").open("wb") as output:
            return subprocess.Popen(
                command(*arguments), cwd=self.folder, env=self._environment, stdout=output, stderr=output
            )

    def output(self) -> str:
        return "\n".join(path.read_text(encoding="utf-8") for path in sorted(self.folder.glob("*.log")))

    def stop(self) -> None:
        """Both, and wait for them."""
        for process in (self.vllm, self.up):
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
                process.wait(timeout=60)


@pytest.fixture
def client(server_url: str) -> Iterator[Client]:
    client = connect(server_url)
    client.flushall()
    yield client
    client.close()


@pytest.fixture(params=FAMILIES)
def members(request: pytest.FixtureRequest, client: Client, server_url: str, tmp_path: Path) -> Iterator[Members]:
    save_tiny_model(request.param, tmp_path / "model")
    (tmp_path / "run.toml").write_text(RUN, encoding="utf-8")
    (tmp_path / "reward.py").write_text(textwrap.dedent(REWARD), encoding="utf-8")
    prompts = [f'{{"prompt": "w{3 + i % 20} w{3 + i % 7} w{3 + i % 3}", "answer": "w3"}}\n' for i in range(40)]
    (tmp_path / "prompts.jsonl").write_text("".join(prompts), encoding="utf-8")
    running = Members(tmp_path, server_url)
    yield running
    running.stop()


def test_both_engines_sample_for_one_learner(members: Members, client: Client, server_url: str) -> None:
    streams = Streams(client, "families", give_up_s=5.0, seed=0)

    def shipped() -> bool:
        assert members.up.poll() is None, members.output()
        assert members.vllm.poll() is None, members.output()
        beats = streams.members()
        followed = [beats.get(name) or {} for name in ("actor-0", "actor-vllm")]
        return all(beat.get("groups", 0) >= 4 and beat.get("policy_version", -1) >= 3 for beat in followed)

    until(shipped, "groups of both engines under weights of version 3 or later")
    members.stop()
    assert members.up.returncode == 0, members.output()
    assert members.vllm.returncode == 0, members.output()
    assert steps_of(members.run)[-1] >= 3
    audited = spark("audit", str(members.run), cwd=members.folder, SPARK_REDIS__URL=server_url)
    assert audited.returncode == 0, audited.stdout + audited.stderr
    before, after = (AutoModelForCausalLM.from_pretrained(p) for p in (members.folder / "model", _trained(members.run)))
    moved = [n for n, p in after.named_parameters() if not p.equal(before.get_parameter(n))]
    assert len(moved) > len(list(after.named_parameters())) / 2


def _trained(run: Path) -> Path:
    result = spark("export", str(run), "--to", str(run / "model"), cwd=run)
    assert result.returncode == 0, result.stderr
    return run / "model"
