"""One evaluation from start to end, and the answer pool that several of them share."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cli.evaluation.answer_pool import AnswerPool, collect, read_pool, sources_of, write_pool
from cli.evaluation.asking import Asking, draw, open_asking, open_held_out, outcome_of
from cli.evaluation.confidence import measure_confidence
from cli.evaluation.engine import open_sampler
from cli.evaluation.figures import Figure, Outcome, clustered_share, paired_difference
from cli.evaluation.judging import measure_pairwise, measure_pointwise
from cli.evaluation.majority import majority_outcome, votes_for
from cli.evaluation.probing import measure_probes
from cli.evaluation.reflection import measure_reflection
from cli.evaluation.result import Evaluation
from cli.evaluation.sampler import Cost, Sampler, cost_of, drawn_once
from cli.evaluation.scaling import Scaling, scale
from common.errors import SettingsError
from common.messages import RolloutGroup
from common.settings import Settings
from common.templates import load_templates
from learner.prompts import Prompt


def evaluate(
    settings: Settings, model_path: str, *, pool_path: Path | None, draws: int, seed: int, rounds: int, votes: int
) -> Evaluation:
    """Measure a model directory (or hub id) on the held-out prompts of ``eval.prompts``.

    ``pool_path``: a pool made by ``build_pool``, whose first ``draws`` items are judged and repaired. None: the
    model's own answers to the drawn prompts, so such judge figures of two models do not compare.
    ``seed`` varies the prompts that are drawn and all sampling. Raises SettingsError, and SparkError when a figure
    cannot be measured at all.
    """
    if draws < 1 or rounds < 0 or votes < 1:
        raise SettingsError(f"draws={draws}, rounds={rounds}, votes={votes}: need at least 1, 0 and 1")
    settings = _for_model(settings, model_path)
    asking = open_asking(settings, load_templates(settings.templates.path), seed)
    prompts = list(draw(open_held_out(settings, seed), draws))
    pool = None if pool_path is None else read_pool(pool_path)
    with open_sampler(settings) as sampler:
        pool = pool or _own_answers(sampler, asking, prompts, settings)
        return measure(sampler, asking, prompts, pool, rounds=rounds, votes=votes, model=model_path)


def build_pool(settings: Settings, model_path: str, path: Path, size: int, seed: int) -> AnswerPool:
    """Write up to ``size`` held-out prompts with a right and a wrong answer of this model to a new file.

    Each prompt is sampled ``sampling.group_size`` times; the pool is smaller when the prompts run out.
    Raises SettingsError, also when the file exists.
    """
    if path.exists():
        raise SettingsError(f"answer pool {path} exists and is frozen; remove it, or name another file")
    settings = _for_model(settings, model_path)
    asking = open_asking(settings, load_templates(settings.templates.path), seed)
    held_out = open_held_out(settings, seed)
    with open_sampler(settings) as sampler:
        pool = collect(
            sampler,
            asking,
            draw(held_out, len(held_out)),
            size=size,
            samples=settings.sampling.group_size,
            model=model_path,
        )
    write_pool(pool, path)
    return pool


def measure(
    sampler: Sampler,
    asking: Asking,
    prompts: Sequence[Prompt],
    pool: AnswerPool,
    *,
    rounds: int,
    votes: int,
    model: str,
) -> Evaluation:
    """All figures of the model behind ``sampler``."""
    items = pool.items[: len(prompts)]
    pairs = [sources_of(item, asking) for item in items]
    first, figures = _answer(sampler, asking, prompts)
    figures |= measure_pointwise(sampler, asking, pairs)
    figures |= measure_pairwise(sampler, asking, pairs)
    figures |= measure_reflection(sampler, asking, pairs, [item.prompt for item in items])
    scaling = scale(sampler, asking, prompts, first, rounds)
    ballot = _vote(sampler, asking, prompts, first, scaling, votes)
    figures |= _scaling_figures(prompts, scaling, ballot)
    figures |= measure_confidence(sampler, asking, pairs)
    figures |= measure_probes(sampler, asking, items)
    return Evaluation(
        model=model,
        seed=asking.seed,
        temperature=asking.sampling.temperature,
        pool=pool.digest,
        figures=figures,
        counts={"draws": len(prompts), "pool_items": len(items)}
        | _scaling_counts(prompts, scaling, ballot)
        | _cost_counts(sampler.cost),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Ballot:
    """Majority votes of one prompt set: as many as asked for, and as many as cost what test-time scaling did."""

    votes: int
    outcomes: tuple[Outcome, ...]
    equal_votes: int
    equal_outcomes: tuple[Outcome, ...]
    tokens_per_vote: float


def _answer(
    sampler: Sampler, asking: Asking, prompts: Sequence[Prompt]
) -> tuple[list[RolloutGroup | None], dict[str, Figure]]:
    """One sampled answer per prompt, and the accuracy of sampled and of greedy answers."""
    tasks = [asking.solve(prompt, "policy") for prompt in prompts]
    first = sampler(tasks, "policy")
    greedy = sampler([drawn_once(task, temperature=0.0) for task in tasks], "greedy")
    return first, {
        "policy": _accuracy(prompts, [outcome_of(group) for group in first], "policy"),
        "greedy": _accuracy(prompts, [outcome_of(group) for group in greedy], "greedy"),
    }


def _vote(
    sampler: Sampler,
    asking: Asking,
    prompts: Sequence[Prompt],
    first: Sequence[RolloutGroup | None],
    scaling: Scaling,
    votes: int,
) -> Ballot:
    """The first answers vote too, so that voting and test-time scaling start from the same draw."""
    tokens_per_vote = cost_of(first).sampled_tokens / len(prompts)
    equal_votes = votes_for(scaling.cost.sampled_tokens / len(prompts), tokens_per_vote)
    more = max(votes, equal_votes) - 1
    others = sampler([asking.solve(prompt, "majority", n=more) for prompt in prompts], "majority") if more else first
    verdicts = [
        [rollout.verdict for group in (one, other) if group is not None for rollout in group.rollouts]
        for one, other in zip(first, others, strict=True)
    ]
    return Ballot(
        votes=votes,
        outcomes=tuple(majority_outcome(listed[:votes]) for listed in verdicts),
        equal_votes=equal_votes,
        equal_outcomes=tuple(majority_outcome(listed[:equal_votes]) for listed in verdicts),
        tokens_per_vote=tokens_per_vote,
    )


def _scaling_figures(prompts: Sequence[Prompt], scaling: Scaling, ballot: Ballot) -> dict[str, Figure]:
    rounds = {f"tts_r{number}": outcomes for number, outcomes in enumerate(scaling.rounds)}
    last = scaling.rounds[-1]
    shares = rounds | {"tts": last, "majority": ballot.outcomes, "majority_equal": ballot.equal_outcomes}
    return {name: _accuracy(prompts, outcomes, name) for name, outcomes in shares.items()} | {
        "tts_gain": paired_difference(last, scaling.rounds[0], "tts_gain"),
        "tts_vs_majority": paired_difference(last, ballot.equal_outcomes, "tts_vs_majority"),
    }


def _scaling_counts(prompts: Sequence[Prompt], scaling: Scaling, ballot: Ballot) -> dict[str, float]:
    return {
        "tts_fixed": scaling.fixed,
        "tts_broken": scaling.broken,
        "tts_tokens": scaling.cost.sampled_tokens / len(prompts),
        "majority_votes": ballot.votes,
        "majority_tokens": ballot.votes * ballot.tokens_per_vote,
        "majority_equal_votes": ballot.equal_votes,
        "majority_equal_tokens": ballot.equal_votes * ballot.tokens_per_vote,
    }


def _cost_counts(cost: Cost) -> dict[str, float]:
    return {
        "completions": cost.completions,
        "tokens": cost.sampled_tokens,
        "prompt_tokens": cost.prompt_tokens,
        "refused": cost.refused,
        "verifier_failures": cost.verifier_failures,
    }


def _accuracy(prompts: Sequence[Prompt], outcomes: Sequence[Outcome], what: str) -> Figure:
    """A small source is drawn from several times: draws of one question are no independent evidence."""
    by_question: defaultdict[str, list[Outcome]] = defaultdict(list)
    for prompt, outcome in zip(prompts, outcomes, strict=True):
        by_question[prompt.question].append(outcome)
    return clustered_share(by_question.values(), what)


def _own_answers(sampler: Sampler, asking: Asking, prompts: Sequence[Prompt], settings: Settings) -> AnswerPool:
    samples = settings.sampling.group_size
    return collect(sampler, asking, prompts, size=len(prompts), samples=samples, model=settings.model.path)


def _for_model(settings: Settings, path: str) -> Settings:
    """The same settings for another model; a revision belongs to the model it was given for."""
    revision = settings.model.revision if path == settings.model.path else None
    model = settings.model.model_copy(update={"path": path, "revision": revision})
    return settings.model_copy(update={"model": model})
