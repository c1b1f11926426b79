"""The wire: what goes in comes out, and nothing else gets in."""

from __future__ import annotations

import dataclasses
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.codec import MAX_MESSAGE_BYTES, decode, encode
from common.errors import InvalidMessage
from common.messages import (
    SCHEMA_VERSION,
    ChatMessage,
    Completion,
    ImagePart,
    Rollout,
    RolloutGroup,
    Sampling,
    SourceRef,
    Task,
    TextPart,
    Verdict,
    WeightFile,
    WeightManifest,
)

text = st.text(max_size=20)  # without surrogates
version = st.integers(min_value=0, max_value=2**40)


def make_task(n: int = 1, **changes: Any) -> Task:
    task = Task(
        uid="u",
        objective="solve",
        messages=(ChatMessage.user("1+1"),),
        question="1+1",
        answer="2",
        verifier="exact",
        sampling=Sampling(n=n, max_new_tokens=4),
    )
    return dataclasses.replace(task, **changes)


def make_group(**changes: Any) -> RolloutGroup:
    completion = Completion(
        token_ids=np.array([5, 6], dtype=np.int32),
        logprobs=np.array([-0.5, -1.0], dtype=np.float32),
        spans=((3, 0),),
        finish_reason="stop",
        text="2",
    )
    rollout = Rollout(completion=completion, verdict=Verdict(status="ok", reward=1.0, verifier="exact@1"))
    group = RolloutGroup(
        task=make_task(),
        prompt_token_ids=np.array([1, 2, 3], dtype=np.int32),
        rollouts=(rollout,),
        actor="a",
        weights_epoch=1,
        generated_at=0.0,
    )
    return dataclasses.replace(group, **changes)


def raw(message: object) -> dict[str, Any]:
    """What is inside, free to be tampered with."""
    found: dict[str, Any] = msgpack.unpackb(encode(message), raw=False)
    return found


def put(values: dict[str, Any], path: str, value: object) -> dict[str, Any]:
    *parents, last = path.split(".")
    table: Any = values
    for parent in parents:
        table = table[int(parent) if parent.isdigit() else parent]
    table[last] = value
    return values


tasks = st.builds(
    Task,
    uid=text,
    objective=st.sampled_from(["solve", "pointwise", "pairwise", "reflect"]),
    messages=st.lists(
        st.builds(
            ChatMessage,
            role=st.sampled_from(["system", "user", "assistant"]),
            content=st.lists(st.builds(TextPart, text=text) | st.builds(ImagePart, sha256=text), max_size=3).map(tuple),
        ),
        max_size=3,
    ).map(tuple),
    question=text,
    answer=text,
    verifier=text,
    sampling=st.builds(
        Sampling, n=st.integers(1, 99), max_new_tokens=st.integers(1, 99), seed=st.integers(0, 2**63 - 1)
    ),
    verifier_args=st.dictionaries(
        text,
        st.recursive(
            st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | text,
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
            max_leaves=5,
        ),
        max_size=3,
    ),
    sources=st.lists(
        st.builds(
            SourceRef,
            uid=text,
            sample=st.integers(0, 9),
            answer_hash=text,
            policy_version=version,
            weights_epoch=st.integers(0, 99),
            correct=st.booleans(),
            verifier=text,
        ),
        max_size=2,
    ).map(tuple),
    positive=st.none() | st.booleans(),
    issued_version=version,
)


@given(tasks)
def test_a_task_comes_out_as_it_went_in(task: Task) -> None:
    assert decode(Task, encode(task)) == task


@given(
    st.lists(st.tuples(st.integers(0, 2**31 - 1), st.floats(-(2.0**100), 0, width=32)), min_size=1, max_size=30),
    st.sets(version, min_size=1, max_size=5),
)
def test_tokens_and_logprobs_come_out_bit_by_bit(tokens: list[tuple[int, float]], versions: set[int]) -> None:
    spans = tuple(zip(sorted(versions)[: len(tokens)], range(len(tokens)), strict=False))
    completion = Completion(
        token_ids=np.array([token for token, _ in tokens], dtype=np.int32),
        logprobs=np.array([logprob for _, logprob in tokens], dtype=np.float32),
        spans=spans,
        finish_reason="length",
        text="…",
    )
    rollout = Rollout(completion=completion, verdict=Verdict(status="error", reward=0.0, verifier="v"))
    found = decode(RolloutGroup, encode(make_group(rollouts=(rollout,)))).rollouts[0].completion
    assert found.token_ids.dtype == np.int32
    assert found.logprobs.dtype == np.float32
    assert found.token_ids.tobytes() == completion.token_ids.tobytes()
    assert found.logprobs.tobytes() == completion.logprobs.tobytes()
    assert found.spans == spans


def test_a_manifest_comes_out_as_it_went_in() -> None:
    files = (WeightFile(name="model.safetensors", sha256="0" * 64, size=2**40),)
    manifest = WeightManifest(epoch=2, version=7, parent=6, uri="/weights/x", files=files)
    assert decode(WeightManifest, encode(manifest)) == manifest


@given(st.binary(max_size=200))
def test_noise_is_refused_with_a_reason_and_nothing_else(noise: bytes) -> None:
    with pytest.raises(InvalidMessage):
        decode(Task, noise)


@given(st.data())
def test_a_message_cut_short_or_with_one_byte_changed_is_refused_or_valid(data: st.DataObject) -> None:
    """It may still be a valid message, but never another error."""
    payload = bytearray(encode(make_group()))
    at = data.draw(st.integers(0, len(payload) - 1))
    with pytest.raises(InvalidMessage):
        decode(RolloutGroup, bytes(payload[:at]))
    payload[at] = data.draw(st.integers(0, 255))
    try:
        found = decode(RolloutGroup, bytes(payload))
    except InvalidMessage:
        return
    assert isinstance(found, RolloutGroup)


BOMBS = {
    "array header of 4 billion": b"\xdd\xff\xff\xff\xff",
    "map header of 4 billion": b"\xdf\xff\xff\xff\xff",
    "string header of 4 billion": b"\xdb\xff\xff\xff\xff",
    "binary header of 4 billion": b"\xc6\xff\xff\xff\xff",
    "array of 2 million nils": b"\xdd" + (2_000_000).to_bytes(4, "big") + b"\xc0" * 2_000_000,
    "map of 1000": msgpack.packb({str(i): i for i in range(1000)}),
    "string of 2 MiB": msgpack.packb("a" * 2**21),
    "depth of 100,000": b"\x91" * 100_000 + b"\xc0",
    "maps 100,000 deep": b"\x81\xa1a" * 100_000 + b"\xc0",
    "ext type": msgpack.packb(msgpack.ExtType(5, b"abc")),
    "empty ext type": msgpack.packb(msgpack.ExtType(5, b"")),
    "timestamp": msgpack.packb(msgpack.Timestamp(1)),
    "number as key": msgpack.packb({1: 2}),
    "nothing": b"",
    "reserved byte": b"\xc1",
    "a list": msgpack.packb([1, 2]),
    "half a surrogate pair": b"\x81\xa3uid\xa3\xed\xa0\x80",
    "over the size limit": b"\xc6" + MAX_MESSAGE_BYTES.to_bytes(4, "big") + bytes(MAX_MESSAGE_BYTES),
}


@pytest.mark.parametrize("name", BOMBS)
@pytest.mark.parametrize("message_type", [Task, RolloutGroup, WeightManifest])
def test_bombs_are_refused(name: str, message_type: type) -> None:
    with pytest.raises(InvalidMessage):
        decode(message_type, BOMBS[name])


@pytest.mark.parametrize("name", [name for name in BOMBS if name not in ("nothing", "a list", "over the size limit")])
def test_bombs_inside_free_form_arguments_are_refused(name: str) -> None:
    """``verifier_args`` may hold any JSON, so only the limits stand between it and a bomb."""
    payload = encode(make_task(verifier_args={"key": "PLACE"})).replace(msgpack.packb("PLACE"), BOMBS[name])
    with pytest.raises(InvalidMessage):
        decode(Task, payload)


@pytest.mark.parametrize("depth", [300, 600, 1000])
def test_arguments_too_deep_for_validation_are_refused(depth: int) -> None:
    payload = encode(make_task(verifier_args={"key": "PLACE"})).replace(
        msgpack.packb("PLACE"), b"\x91" * depth + b"\xc0"
    )
    with pytest.raises(InvalidMessage):
        decode(Task, payload)


def test_the_size_is_looked_at_before_anything_is_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    def unpackb(*_: object, **__: object) -> None:
        raise AssertionError("unpacked")

    monkeypatch.setattr(msgpack, "unpackb", unpackb)
    with pytest.raises(InvalidMessage, match="message of 67108864 bytes is over the limit of 8388608"):
        decode(Task, bytes(64 * 2**20))
    with pytest.raises(AssertionError, match="unpacked"):  # guards the above
        decode(Task, bytes(8))


def test_trailing_bytes_are_refused() -> None:
    with pytest.raises(InvalidMessage, match="ExtraData"):
        decode(Task, encode(make_task()) + b"\xc0")


@pytest.mark.parametrize(
    ("path", "value", "reason"),
    [
        ("surprise", 1, r"surprise: .*[uU]nexpected"),
        ("task.surprise", 1, r"task\.surprise: .*[uU]nexpected"),
        ("rollouts.0.verdict.surprise", 1, r"surprise: .*[uU]nexpected"),
        ("actor", None, r"actor: .*string"),
        ("rollouts", [], "0 rollouts for a task that asked for 1"),
        ("task.sampling.n", 2, "1 rollouts for a task that asked for 2"),
        ("task.objective", "steal", "objective"),
        ("task.messages.0.role", "tool", "role"),
        ("task.messages.0.content", [{"type": "sound", "text": ""}], "content"),
        ("rollouts.0.completion.token_ids", bytes(4), "1 token ids but 2 log-probs"),
        ("rollouts.0.completion.token_ids", bytes(7), "token_ids"),
        ("rollouts.0.completion.token_ids", [5, 6], "expected <i4 bytes, got list"),
        ("rollouts.0.completion.logprobs", np.float32([np.nan, 0]).tobytes(), "finite"),
        ("rollouts.0.completion.logprobs", np.float32([-np.inf, 0]).tobytes(), "finite"),
        ("rollouts.0.completion.logprobs", np.float32([0.5, 0]).tobytes(), "at most 0"),
        ("rollouts.0.completion.logprobs", b"", "0 log-probs"),
        ("rollouts.0.completion.spans", [], "spans"),
        ("rollouts.0.completion.spans", [[3, 1]], "start at token 0"),
        ("rollouts.0.completion.spans", [[3, 0], [4, 2]], "end before token 2"),
        ("rollouts.0.completion.spans", [[3, 0], [3, 1]], "rise in version"),
        ("rollouts.0.completion.finish_reason", "killed", "finish_reason"),
        ("rollouts.0.verdict.reward", float("nan"), "reward: .*finite"),
        ("generated_at", float("inf"), "generated_at: .*finite"),
        ("task.sampling.temperature", float("nan"), "temperature: .*finite"),
        ("task.sampling.temperature", -1.0, "temperature: .*greater than or equal to 0"),
        ("task.sampling.n", 0, "sampling.n: .*greater than or equal to 1"),
        ("task.sampling.n", 10**9, "sampling.n: .*less than or equal to 4096"),
        ("task.sampling.seed", -1, "seed: .*greater than or equal to 0"),
        ("task.sampling.max_new_tokens", 0, "max_new_tokens: .*greater than or equal to 1"),
        ("rollouts.0.verdict.reward", 1.5, "outside"),
        ("rollouts.0.verdict.status", "timeout", "cannot carry reward"),
    ],
)
def test_a_broken_field_is_named(path: str, value: object, reason: str) -> None:
    payload = msgpack.packb(put(raw(make_group()), path, value))
    with pytest.raises(InvalidMessage, match=reason):
        decode(RolloutGroup, payload)


@pytest.mark.parametrize("missing", ["task", "rollouts", "prompt_token_ids"])
def test_a_missing_field_is_named(missing: str) -> None:
    values = raw(make_group())
    del values[missing]
    with pytest.raises(InvalidMessage, match=missing):
        decode(RolloutGroup, msgpack.packb(values))


@pytest.mark.parametrize("path", ["schema", "task.schema"])
@pytest.mark.parametrize("schema", [0, SCHEMA_VERSION + 1, "1", None])
def test_another_schema_version_is_refused_before_anything_else(path: str, schema: object) -> None:
    values = put(put(raw(make_group()), path, schema), "a_field_of_the_future", 1)
    with pytest.raises(InvalidMessage, match=f"schema {schema!r}, but this process reads {SCHEMA_VERSION}"):
        decode(RolloutGroup, msgpack.packb(values))


def test_one_message_is_not_taken_for_another() -> None:
    with pytest.raises(InvalidMessage, match="Task"):
        decode(Task, encode(make_group()))


def test_decoded_arrays_cannot_be_written_to() -> None:
    """They are views of the payload; a write would change what another reader sees."""
    tokens = decode(RolloutGroup, encode(make_group())).prompt_token_ids
    with pytest.raises(ValueError, match="read-only"):
        tokens[0] = 9


@pytest.mark.parametrize(
    "changes",
    [
        {"question": "\ud800"},
        {"verifier_args": {"big": 2**64}},
        {"question": "a" * (MAX_MESSAGE_BYTES + 1)},
    ],
    ids=["half a surrogate pair", "an int above 64 bits", "over the size limit"],
)
def test_what_cannot_travel_is_refused_when_it_is_sent(changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidMessage, match="Task"):
        encode(make_task(**changes))
