"""The frozen answer pool: one right and one wrong answer per prompt, sampled once from one model.

Models that are compared judge and repair the same answers. Prompts of which k samples are all right or all wrong
are left out: both answers of a pair come from the same model, so nothing but their correctness tells them apart.
The pool is therefore harder than a random draw for a strong base and easier for a weak one; ``header.tried`` says
how selective it was. A JSON lines file: a header, then one item a line.
"""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from pydantic import ConfigDict, TypeAdapter, ValidationError

from cli.evaluation.asking import Asking
from cli.evaluation.sampler import Sampler
from common.errors import SettingsError
from common.messages import Completion, Rollout, RolloutGroup, Verdict
from learner.prompts import Prompt
from recycler.judge_tasks import Source, extract

CLOSED: Final = ConfigDict(extra="forbid")
POOL_VERSION: Final = 1
PROMPTS_PER_ROUND: Final = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """An answer as its verifier read it, and the whole response it came from."""

    __pydantic_config__ = CLOSED
    answer: str
    canonical: str
    response: str
    verifier: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    __pydantic_config__ = CLOSED
    prompt: Prompt
    right: Shown
    wrong: Shown


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    __pydantic_config__ = CLOSED
    model: str
    seed: int
    temperature: float
    samples: int
    """Samples of every prompt that was tried."""
    tried: int
    """Prompts that were tried to get the items."""
    version: int = POOL_VERSION


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerPool:
    header: Header
    items: tuple[Item, ...]
    digest: str
    """Hash of the bytes: two evaluations with the same digest judged the same answers."""


_header: Final = TypeAdapter(Header)
_item: Final = TypeAdapter(Item)


def read_pool(path: Path) -> AnswerPool:
    """Raises SettingsError that names the file and the line."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise SettingsError(f"answer pool {path} cannot be read: {error.strerror}; build it first") from error
    if len(lines) < 2:
        raise SettingsError(f"answer pool {path} holds no answers; remove it, then build it again")
    number = 1
    try:
        header = _header.validate_json(lines[0])
        items = []
        for number, line in enumerate(lines[1:], start=2):  # noqa: B007 - the error below names it
            items.append(_item.validate_json(line))
    except ValidationError as error:
        raise SettingsError(f"answer pool {path}, line {number}: {error.errors()[0]['msg']}") from error
    if header.version != POOL_VERSION:
        raise SettingsError(f"answer pool {path} has format {header.version}, not {POOL_VERSION}; build it again")
    return _pool(header, items)


def write_pool(pool: AnswerPool, path: Path) -> None:
    """All or nothing. Raises SettingsError if the file exists: a pool never changes."""
    if path.exists():
        raise SettingsError(f"answer pool {path} exists and is frozen; remove it, or name another file")
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.tmp")
    unfinished.write_bytes(_bytes(pool.header, pool.items))
    os.replace(unfinished, path)


def collect(
    sampler: Sampler, asking: Asking, prompts: Iterable[Prompt], *, size: int, samples: int, model: str
) -> AnswerPool:
    """Sample each prompt ``samples`` times until ``size`` of them have a right and a wrong answer, or all are used.

    Raises SettingsError when none has.
    """
    items: list[Item] = []
    tried, waiting = 0, list(prompts)
    while waiting and len(items) < size:
        batch, waiting = waiting[:PROMPTS_PER_ROUND], waiting[PROMPTS_PER_ROUND:]
        groups = sampler([asking.solve(prompt, "pool", n=samples) for prompt in batch], "pool")
        for prompt, group in zip(batch, groups, strict=True):
            if len(items) == size:
                break
            tried += 1
            if group is not None and (item := contrast(prompt, group, asking.seed)) is not None:
                items.append(item)
    if not items:
        raise SettingsError(
            f"{model}: none of {tried} held-out prompts got both a right and a wrong answer in {samples} samples, "
            "so there is nothing to judge; give an answer pool of a weaker model, or other prompts"
        )
    header = Header(
        model=model, seed=asking.seed, temperature=asking.sampling.temperature, samples=samples, tried=tried
    )
    return _pool(header, items)


def contrast(prompt: Prompt, group: RolloutGroup, seed: int) -> Item | None:
    """A random right and a random wrong answer of one group; None when it lacks either."""
    sources = extract(group, seed)
    if sources.kind != "mixed":
        return None
    rng = random.Random(sources.rank)
    return Item(prompt=prompt, right=_shown(rng.choice(sources.right)), wrong=_shown(rng.choice(sources.wrong)))


def sources_of(item: Item, asking: Asking) -> tuple[Source, Source]:
    """The right and the wrong answer as material of judge tasks."""
    shown = (item.right, item.wrong)
    group = RolloutGroup(
        task=asking.solve(item.prompt, "pool", n=2),
        prompt_token_ids=np.zeros(0, dtype=np.int32),
        rollouts=(_rollout(item.right, correct=True), _rollout(item.wrong, correct=False)),
        actor="pool",
        weights_epoch=0,
        generated_at=0.0,
    )
    right, wrong = (
        Source(group=group, sample=i, answer=one.answer, canonical=one.canonical, correct=i == 0)
        for i, one in enumerate(shown)
    )
    return right, wrong


def _shown(source: Source) -> Shown:
    return Shown(
        answer=source.answer,
        canonical=source.canonical,
        response=source.response,
        verifier=source.ref().verifier,
    )


def _rollout(shown: Shown, *, correct: bool) -> Rollout:
    """Judge tasks show text only, so the tokens that once made it are not kept: one stands for all of them."""
    return Rollout(
        completion=Completion(
            token_ids=np.zeros(1, dtype=np.int32),
            logprobs=np.zeros(1, dtype=np.float32),
            spans=((0, 0),),
            finish_reason="stop",
            text=shown.response,
        ),
        verdict=Verdict(
            status="ok",
            reward=float(correct),
            verifier=shown.verifier,
            answer=shown.answer,
            canonical=shown.canonical,
        ),
    )


def _pool(header: Header, items: Sequence[Item]) -> AnswerPool:
    digest = hashlib.blake2b(_bytes(header, items), digest_size=8).hexdigest()
    return AnswerPool(header=header, items=tuple(items), digest=digest)


def _bytes(header: Header, items: Sequence[Item]) -> bytes:
    lines = [_header.dump_json(header), *(_item.dump_json(item) for item in items)]
    return b"".join(line + b"\n" for line in lines)
