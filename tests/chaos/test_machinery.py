"""The suite's own parts: what they do to a run is what they say."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path

import msgpack
import pytest
import redis

from chaos.crash import CrashPoint
from chaos.engines import ToyTrainer, answers, trained_uids
from chaos.poison import DAMAGES
from chaos.proxy import Proxy
from chaos.rows_kills import ACTOR_POINTS, LEARNER_POINTS, RECYCLER_POINTS
from common.codec import decode, encode
from common.errors import InvalidMessage
from common.messages import ChatMessage, Sampling, Task
from common.server import Client, connect

TASK = Task(
    uid="0" * 32,
    objective="solve",
    messages=(ChatMessage.user("1+1"),),
    question="1+1",
    answer="2",
    verifier="exact",
    sampling=Sampling(n=2, max_new_tokens=4),
)


def test_the_learners_loop_needs_no_torch() -> None:
    script = "import sys, learner.loop, learner.start, actors.actor, recycler.loop; sys.exit('torch' in sys.modules)"
    path = {"PYTHONPATH": ":".join(sys.path)}
    assert subprocess.run([sys.executable, "-c", script], env=path, timeout=60, check=False).returncode == 0


@pytest.mark.parametrize("point", [*LEARNER_POINTS, *ACTOR_POINTS, *RECYCLER_POINTS])
def test_every_crash_point_exists(point: str) -> None:
    assert CrashPoint.parse(point).time > 0


@pytest.mark.parametrize("text", ["Streams.setle:after:1", "Stream.settle:after:1", "Streams.settle:while:1"])
def test_a_misspelt_crash_point_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no crash point"):
        CrashPoint.parse(text)


@pytest.mark.parametrize("name", DAMAGES)
def test_every_poison_is_poison(name: str) -> None:
    """Of a Task, which has no log-probs: those damages give it an unknown field."""
    damaged = DAMAGES[name](msgpack.unpackb(encode(TASK)))
    with pytest.raises(InvalidMessage):
        decode(Task, damaged)


def test_the_toy_remembers_what_it_was_trained_on(tmp_path: Path) -> None:
    trainer = ToyTrainer()
    for uid in ("0" * 32, "1" * 32, "0" * 32):
        trainer.batch = (uid,)
        trainer.step([])
    trainer.write_checkpoint(tmp_path)
    assert trained_uids(tmp_path) == ["0" * 32, "1" * 32, "0" * 32]
    resumed = ToyTrainer()
    resumed.read_checkpoint(tmp_path, 3)
    resumed.batch = trainer.batch = ("2" * 32,)
    resumed.step([])
    trainer.step([])
    assert resumed.chain == trainer.chain


def test_the_toys_answers_depend_on_seed_and_weights_alone() -> None:
    said = [answers("12+30", seed, "chain", 4) for seed in range(40)]
    assert said == [answers("12+30", seed, "chain", 4) for seed in range(40)]
    assert said != [answers("12+30", seed, "other", 4) for seed in range(40)]
    right = [sum(text == "\\boxed{42}" for text in texts) for texts in said]
    assert {0, 4} < set(right), "groups without a contrast, and groups with one"


@pytest.fixture
def proxied(server_url: str, client: Client, tmp_path_factory: pytest.TempPathFactory):
    proxy = Proxy(tmp_path_factory.mktemp("p") / "s", Path(server_url.removeprefix("unix://")))
    proxy.start()
    through = connect(f"{proxy.url}?socket_timeout=0.5")
    yield proxy, through
    through.close()
    proxy.stop()


def test_a_lost_reply_is_that_of_a_command_that_was_carried_out(proxied, client: Client) -> None:
    proxy, through = proxied
    proxy.lose("counter")
    with pytest.raises(redis.ConnectionError):
        through.incr("counter")
    assert (client.get("counter"), proxy.lost) == (b"1", 1)
    assert through.incr("counter") == 2


def test_nothing_passes_a_black_hole_until_it_ends(proxied, client: Client) -> None:
    proxy, through = proxied
    through.ping()
    proxy.hold()
    with pytest.raises(redis.TimeoutError):
        through.incr("counter")
    assert client.get("counter") is None
    proxy.hold(False)
    assert through.incr("other") == 1


def test_cut_connections_are_made_again(proxied) -> None:
    proxy, through = proxied
    before = through.client_id()
    proxy.cut()
    with contextlib.suppress(redis.ConnectionError):  # the cut may fall between a question and its answer
        through.ping()
    assert through.client_id() != before
