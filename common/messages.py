"""The messages on the streams: frozen, closed, versioned; the one vocabulary of all processes.

Shape letters: T tokens of one completion, n siblings of one task.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Annotated, Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Discriminator, Field, JsonValue, PlainSerializer, PlainValidator

SCHEMA_VERSION: Final = 2

Objective = Literal["solve", "pointwise", "pairwise", "reflect"]
JUDGE_OBJECTIVES: Final[tuple[Objective, ...]] = ("pointwise", "pairwise", "reflect")
OBJECTIVES: Final[tuple[Objective, ...]] = ("solve", *JUDGE_OBJECTIVES)
Kind = Literal["policy", "judge"]
"""Which pair of streams a task travels on: ``tasks:KIND`` and ``rollouts:KIND``."""
VerdictStatus = Literal["ok", "no_answer", "error", "timeout"]
FinishReason = Literal["stop", "length"]
Outcome = Literal["trained", "filtered", "dropped_stale", "dead"]
"""Where every issued uid ends, exactly once."""
OUTCOMES: Final[tuple[Outcome, ...]] = ("trained", "filtered", "dropped_stale", "dead")

CLOSED = ConfigDict(extra="forbid", arbitrary_types_allowed=True, allow_inf_nan=False)
MOST_SIBLINGS: Final = 4096
"""Completions of one task; what asks for more is refused before anybody starts to generate."""


def _array(dtype: str) -> Any:
    """A one-dimensional little-endian array that travels as raw bytes (msgpack ``bin``)."""

    def load(value: object) -> NDArray[Any]:
        if isinstance(value, np.ndarray):
            return np.ascontiguousarray(value, dtype=dtype)
        if not isinstance(value, bytes):
            raise ValueError(f"expected {dtype} bytes, got {type(value).__name__}")
        return np.frombuffer(value, dtype=dtype)

    def dump(value: NDArray[Any]) -> bytes:
        return np.ascontiguousarray(value, dtype=dtype).tobytes()

    return PlainValidator(load), PlainSerializer(dump, return_type=bytes)


_load_ids, _dump_ids = _array("<i4")
_load_logprobs, _dump_logprobs = _array("<f4")
TokenIds = Annotated[NDArray[np.int32], _load_ids, _dump_ids]
Logprobs = Annotated[NDArray[np.float32], _load_logprobs, _dump_logprobs]


@dataclass(frozen=True, slots=True, kw_only=True)
class TextPart:
    """Text of a chat message. Always untrusted: it can never become a control token of a prompt."""

    __pydantic_config__ = CLOSED
    text: str
    type: Literal["text"] = "text"


@dataclass(frozen=True, slots=True, kw_only=True)
class ImagePart:
    """An image by content hash; its bytes live in a blob store, never in a message."""

    __pydantic_config__ = CLOSED
    sha256: str
    type: Literal["image"] = "image"


Part = Annotated[TextPart | ImagePart, Discriminator("type")]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatMessage:
    __pydantic_config__ = CLOSED
    role: Literal["system", "user", "assistant"]
    content: tuple[Part, ...]

    @classmethod
    def user(cls, text: str) -> ChatMessage:
        return cls(role="user", content=(TextPart(text=text),))

    @property
    def text(self) -> str:
        return "".join(part.text for part in self.content if isinstance(part, TextPart))


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How to sample a group. Training needs the untruncated distribution, hence no top-p or top-k.

    The bounds are those of a message: what breaks them is refused when it is read.
    """

    __pydantic_config__ = CLOSED
    n: Annotated[int, Field(ge=1, le=MOST_SIBLINGS)]
    max_new_tokens: Annotated[int, Field(ge=1)]
    temperature: Annotated[float, Field(ge=0)] = 1.0
    seed: Annotated[int, Field(ge=0)] = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceRef:
    """Lineage of a judge task: one rollout whose answer it shows."""

    __pydantic_config__ = CLOSED
    uid: str
    sample: int
    answer_hash: str
    policy_version: int
    """The oldest policy version that wrote the answer."""
    weights_epoch: int
    """Learner epoch of that version."""
    correct: bool
    verifier: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One prompt to be answered ``sampling.n`` times, and how to verify the answers.

    ``answer`` is what the verifier scores against: the gold answer, or the verdict that is right.
    It never appears in ``messages``.
    """

    __pydantic_config__ = CLOSED
    uid: str
    objective: Objective
    messages: tuple[ChatMessage, ...]
    question: str
    """The bare problem, without any answer-format instruction: judge prompts are built from it."""
    answer: str
    verifier: str
    sampling: Sampling
    verifier_args: dict[str, JsonValue] = field(default_factory=dict)
    template: str = ""
    dataset_index: int = -1
    """Position in the prompt source; -1 for judge tasks."""
    dataset_epoch: int = 0
    position: int = -1
    """Place in the order of issue; -1 for judge tasks."""
    attempt: int = 0
    """How often the prompt was issued again, because what was sampled for it belongs to lost weights."""
    sources: tuple[SourceRef, ...] = ()
    positive: bool | None = None
    """Class of a judge task: is the judged answer right (pointwise, reflect), is A right (pairwise)."""
    issued_version: int = 0
    """Learner's policy version when the task was put on its stream."""
    trace: str = ""
    """W3C ``traceparent`` of the span that issued the task."""
    schema: int = SCHEMA_VERSION

    @property
    def kind(self) -> Kind:
        return "policy" if self.objective == "solve" else "judge"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Completion:
    """Sampled tokens with what the behaviour policy thought of them.

    ``logprobs`` are fp32, of the raw (temperature 1) distribution. ``spans`` holds
    ``(policy_version, first_token)``: weights may change in the middle of a completion.
    """

    __pydantic_config__ = CLOSED
    token_ids: TokenIds
    logprobs: Logprobs
    spans: tuple[tuple[int, int], ...]
    finish_reason: FinishReason
    text: str

    def __post_init__(self) -> None:
        tokens = len(self.token_ids)
        if tokens == 0 or len(self.logprobs) != tokens:
            raise ValueError(f"{tokens} token ids but {len(self.logprobs)} log-probs; need as many, at least 1")
        if (least := self.token_ids.min()) < 0:
            raise ValueError(f"token ids must not be negative, got {least}")
        if not (self.logprobs.min() > -np.inf and self.logprobs.max() <= 1e-3):  # also catches NaN
            raise ValueError("log-probs must be finite and at most 0")
        if not self.spans or self.spans[0][1] != 0 or self.spans[-1][1] >= tokens:
            raise ValueError(f"spans {self.spans} must start at token 0 and end before token {tokens}")
        if any(a >= c or b >= d for (a, b), (c, d) in zip(self.spans, self.spans[1:], strict=False)):
            raise ValueError(f"spans {self.spans} must rise in version and in first token")

    @property
    def oldest_version(self) -> int:
        return self.spans[0][0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a verifier says of one completion.

    ``answer`` is byte-equal to the text that was scored; ``canonical`` is its normal form under the
    verifier: two answers with the same canonical form are equivalent. A verdict of status ``error``
    or ``timeout`` is not a wrong answer: it is excluded from training and counted.
    """

    __pydantic_config__ = CLOSED
    status: VerdictStatus
    reward: float
    verifier: str
    """``name@version`` of the verifier."""
    answer: str | None = None
    canonical: str | None = None
    detail: str = ""

    def __post_init__(self) -> None:
        if not 0.0 <= self.reward <= 1.0:  # also catches NaN
            raise ValueError(f"reward {self.reward} is outside [0, 1]")
        if self.status != "ok" and self.reward != 0.0:
            raise ValueError(f"a verdict of status {self.status!r} cannot carry reward {self.reward}")

    @property
    def scored(self) -> bool:
        """The reward may be used: the completion was judged (a missing answer is judged wrong)."""
        return self.status in ("ok", "no_answer")

    @property
    def correct(self) -> bool:
        return self.status == "ok" and self.reward >= 0.5


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rollout:
    __pydantic_config__ = CLOSED
    completion: Completion
    verdict: Verdict


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RolloutGroup:
    """The n siblings of one task: the unit of advantage, staleness, delivery and acknowledgement."""

    __pydantic_config__ = CLOSED
    task: Task
    prompt_token_ids: TokenIds
    rollouts: tuple[Rollout, ...]
    actor: str
    weights_epoch: int
    """Learner epoch whose weights generated the group."""
    generated_at: float
    """Unix seconds on the actor's clock; for people only, nothing decides by it."""
    schema: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        if len(self.rollouts) != self.task.sampling.n:
            raise ValueError(f"{len(self.rollouts)} rollouts for a task that asked for {self.task.sampling.n}")

    @property
    def uid(self) -> str:
        return self.task.uid

    @property
    def oldest_version(self) -> int:
        return min(rollout.completion.oldest_version for rollout in self.rollouts)

    @property
    def scored(self) -> tuple[Rollout, ...]:
        return tuple(rollout for rollout in self.rollouts if rollout.verdict.scored)


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightFile:
    __pydantic_config__ = CLOSED
    name: str
    sha256: str
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightLink:
    """What one version published: all of its bytes, or the difference to the version before."""

    __pydantic_config__ = CLOSED
    version: int
    uri: str
    files: tuple[WeightFile, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightManifest:
    """Announces complete, hashed weights of one policy version. Sent last, so its presence means complete."""

    __pydantic_config__ = CLOSED
    epoch: int
    version: int
    parent: int
    """The version these weights were trained from; -1 for the first."""
    uri: str
    """The folder of ``files``: an absolute path, or a URL without credentials."""
    files: tuple[WeightFile, ...]
    chain: tuple[WeightLink, ...] = ()
    """Empty: ``files`` are complete. Else they are differences, and this is what to apply them to: an anchor (whole),
    then the differences after it up to ``parent``, oldest first; all of this epoch."""
    schema: int = SCHEMA_VERSION

    @property
    def links(self) -> tuple[WeightLink, ...]:
        """The way to this version: its anchor, the differences after it, and what it published itself."""
        return (*self.chain, WeightLink(version=self.version, uri=self.uri, files=self.files))


def uid_of(*parts: str | int) -> str:
    """Identity of a task, 128 bits in hex: the same parts always give the same uid."""
    text = "\x1f".join(str(part) for part in parts)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def answer_hash(answer: str) -> str:
    return hashlib.blake2b(answer.encode(), digest_size=8).hexdigest()
