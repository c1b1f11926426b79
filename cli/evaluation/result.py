"""The result of an evaluation: figures with intervals, and what they cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from pydantic import TypeAdapter

from cli.evaluation.figures import Figure


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What was measured of one model. All shares lie in [0, 1].

    Figures: ``policy`` and ``greedy`` accuracy; ``pointwise`` (balanced) with ``tpr``, ``tnr`` and ``unparsed``;
    ``pairwise`` with ``swap_consistency``, ``position_bias`` and ``pairwise_unparsed``; ``fix`` and ``break`` (also by
    form: ``fix_answer``, ...) with ``resolve``; ``tts`` (= the last of ``tts_r0``, ``tts_r1``, ...) with ``tts_gain``
    (over r0, same prompts); ``majority`` at the votes asked for, ``majority_equal`` at the votes that cost nearest
    to test-time scaling, and ``tts_vs_majority`` (tts less majority_equal, same prompts); ``auroc``, ``ece``,
    ``ece_floor`` and ``confidence`` of the judge's P(Yes); ``false_positive_empty``, ``false_positive_master_key``.
    Counts: sampled tokens per prompt of the three (``tts_tokens``, ...), ``tts_fixed``, ``tts_broken``, the votes, and
    the size and cost of the whole evaluation.
    """

    model: str
    seed: int
    temperature: float
    pool: str
    """Digest of the answer pool: evaluations are comparable in judging and repair only if it is equal."""
    figures: Mapping[str, Figure]
    counts: Mapping[str, float]

    def summary(self) -> dict[str, float]:
        """Every figure's value and every count."""
        return {name: figure.value for name, figure in self.figures.items()} | dict(self.counts)

    def intervals(self) -> dict[str, tuple[float, float]]:
        """The 95 % interval of every figure."""
        return {name: (figure.low, figure.high) for name, figure in self.figures.items()}

    @property
    def rounds(self) -> tuple[Figure, ...]:
        """Accuracy of test-time scaling before the first round and after each."""
        names = [name for name in self.figures if name.removeprefix("tts_r").isdecimal()]
        return tuple(self.figures[name] for name in sorted(names, key=lambda name: int(name.removeprefix("tts_r"))))

    def to_json(self) -> str:
        return _adapter.dump_json(self, indent=2).decode()

    @classmethod
    def from_json(cls, text: str | bytes) -> Evaluation:
        return _adapter.validate_json(text)


_adapter: Final = TypeAdapter(Evaluation)
