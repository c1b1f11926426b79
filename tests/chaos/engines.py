"""The two toys: an actor's engine that does sums, and a learner's engine whose weights are what it was stepped on.

Both are deterministic. What an actor says depends on the task's seed and on the weights, and the weights on every
number the learner was given: two runs end with the same weights only if they trained the same, in the same order.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from actors.engine import Generated, Request
from chaos.prompts import BOMB
from common.errors import SettingsError, WeightsError
from common.messages import ChatMessage, Completion
from common.settings import Settings
from learner.packing import Microbatch

WEIGHTS: Final = "weights.json"
TRAINED: Final = "trained.bin"
UID_BYTES: Final = 16
_SUM: Final = re.compile(r"(\d+)\+(\d+)")
_VERDICTS: Final = re.compile(r"\\boxed\{([A-Za-z]+)\}")


class ToyTrainer:
    """A training engine. ``trained`` is every uid it was stepped on, in order; ``chain`` hashes all it ever saw."""

    sample_losses = None
    """Nothing is computed."""

    def __init__(self) -> None:
        self.policy_version = 0
        self.chain = hashlib.sha256(b"base").hexdigest()
        self.trained: list[str] = []
        self.batch: tuple[str, ...] = ()
        """Uids of the batch that the next step is made on."""

    def use(self, settings: Settings) -> None:
        """Nothing it does depends on settings."""

    def old_logprobs(self, microbatches: Sequence[Microbatch]) -> Sequence[Any]:
        return [batch.behaviour_logprobs_T[batch.is_target_T] for batch in microbatches]

    def step(self, microbatches: Sequence[Microbatch], old: Sequence[Any] | None = None) -> dict[str, float]:
        chain = hashlib.sha256(self.chain.encode())
        chain.update(" ".join(self.batch).encode())
        for batch in microbatches:
            for array in (batch.token_ids_T, batch.advantages_S, batch.objectives_S):
                chain.update(array.tobytes())
        self.chain = chain.hexdigest()
        self.trained += self.batch
        self.batch = ()
        self.policy_version += 1
        return {"loss": 0.0}

    def write_weights(self, folder: Path) -> None:
        text = json.dumps({"policy_version": self.policy_version, "chain": self.chain})
        (folder / WEIGHTS).write_text(text, encoding="utf-8")

    def write_checkpoint(self, folder: Path) -> None:
        self.write_weights(folder)
        (folder / TRAINED).write_bytes(bytes.fromhex("".join(self.trained)))

    def read_checkpoint(self, folder: Path, policy_version: int) -> None:
        found = json.loads((folder / WEIGHTS).read_text(encoding="utf-8"))
        if found["policy_version"] != policy_version:
            raise SettingsError(f"{folder} holds version {found['policy_version']}, its commit says {policy_version}")
        self.policy_version, self.chain = policy_version, found["chain"]
        self.trained = trained_uids(folder)

    def export(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.write_checkpoint(folder)


def trained_uids(folder: Path) -> list[str]:
    """What a checkpoint's weights were stepped on."""
    data = (folder / TRAINED).read_bytes()
    return [data[start : start + UID_BYTES].hex() for start in range(0, len(data), UID_BYTES)]


@dataclass(slots=True)
class _Running:
    request: Request
    spans: list[tuple[int, int]] = field(default_factory=list)
    tokens: int = 0


class ToyEngine:
    """An inference engine: every group takes ``steps`` steps, one token each, and then says its answers."""

    def __init__(self, steps: int = 3, refuse_from: int | None = None) -> None:
        """``refuse_from``: weights of this version and above do not load, ever."""
        self.policy_version = -1
        self._chain = ""
        self._steps = steps
        self._refuse_from = refuse_from
        self._running: list[_Running] = []

    @property
    def groups_in_flight(self) -> int:
        return len(self._running)

    def tokenize(self, messages: Sequence[ChatMessage]) -> NDArray[np.int32]:
        return np.frombuffer("\n".join(m.text for m in messages).encode(), dtype=np.uint8).astype(np.int32)

    def add(self, request: Request) -> None:
        self._running.append(_Running(request))

    def step(self) -> list[Generated]:
        for group in self._running:
            if not group.spans or group.spans[-1][0] != self.policy_version:
                group.spans.append((self.policy_version, group.tokens))
            group.tokens += 1
        done = [group for group in self._running if group.tokens >= self._steps]
        self._running = [group for group in self._running if group.tokens < self._steps]
        return [self._generated(group) for group in done]

    def forget(self) -> None:
        self._running.clear()

    def apply(self, files: Sequence[Path], policy_version: int) -> None:
        if self._refuse_from is not None and policy_version >= self._refuse_from:
            raise WeightsError(f"version {policy_version} is refused, as every one from {self._refuse_from} on")
        try:
            found = json.loads(files[0].read_text(encoding="utf-8"))
            version, chain = int(found["policy_version"]), str(found["chain"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise WeightsError(f"weights of version {policy_version} do not load: {error}") from error
        if version != policy_version:
            raise WeightsError(f"the files hold version {version}, the manifest says {policy_version}")
        self.policy_version, self._chain = policy_version, chain

    def _generated(self, group: _Running) -> Generated:
        request = group.request
        prompt = bytes(request.prompt_token_ids.astype(np.uint8)).decode()
        texts = answers(prompt, request.sampling.seed, self._chain, request.sampling.n)
        completions = tuple(_completion(text, tuple(group.spans), group.tokens) for text in texts)
        return Generated(request=request, completions=completions)


def answers(prompt: str, seed: int, chain: str, n: int) -> list[str]:
    """What the toy says to a prompt, ``n`` times: of ten groups one is all right, one all wrong, the others mixed."""
    digest = hashlib.blake2b(f"{seed} {chain}".encode(), digest_size=8).digest()
    draw = np.random.default_rng(int.from_bytes(digest, "big"))
    share = {0: 1.0, 1: 0.0}.get(int(draw.integers(10)), 0.5)
    right = draw.random(n) < share
    if share == 0.5:
        right[:2] = (True, False)
    verdicts = sorted(set(_VERDICTS.findall(prompt)))
    if verdicts:
        return [f"\\boxed{{{verdicts[0] if flag else verdicts[-1]}}}" for flag in right]
    found = _SUM.search(prompt)
    total = int(found[1]) + int(found[2]) if found else 0
    suffix = f" {BOMB}" if BOMB in prompt else ""
    return [f"\\boxed{{{total if flag else total + 1 + index}}}{suffix}" for index, flag in enumerate(right)]


def _completion(text: str, spans: tuple[tuple[int, int], ...], tokens: int) -> Completion:
    ids = np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int32)
    ids = np.resize(ids, max(tokens, len(ids)))
    return Completion(
        token_ids=ids,
        logprobs=np.full(len(ids), -0.5, dtype=np.float32),
        spans=spans,
        finish_reason="stop",
        text=text,
    )
