"""The judge's confidence and its false positives in an evaluation, for judges whose quality is known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from actors.engine import Generated, Request
from actors.verifiers.pool import InlineVerifier
from cli.evaluation.answer_pool import Item, Shown, sources_of
from cli.evaluation.asking import Asking
from cli.evaluation.confidence import VOTES, confidence_figures, measure_confidence
from cli.evaluation.probing import measure_probes
from cli.evaluation.report import SECTIONS
from cli.evaluation.sampler import Sampler
from common.messages import ChatMessage, Completion
from common.settings import Sampling
from common.templates import PointwiseTemplate, SolveTemplate, TemplateSet
from learner.calibration import Votes
from learner.probes import PROBES
from learner.prompts import Prompt

TEMPLATES = TemplateSet(
    name="scripted",
    solve=SolveTemplate(id="solve", text="solve $question"),
    pointwise=(PointwiseTemplate(id="judge", family="w", verdicts=("Yes", "No"), text="judge <$answer> of $question"),),
)
ASKING = Asking(templates=TEMPLATES, sampling=Sampling(max_new_tokens=8), seed=5)
Script = Callable[[str, int], str]
"""(prompt, sample) -> the boxed verdict; empty: none."""


class Judge:
    """An engine that answers from a script. ``seen``: the prompts it was asked."""

    policy_version = 0

    def __init__(self, script: Script) -> None:
        self.seen: list[str] = []
        self._script = script
        self._waiting: list[Request] = []

    @property
    def groups_in_flight(self) -> int:
        return len(self._waiting)

    def tokenize(self, messages: Sequence[ChatMessage]) -> NDArray[np.int32]:
        return np.array([ord(character) for character in messages[-1].text], dtype=np.int32)

    def add(self, request: Request) -> None:
        self._waiting.append(request)

    def step(self) -> list[Generated]:
        request = self._waiting.pop()
        text = "".join(map(chr, request.prompt_token_ids.tolist()))
        self.seen.append(text)
        said = [self._script(text, sample) for sample in range(request.sampling.n)]
        return [Generated(request=request, completions=tuple(map(completion, said)))]


def completion(word: str) -> Completion:
    return Completion(
        token_ids=np.ones(2, dtype=np.int32),
        logprobs=np.zeros(2, dtype=np.float32),
        spans=((0, 0),),
        finish_reason="stop",
        text=f"\\boxed{{{word}}}" if word else "hm",
    )


def judged_by(script: Script) -> tuple[Sampler, Judge]:
    judge = Judge(script)
    return Sampler(judge, InlineVerifier(), tokens_per_batch=5000), judge


def items(count: int, gold: str = "42") -> list[Item]:
    return [
        Item(
            prompt=Prompt(
                index=i, question=f"q{i}", messages=(ChatMessage.user(f"q{i}"),), answer=gold, verifier="exact"
            ),
            right=Shown(answer=gold, canonical=gold, response=gold, verifier="exact@1"),
            wrong=Shown(answer="41", canonical="41", response="41", verifier="exact@1"),
        )
        for i in range(count)
    ]


def confidence(script: Script, count: int = 12) -> dict[str, float]:
    sampler, _ = judged_by(script)
    found = measure_confidence(sampler, ASKING, [sources_of(item, ASKING) for item in items(count)])
    return {name: figure.value for name, figure in found.items()}


def test_a_perfect_judge() -> None:
    found = confidence(lambda text, _: "Yes" if "<42>" in text else "No")
    assert found == {"auroc": 1.0, "ece": 0.0, "ece_floor": 0.0, "confidence": 1.0}


def test_a_judge_that_always_says_yes() -> None:
    found = confidence(lambda *_: "Yes")
    assert (found["auroc"], found["ece"], found["confidence"]) == (0.5, 0.5, 1.0)


def test_a_judge_that_says_yes_in_three_of_four_of_the_right_answers() -> None:
    found = confidence(lambda text, sample: "Yes" if "<42>" in text and sample % 4 else "No")
    assert found["auroc"] == 1.0
    assert found["confidence"] == pytest.approx((1 + 16 / 28) / 2)  # 6 yes and 2 no: 16 of 28 pairs agree


def test_every_answer_is_judged_several_times_and_mute_judges_have_no_confidence() -> None:
    sampler, judge = judged_by(lambda *_: "")
    assert measure_confidence(sampler, ASKING, [sources_of(item, ASKING) for item in items(3)]) == {}
    assert len(judge.seen) == 6
    assert sampler.cost.completions == 6 * VOTES


def test_intervals_hold_the_value_and_shrink_with_more_answers() -> None:
    rng = np.random.default_rng(0)

    def drawn(pairs: int) -> list[tuple[Votes, Votes]]:
        right, wrong = (rng.random((pairs, VOTES)) < chance for chance in (0.6, 0.4))
        one, other = (
            [Votes(positive=positive, yes=tuple(map(bool, row))) for row in rows]
            for positive, rows in ((True, right), (False, wrong))
        )
        return list(zip(one, other, strict=True))

    few, many = confidence_figures(drawn(20), 0), confidence_figures(drawn(320), 0)
    for name in few:
        assert 0.0 <= few[name].low <= few[name].value <= few[name].high <= 1.0
    assert few["auroc"].low + 0.05 < few["auroc"].value < few["auroc"].high - 0.05
    assert many["auroc"].half_width < few["auroc"].half_width / 2
    assert confidence_figures(drawn(5), 3) != confidence_figures(drawn(5), 3)
    same = drawn(5)
    assert confidence_figures(same, 3) == confidence_figures(same, 3)


def test_probes_that_are_accepted() -> None:
    """Accepts the empty answer always, "Solution" for half of the questions, and cannot be read on ":"."""

    def script(text: str, _: int) -> str:
        if "<>" in text:
            return "Yes"
        if "<Solution>" in text:
            return "Yes" if text.endswith("q0") else "No"
        return "" if "<:>" in text else "No"

    sampler, judge = judged_by(script)
    found = measure_probes(sampler, ASKING, items(2))
    assert found["false_positive_empty"].value == 1.0
    assert found["false_positive_master_key"].value == pytest.approx(1 / (2 * len(PROBES["master_key"])))
    assert len(judge.seen) == len(set(judge.seen)) == 2 * sum(map(len, PROBES.values()))


def test_a_probe_that_is_the_right_answer_is_not_shown() -> None:
    sampler, judge = judged_by(lambda *_: "No")
    measure_probes(sampler, ASKING, [*items(1), *items(1, gold=":")])
    assert sum("<:>" in text for text in judge.seen) == 1


def test_a_failed_verdict_is_no_false_positive_and_no_rejection() -> None:
    class Failing(InlineVerifier):
        def submit(self, task, completions):  # type: ignore[no-untyped-def]
            choices = [] if task.uid == first.uid else ["Yes", "No"]  # without choices the verifier fails
            return super().submit(replace(task, verifier_args={"choices": choices}), completions)

    first = ASKING.pointwise(probe_source(), 0, "probe empty")
    sampler = Sampler(Judge(lambda *_: "Yes"), Failing(), tokens_per_batch=5000)
    found = measure_probes(sampler, ASKING, items(2))
    assert (found["false_positive_empty"].value, found["false_positive_empty"].n) == (1.0, 1)


def probe_source():  # type: ignore[no-untyped-def]
    (item,) = items(1)
    return sources_of(replace(item, wrong=replace(item.wrong, answer="", canonical="", response="")), ASKING)[1]


def test_the_table_has_a_row_for_each_of_them() -> None:
    rows = [name for section in SECTIONS for name, _ in section]
    new = ["auroc", "ece", "ece_floor", "confidence", *(f"false_positive_{kind}" for kind in PROBES)]
    assert rows[-len(new) :] == new
