"""The two toys of the simulation. Weights are a hash of all they were trained on, and every token says which weights
sampled it: what really happened can be read off the data, whatever the code under test believes."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from actors.engine import Generated, Request
from common.errors import SettingsError, WeightsError
from common.messages import ChatMessage, Completion
from common.settings import Settings
from learner.packing import Microbatch

WEIGHTS: Final = "weights.json"
TRAINED: Final = "trained.txt"
DECODE: Final = "decode"
"""The point of a decoding step."""
LOGPROB: Final = -0.5
_SUM: Final = re.compile(r"(\d+)\+(\d+)")
_VERDICTS: Final = re.compile(r"\\boxed\{([A-Za-z]+)\}")

Point = Callable[[str], None]
"""A place in a process where time passes, and where anything may happen to it: it may raise OSError, or end."""


@dataclass(frozen=True, slots=True)
class Weights:
    version: int
    chain: str

    @property
    def token(self) -> int:
        """The token that these weights sample: 31 bits of their hash."""
        return int(self.chain[:8], 16) >> 1

    def to_json(self) -> str:
        return json.dumps({"version": self.version, "chain": self.chain})

    @classmethod
    def from_json(cls, text: str) -> Weights:
        """Raises ValueError, KeyError, TypeError for what is no weights."""
        raw = json.loads(text)
        return cls(int(raw["version"]), str(raw["chain"]))


BASE: Final = Weights(0, hashlib.blake2b(b"base", digest_size=16).hexdigest())


class Family:
    """The true family tree of all weights that ever were in a run, by the token that each samples."""

    def __init__(self) -> None:
        self._parents: dict[int, int | None] = {BASE.token: None}

    def add(self, child: Weights, parent: Weights) -> None:
        self._parents[child.token] = parent.token

    def line(self, token: int | None) -> Iterator[int]:
        """The weights themselves, their parent, and so on to the base."""
        while token is not None:
            yield token
            token = self._parents[token]

    def distance(self, one: int, other: int) -> int:
        """Optimizer steps from one to the other: back to where their lines part, and on from there."""
        steps = {token: step for step, token in enumerate(self.line(one))}
        return next(step + steps[token] for step, token in enumerate(self.line(other)) if token in steps)


class ToyTrainer:
    """A training engine. ``trained`` is every uid it was stepped on, in order."""

    sample_losses = None
    """Nothing is computed."""

    def __init__(self, family: Family, point: Point) -> None:
        self.weights = BASE
        self.trained: list[str] = []
        self.batch: tuple[str, ...] = ()
        """Uids of the batch that the next step is made on."""
        self._family = family
        self._point = point

    @property
    def policy_version(self) -> int:
        return self.weights.version

    def use(self, settings: Settings) -> None:
        """Nothing it does depends on settings."""

    def old_logprobs(self, microbatches: Sequence[Microbatch]) -> Sequence[Any]:
        return [batch.behaviour_logprobs_T[batch.is_target_T] for batch in microbatches]

    def step(self, microbatches: Sequence[Microbatch], old: Sequence[Any] | None = None) -> dict[str, float]:
        self._point("step")
        chain = hashlib.blake2b(self.weights.chain.encode(), digest_size=16)
        chain.update(" ".join(self.batch).encode())
        for batch in microbatches:
            for array in (batch.token_ids_T, batch.advantages_S, batch.objectives_S):
                chain.update(array.tobytes())
        after = Weights(self.weights.version + 1, chain.hexdigest())
        self._family.add(after, self.weights)
        self.weights = after
        self.trained += self.batch
        self.batch = ()
        return {"loss": 0.0}

    def write_weights(self, folder: Path) -> None:
        self._point("write weights")
        (folder / WEIGHTS).write_text(self.weights.to_json(), encoding="utf-8")
        self._point("weights written")

    def write_checkpoint(self, folder: Path) -> None:
        self._point("write checkpoint")
        text = "\n".join(self.trained)
        (folder / TRAINED).write_text(text[: len(text) // 2], encoding="utf-8")
        self._point("half of a file written")
        (folder / TRAINED).write_text(text, encoding="utf-8")
        self._point("a file written")
        (folder / WEIGHTS).write_text(self.weights.to_json(), encoding="utf-8")
        self._point("checkpoint written")

    def read_checkpoint(self, folder: Path, policy_version: int) -> None:
        self.weights, self.trained = read_checkpoint(folder)
        if self.weights.version != policy_version:
            raise SettingsError(f"{folder} holds version {self.weights.version}, its commit says {policy_version}")

    def export(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.write_checkpoint(folder)


def read_checkpoint(folder: Path) -> tuple[Weights, list[str]]:
    """The weights of a checkpoint, and the uids they were stepped on."""
    weights = Weights.from_json((folder / WEIGHTS).read_text(encoding="utf-8"))
    return weights, (folder / TRAINED).read_text(encoding="utf-8").split()


@dataclass(slots=True)
class _Running:
    request: Request
    steps: int
    tokens: list[int] = field(default_factory=list)
    spans: list[tuple[int, int]] = field(default_factory=list)


class ToyEngine:
    """An inference engine. A group takes one or two steps, by its seed, and then says its answers."""

    def __init__(self, point: Point) -> None:
        self.weights = Weights(-1, "")
        self._point = point
        self._running: list[_Running] = []

    @property
    def policy_version(self) -> int:
        return self.weights.version

    @property
    def groups_in_flight(self) -> int:
        return len(self._running)

    def tokenize(self, messages: Sequence[ChatMessage]) -> NDArray[np.int32]:
        return np.frombuffer("\n".join(m.text for m in messages).encode(), dtype=np.uint8).astype(np.int32)

    def add(self, request: Request) -> None:
        self._running.append(_Running(request, 1 + request.sampling.seed % 2))

    def step(self) -> list[Generated]:
        if not self._running:
            return []
        self._point(DECODE)
        for group in self._running:
            if not group.spans or group.spans[-1][0] != self.weights.version:
                group.spans.append((self.weights.version, len(group.tokens)))
            group.tokens.append(self.weights.token)
        done = [group for group in self._running if len(group.tokens) >= group.steps]
        self._running = [group for group in self._running if len(group.tokens) < group.steps]
        return [_generated(group) for group in done]

    def forget(self) -> None:
        self._running.clear()

    def apply(self, files: Sequence[Path], policy_version: int) -> None:
        try:
            found = Weights.from_json(files[0].read_text(encoding="utf-8"))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise WeightsError(f"weights of version {policy_version} do not load: {error}") from error
        if found.version != policy_version:
            raise WeightsError(f"the files hold version {found.version}, the manifest says {policy_version}")
        self.weights = found


def _generated(group: _Running) -> Generated:
    request = group.request
    prompt = bytes(request.prompt_token_ids.astype(np.uint8)).decode()
    texts = answers(prompt, f"{request.sampling.seed} {group.tokens}", request.sampling.n)
    ids = np.array(group.tokens, dtype=np.int32)
    logprobs = np.full(len(ids), LOGPROB, dtype=np.float32)
    return Generated(
        request=request,
        completions=tuple(
            Completion(token_ids=ids, logprobs=logprobs, spans=tuple(group.spans), finish_reason="stop", text=text)
            for text in texts
        ),
    )


def answers(prompt: str, seed: str, n: int) -> list[str]:
    """What the toy says to a prompt, ``n`` times: of eight groups one is all right, one all wrong, the others mixed."""
    digest = hashlib.blake2b(seed.encode(), digest_size=1 + n).digest()
    right = [bool(byte & 1) for byte in digest[1:]]
    match digest[0] % 8:
        case 0:
            right = [True] * n
        case 1:
            right = [False] * n
        case _:
            right[:2] = [True, False]
    if verdicts := sorted(set(_VERDICTS.findall(prompt))):
        return [f"\\boxed{{{verdicts[0] if flag else verdicts[-1]}}}" for flag in right]
    found = _SUM.search(prompt)
    total = int(found[1]) + int(found[2]) if found else 0
    return [f"\\boxed{{{total if flag else total + 1 + index}}}" for index, flag in enumerate(right)]
