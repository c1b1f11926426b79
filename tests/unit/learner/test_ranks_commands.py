"""Commands on the wire: what comes out is what went in, and nothing else is taken."""

from __future__ import annotations

from typing import Any

import msgpack
import numpy as np
import pytest

from common.errors import InvalidMessage
from common.settings import Redis, Settings
from learner.packing import pack
from learner.ranks.commands import (
    Command,
    Export,
    OldLogprobs,
    ReadCheckpoint,
    Step,
    Stop,
    Use,
    WriteCheckpoint,
    WriteWeights,
    decode,
    encode,
)


@pytest.fixture
def step(make_sample) -> Step:
    rng = np.random.default_rng(0)
    samples = [make_sample(rng, prompt=3, tokens=t, objective=o) for t, o in ((4, "solve"), (1, "pairwise"))]
    return Step(microbatches=tuple(pack(samples, 6)), old=(np.array([-1.0, -2.5], dtype=np.float32),))


def test_a_step_arrives_as_it_was_sent(step: Step) -> None:
    found = decode(encode(step))
    assert isinstance(found, Step)
    assert found.old is not None
    assert found.old[0].tolist() == [-1.0, -2.5]
    assert len(found.microbatches) == len(step.microbatches) == 2
    for sent, received in zip(step.microbatches, found.microbatches, strict=True):
        for name, array in sent.arrays().items():
            assert received.arrays()[name].dtype == array.dtype
            assert np.array_equal(received.arrays()[name], array)
            assert received.arrays()[name].flags.writeable  # torch shares its memory


@pytest.mark.parametrize(
    "command",
    [WriteWeights(), WriteCheckpoint(), Export(), ReadCheckpoint(policy_version=7), Stop(exit_code=143)],
)
def test_commands_without_a_batch(command: Command) -> None:
    assert decode(encode(command)) == command


def test_settings_arrive_as_they_were_without_the_server_and_its_password() -> None:
    settings = Settings(learner={"lr": 3e-4}, loss={"solve_weight": 0.5}, redis={"url": "redis://u:secret@host"})
    payload = encode(Use.of(settings))
    assert b"secret" not in payload
    found = decode(payload)
    assert isinstance(found, Use)
    assert found.to_settings() == settings.model_copy(update={"redis": Redis()})


def test_no_old_logprobs_stay_none(step: Step) -> None:
    found = decode(encode(Step(microbatches=(), old=None)))
    assert isinstance(found, Step)
    assert found.old is None
    assert isinstance(decode(encode(OldLogprobs(microbatches=step.microbatches))), OldLogprobs)


def altered(step: Step, change: Any) -> bytes:
    raw = msgpack.unpackb(encode(step))
    change(raw)
    return bytes(msgpack.packb(raw))


def _array(raw: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = raw["microbatches"][0]["token_ids_T"]
    return found


@pytest.mark.parametrize(
    "change",
    [
        lambda raw: raw.update(kind="Eval"),
        lambda raw: raw.pop("kind"),
        lambda raw: raw.pop("old"),
        lambda raw: raw.update(extra=1),
        lambda raw: raw["microbatches"][0].pop("starts_S1"),
        lambda raw: raw["microbatches"][0].update(extra=1),
        lambda raw: raw["microbatches"].append(5),
        lambda raw: _array(raw).update(dtype="|O"),
        lambda raw: _array(raw).update(dtype="V8"),
        lambda raw: _array(raw).update(shape=[-1]),
        lambda raw: _array(raw).update(shape=[2**40]),
        lambda raw: _array(raw).update(shape=[True]),
        lambda raw: _array(raw).update(data=_array(raw)["data"][:-1]),
        lambda raw: raw.update(old=[1.0]),
    ],
)
def test_anything_else_is_refused(step: Step, change: Any) -> None:
    with pytest.raises(InvalidMessage, match="not a command"):
        decode(altered(step, change))


@pytest.mark.parametrize("payload", [b"", b"\xc1", b"\x01", b"\x80", msgpack.packb({"kind": "Stop", "exit_code": -1})])
def test_noise_is_refused(payload: bytes) -> None:
    with pytest.raises(InvalidMessage):
        decode(payload)
