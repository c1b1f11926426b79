"""What the model is asked: held-out prompts as solve tasks, and judge tasks exactly as the recycler builds them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from cli.evaluation.figures import Outcome
from cli.evaluation.sampler import drawn_once, seed_of
from common.errors import SettingsError
from common.messages import RolloutGroup, Sampling, Task, uid_of
from common.settings import Sampling as SamplingSettings
from common.settings import Settings
from common.templates import ReflectTemplate, TemplateSet
from learner.issuer import solve_task
from learner.prompts import Prompt, PromptSource, open_prompts
from recycler.judge_tasks import Source, TaskBuilder

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """Builds the tasks of one evaluation. Templates take turns by position, so equal positions are asked alike."""

    templates: TemplateSet
    sampling: SamplingSettings
    seed: int

    def solve(self, prompt: Prompt, stage: str, *, n: int = 1) -> Task:
        ref = self.templates.ref(self.templates.solve)
        uid = uid_of("evaluation", self.seed, stage, prompt.index, prompt.question, ref)
        drawn = Sampling(
            n=n,
            max_new_tokens=self.sampling.max_new_tokens,
            temperature=self.sampling.temperature,
            seed=seed_of(uid),
        )
        return solve_task(prompt, self.templates, uid, drawn)

    def pointwise(self, source: Source, position: int, stage: str, *, greedy: bool = False) -> Task:
        """Is this answer right? Letters without a meaning are exchanged in every other round over the templates."""
        turn, place = divmod(position, len(self.templates.pointwise))
        template = self.templates.pointwise[place]
        swapped = template.permuted and turn % 2 == 1
        task = self._builder(stage).pointwise(source, template, swapped=swapped, policy_version=0)
        return drawn_once(task, temperature=0.0 if greedy else None)

    def pairwise(self, right: Source, wrong: Source, position: int, *, a_right: bool) -> Task:
        template = _turn(self.templates.pairwise, position)
        task = self._builder("pairwise").pairwise(right, wrong, template, a_right=a_right, policy_version=0)
        return drawn_once(task)

    def reflect(self, source: Source, position: int, stage: str, *, shows_response: bool | None = None) -> Task:
        """Check this answer, neutrally: by a template that shows the response, only the answer, or either (None)."""
        template = _turn(self.neutral(shows_response), position)
        return drawn_once(self._builder(stage).reflect(source, template, policy_version=0))

    def neutral(self, shows_response: bool | None = None) -> tuple[ReflectTemplate, ...]:
        """Templates that do not say whether the answer is right."""
        return tuple(
            template
            for template in self.templates.reflect
            if template.neutral and shows_response in (None, template.shows_response)
        )

    def _builder(self, stage: str) -> TaskBuilder:
        """A task's sampling seed follows from its content and this seed."""
        seed = seed_of(self.seed, stage)
        return TaskBuilder(run="evaluation", seed=seed, sampling=self.sampling, templates=self.templates)


def open_asking(settings: Settings, templates: TemplateSet, seed: int) -> Asking:
    """Raises SettingsError when the template set cannot ask every question of an evaluation."""
    asking = Asking(templates=templates, sampling=settings.sampling, seed=seed)
    for objective, found in (
        ("pointwise", templates.pointwise),
        ("pairwise", templates.pairwise),
        ("neutral reflect", asking.neutral()),
    ):
        if not found:
            raise SettingsError(
                f"templates.path={settings.templates.path!r} has no {objective} template, "
                "which an evaluation needs; add one, or set templates.path=default"
            )
    return asking


def open_held_out(settings: Settings, seed: int) -> PromptSource:
    """The prompts of ``eval.prompts``, in an order that depends on ``seed``. Raises SettingsError."""
    if not settings.eval.prompts:
        raise SettingsError("eval.prompts is empty; set it to held-out prompts (same forms as prompts.source)")
    prompts = settings.prompts.model_copy(
        update={"source": settings.eval.prompts, "args": settings.eval.args, "shuffle": True, "epochs": None}
    )
    # hashed: a source that makes its problems from a seed must not repeat those of a run with the same small seed
    return open_prompts(prompts, settings.run.python_path, seed_of("held-out", seed))


def draw(held_out: PromptSource, count: int) -> Iterator[Prompt]:
    """``count`` prompts in the source's order; each place of a further pass over it is a prompt of its own."""
    for position in range(count):
        place = held_out.order(position)
        if place is None:
            return
        epoch, index = place
        prompt = held_out[index]
        yield replace(prompt, index=index + epoch * len(held_out))


def source_of(group: RolloutGroup | None, sample: int = 0) -> Source | None:
    """The answer of a rollout as the material of a judge task; None when there is none to show."""
    if group is None:
        return None
    verdict = group.rollouts[sample].verdict
    if verdict.status != "ok" or verdict.answer is None:
        return None
    canonical = verdict.answer if verdict.canonical is None else verdict.canonical
    return Source(group=group, sample=sample, answer=verdict.answer, canonical=canonical, correct=verdict.correct)


def outcome_of(group: RolloutGroup | None, sample: int = 0) -> Outcome:
    """Was the task done right? A refused task was not; None when the verifier failed."""
    if group is None:
        return False
    verdict = group.rollouts[sample].verdict
    return verdict.correct if verdict.scored else None


def _turn(templates: Sequence[T], position: int) -> T:
    return templates[position % len(templates)]
