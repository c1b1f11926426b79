"""From a scored policy group to judge tasks. Pure: same rollouts, template and choice, same task.

There is one extractor: the answer shown is byte-equal to the answer that the verifier scored, and the
label is a function of the stored verdict. Nothing is parsed here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from pydantic import JsonValue

from common.messages import (
    ChatMessage,
    ImagePart,
    Objective,
    RolloutGroup,
    Sampling,
    SourceRef,
    Task,
    TextPart,
    answer_hash,
    uid_of,
)
from common.settings import Sampling as SamplingSettings
from common.templates import PairwiseTemplate, PointwiseTemplate, ReflectTemplate, Template, TemplateSet

GroupKind = Literal["right", "mixed", "wrong", "unusable"]
KINDS: Final[tuple[GroupKind, ...]] = ("right", "mixed", "wrong")
"""The kinds that tasks can be made of."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Source:
    """One rollout with an extracted, scored answer."""

    group: RolloutGroup
    sample: int
    answer: str
    canonical: str
    correct: bool

    @property
    def response(self) -> str:
        return self.group.rollouts[self.sample].completion.text

    def ref(self) -> SourceRef:
        rollout = self.group.rollouts[self.sample]
        return SourceRef(
            uid=self.group.uid,
            sample=self.sample,
            answer_hash=answer_hash(self.answer),
            policy_version=rollout.completion.oldest_version,
            weights_epoch=self.group.weights_epoch,
            correct=self.correct,
            verifier=rollout.verdict.verifier,
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sources:
    """What one group offers, in sample order. ``rank`` is its place in a random order that never changes."""

    uid: str
    epoch: int
    """Learner epoch whose weights wrote it."""
    version: int
    """The oldest policy version that wrote any of it."""
    rank: str
    right: tuple[Source, ...]
    wrong: tuple[Source, ...]
    no_answer: int
    """Rollouts without a usable verdict: no answer was extracted, or the verifier failed."""
    contradictory: int
    """Rollouts scored wrong whose answer is equivalent to one scored right: the verifier disagrees with itself."""

    @property
    def kind(self) -> GroupKind:
        if self.right:
            return "mixed" if self.wrong else "right"
        return "wrong" if self.wrong else "unusable"


Plan = list[tuple[Sources, tuple[Task, ...]]]
"""What a recipe decided: groups with the tasks made of each, in the order of emission."""


def extract(group: RolloutGroup, seed: int) -> Sources:
    """The usable rollouts of a group. A judge group offers none: judgements are not recycled again."""
    found = [source for sample in range(len(group.rollouts)) if (source := _source(group, sample))]
    right = tuple(source for source in found if source.correct)
    right_forms = {source.canonical for source in right}
    wrong = tuple(source for source in found if not source.correct and source.canonical not in right_forms)
    return Sources(
        uid=group.uid,
        epoch=group.weights_epoch,
        version=group.oldest_version,
        rank=uid_of(seed, "rank", group.uid),
        right=right,
        wrong=wrong,
        no_answer=len(group.rollouts) - len(found),
        contradictory=len(found) - len(right) - len(wrong),
    )


def _source(group: RolloutGroup, sample: int) -> Source | None:
    verdict = group.rollouts[sample].verdict
    if group.task.objective != "solve" or verdict.status != "ok" or verdict.answer is None:
        return None
    canonical = verdict.answer if verdict.canonical is None else verdict.canonical
    return Source(group=group, sample=sample, answer=verdict.answer, canonical=canonical, correct=verdict.correct)


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskBuilder:
    """Builds complete judge tasks; what to build is decided by a recipe."""

    run: str
    seed: int
    sampling: SamplingSettings
    templates: TemplateSet

    def pointwise(
        self, source: Source, template: PointwiseTemplate, *, swapped: bool = False, policy_version: int
    ) -> Task:
        """Is this answer right? ``swapped`` exchanges the verdict letters of a permuted template."""
        words = template.words(swapped)
        return self._task(
            "pointwise",
            sources=(source,),
            template=template,
            prompt=template.render(source.group.task.question, source.answer, swapped=swapped),
            answer=words[0] if source.correct else words[1],
            choices=words,
            positive=source.correct,
            policy_version=policy_version,
        )

    def pairwise(
        self, right: Source, wrong: Source, template: PairwiseTemplate, *, a_right: bool, policy_version: int
    ) -> Task:
        """Which of two answers to one question is right? Raises ValueError for a pair without a contrast."""
        if right.group.uid != wrong.group.uid or not right.correct or wrong.correct:
            raise ValueError(f"a pair needs a right and a wrong answer of one group, got {right.ref()}, {wrong.ref()}")
        if right.canonical == wrong.canonical:
            raise ValueError(f"group {right.group.uid}: {right.answer!r} and {wrong.answer!r} are equivalent")
        a, b = (right, wrong) if a_right else (wrong, right)
        return self._task(
            "pairwise",
            sources=(a, b),
            template=template,
            prompt=template.render(a.group.task.question, a.answer, b.answer),
            answer=template.verdicts[0 if a_right else 1],
            choices=template.verdicts,
            positive=a_right,
            policy_version=policy_version,
        )

    def reflect(self, source: Source, template: ReflectTemplate, *, policy_version: int) -> Task:
        """Check an answer and give the right one. Raises ValueError when a right answer would be called wrong."""
        if source.correct and not template.neutral:
            raise ValueError(f"template {template.id!r} says that the answer is wrong, but {source.ref()} is right")
        question = source.group.task.question
        return self._task(
            "reflect",
            sources=(source,),
            template=template,
            prompt=template.render(question, answer=source.answer, response=source.response),
            answer=source.group.task.answer,
            choices=None,
            positive=source.correct,
            policy_version=policy_version,
        )

    def _task(
        self,
        objective: Objective,
        *,
        sources: tuple[Source, ...],
        template: Template,
        prompt: str,
        answer: str,
        choices: tuple[str, str] | None,
        positive: bool,
        policy_version: int,
    ) -> Task:
        origin = sources[0].group.task
        ref = self.templates.ref(template)
        # The attempt: a prompt that was sampled again is judged anew, under another uid.
        shown = (f"{s.group.uid}:{s.group.task.attempt}:{s.sample}" for s in sources)
        uid = uid_of(self.run, "recycle", objective, *shown, ref, *(choices or ()), self.seed)
        args: dict[str, JsonValue] = dict(origin.verifier_args) if choices is None else {"choices": [*choices]}
        return Task(
            uid=uid,
            objective=objective,
            messages=(_user_turn(origin, prompt),),
            question=origin.question,
            answer=answer,
            verifier=origin.verifier if choices is None else "verdict",
            verifier_args=args,
            sampling=self._sampling(objective, uid),
            template=ref,
            sources=tuple(source.ref() for source in sources),
            positive=positive,
            issued_version=policy_version,
        )

    def _sampling(self, objective: Objective, uid: str) -> Sampling:
        limit = None if objective == "reflect" else self.sampling.judge_max_new_tokens
        return Sampling(
            n=self.sampling.group_size,
            max_new_tokens=limit or self.sampling.max_new_tokens,
            temperature=self.sampling.temperature,
            seed=int(uid[:8], 16) >> 1,  # 31 bits: a seed every generator takes
        )


def _user_turn(origin: Task, prompt: str) -> ChatMessage:
    """One user turn: the images of the source's prompt, then the text."""
    images = tuple(part for message in origin.messages for part in message.content if isinstance(part, ImagePart))
    return ChatMessage(role="user", content=(*images, TextPart(text=prompt)))
