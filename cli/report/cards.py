"""A sample as a card: what was asked, what was answered, and where it came from and went to. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from cli.report.archive import Related
from cli.report.samples import Pick
from cli.report.words import NEVER, clipped, count, number, signed, visible, when
from common.archive import ArchivedGroup
from common.messages import ImagePart, SourceRef, Task

MOST_TEXT: Final = 1500
"""Characters shown of a prompt or a completion."""
MOST_ANSWER: Final = 200
MARKER: Final = 60
"""Room for the words that stand where a text was cut."""
ENDINGS: Final = {
    "trained": "Trained in optimizer step {step}",
    "filtered": "Filtered at version {step}: all siblings had the same reward, so there was nothing to learn",
    "dropped_stale": "Dropped at version {step}: it was too stale to train on",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One stage of a lineage, with the text that it wrote."""

    title: str
    detail: str = ""
    text: str = ""
    uid: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    title: str
    objective: str
    uid: str
    facts: tuple[tuple[str, str], ...]
    prompt: str
    completion: str
    right: bool
    verdict: str
    lineage: tuple[Stage, ...]


def card(title: str, pick: Pick, related: Related) -> Card:
    group, rollout = pick.record.group, pick.rollout
    return Card(
        title=title,
        objective=group.task.objective,
        uid=group.uid,
        facts=tuple(_facts(pick)),
        prompt=_text(prompt_of(group.task)),
        completion=_text(rollout.completion.text),
        right=rollout.verdict.correct,
        verdict=_verdict(pick),
        lineage=tuple(_lineage(pick, related)),
    )


def prompt_of(task: Task) -> str:
    """The messages as one text, with roles where there are several."""
    texts = [(message.role, "".join(map(_part, message.content))) for message in task.messages]
    return texts[0][1] if len(texts) == 1 else "\n\n".join(f"{role}: {text}" for role, text in texts)


def _part(part: object) -> str:
    return f"[image {part.sha256[:12]}]" if isinstance(part, ImagePart) else str(getattr(part, "text", ""))


def _text(text: str, most: int = MOST_TEXT) -> str:
    """Cut before it is made visible, which may take long, and after it, which may make it longer."""
    return clipped(visible(clipped(text, most)), most + MARKER)


def _answer(text: str | None) -> str:
    return NEVER if text is None else _text(text, MOST_ANSWER).replace("\n", " ")


def _verdict(pick: Pick) -> str:
    verdict, expected = pick.rollout.verdict, _answer(pick.record.group.task.answer)
    if verdict.status == "no_answer":
        return f"No answer could be read ({_answer(verdict.detail) or 'no detail'}); expected {expected}."
    if verdict.status != "ok":
        return f"Not scored: {verdict.status}."
    word = "Right" if verdict.correct else "Wrong"
    return f"{word}: answered {_answer(verdict.answer)}, expected {expected}, by {_answer(verdict.verifier)}."


def _facts(pick: Pick) -> Iterator[tuple[str, str]]:
    record, verdict = pick.record, pick.rollout.verdict
    yield "Version", number(record.policy_version)
    yield "Reward", f"{verdict.reward:.2f}" if verdict.scored else NEVER
    yield "Siblings right", siblings_right(record)
    if record.outcome == "trained":
        yield "Advantage", signed(record.advantages[pick.sample])
    if record.loss is not None:
        yield "Part of the loss", f"{record.loss[pick.sample]:+.2g}".replace("-", "−")
    yield "Tokens", number(len(pick.rollout.completion.token_ids))
    yield "Staleness", number(record.staleness)
    if record.content_staleness is not None:
        yield "Content staleness", number(record.content_staleness)


def siblings_right(record: ArchivedGroup) -> str:
    right = sum(rollout.verdict.correct for rollout in record.group.rollouts)
    return f"{right} of {len(record.group.rollouts)}"


def _lineage(pick: Pick, related: Related) -> Iterator[Stage]:
    record, task = pick.record, pick.record.group.task
    for ref in task.sources:
        yield _source(ref, related.sources.get(ref.uid))
    yield _issued(task)
    yield Stage(
        title=f"Sampled by {_answer(record.group.actor)} with {versions(pick)}",
        detail=f"{moment(record.group.generated_at)}; {siblings_right(record)} siblings right",
        uid=record.uid,
    )
    yield _ending(record)
    for judged in related.judged.get(record.uid, []):
        yield _judgement(judged, pick)


def _source(ref: SourceRef, source: ArchivedGroup | None) -> Stage:
    word = "right" if ref.correct else "wrong"
    title = f"Shown answer: {word}, written by version {ref.policy_version}"
    if source is None or ref.sample >= len(source.group.rollouts):
        return Stage(title=title, detail="its group is not in the archive any more", uid=ref.uid)
    return Stage(
        title=title,
        detail=f"completion {ref.sample + 1} of {len(source.group.rollouts)}, sampled by {_answer(source.group.actor)}",
        text=_text(source.group.rollouts[ref.sample].completion.text),
        uid=ref.uid,
    )


def _issued(task: Task) -> Stage:
    if task.sources:
        detail = f"template {_answer(task.template)}" if task.template else ""
        return Stage(title=f"Made a {task.objective} task at version {task.issued_version}", detail=detail)
    again = f", issued again {count(task.attempt, 'time')}" if task.attempt else ""
    return Stage(
        title=f"Issued at version {task.issued_version}",
        detail=f"prompt {task.dataset_index} of the source, in pass {task.dataset_epoch + 1}{again}",
    )


def versions(pick: Pick) -> str:
    """The policy versions that wrote the completion, and from which token on."""
    spans = pick.rollout.completion.spans
    first = f"version {spans[0][0]}"
    return ", ".join([first, *(f"version {version} from token {start}" for version, start in spans[1:])])


def _ending(record: ArchivedGroup) -> Stage:
    title = ENDINGS.get(record.outcome, "Ended as {outcome}")
    return Stage(
        title=title.format(step=record.policy_version, outcome=record.outcome),
        detail=f"{moment(record.at)}; staleness {record.staleness}",
    )


def _judgement(record: ArchivedGroup, pick: Pick) -> Stage:
    task = record.group.task
    samples = [ref.sample for ref in task.sources if ref.uid == pick.record.uid]
    shows = "this completion" if pick.sample in samples else f"completion {samples[0] + 1}"
    word = "repairs" if task.objective == "reflect" else "verdicts"
    return Stage(
        title=f"Recycled ({task.objective}), shows {shows}: {siblings_right(record)} {word} right",
        detail=f"{record.outcome.replace('_', ' ')} at version {record.policy_version}",
        uid=record.uid,
    )


def moment(at: float) -> str:
    """A time of a message: it came from another machine, so any number is possible."""
    try:
        return when(datetime.fromtimestamp(at, UTC))
    except (ValueError, OverflowError, OSError):
        return "at an impossible time"
