"""What a dead letter says, in words that a terminal may show; and whether trying it again makes sense. Pure."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any, Final

from cli.plain import plain
from common.codec import decode
from common.errors import InvalidMessage
from common.keys import LEARNER
from common.messages import RolloutGroup, Task
from common.records import DeadLetter
from common.streams import position

LONGEST_TEXT: Final = 500
"""Characters of a question that are shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """A letter without its payload. ``objective`` is empty where the payload cannot be decoded."""

    id: str
    uid: str
    kind: str
    objective: str
    deliveries: int
    reason: str
    stream: str
    group: str
    size: int

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "died_at_ms": position(self.id)[0]}


def summary(letter: DeadLetter) -> Summary:
    try:
        message = decoded(letter)
        objective: str = (message if isinstance(message, Task) else message.task).objective
    except InvalidMessage:
        objective = ""
    return Summary(
        id=letter.id,
        uid=letter.uid,
        kind=letter.kind,
        objective=objective,
        deliveries=letter.deliveries,
        reason=letter.reason,
        stream=letter.stream,
        group=letter.group,
        size=len(letter.payload),
    )


def decoded(letter: DeadLetter) -> Task | RolloutGroup:
    """The payload. Raises InvalidMessage."""
    return decode(RolloutGroup, letter.payload) if _holds_rollouts(letter) else decode(Task, letter.payload)


def cannot_retry(letter: DeadLetter) -> str | None:
    """Why a letter has to stay where it is; None when it may go back."""
    if letter.kind:
        return None
    return (
        f"cannot be retried: {plain(letter.group)} buried its copy of the group, but its uid lives on at the learner; "
        "drop it when you have seen it"
    )


def dies_again(letter: DeadLetter) -> str | None:
    """A warning where trying again looks useless."""
    if letter.group != LEARNER or not letter.kind:
        return None
    return f"{plain(letter.stream)} gets it back as it is, so it will die again unless the code has changed"


def lines(letter: DeadLetter) -> list[tuple[str, str]]:
    """Name and value of what is worth knowing of the payload; every value is harmless text of one line."""
    size = ("payload", f"{len(letter.payload)} bytes")
    try:
        message = decoded(letter)
    except InvalidMessage as error:
        return [size, ("decode error", plain(str(error), LONGEST_TEXT))]
    if isinstance(message, Task):
        return [size, *_of_task(message)]
    return [size, *_of_task(message.task), *_of_group(message)]


def _of_task(task: Task) -> list[tuple[str, str]]:
    prompt = sum(len(message.text) for message in task.messages)
    sources = " ".join(dict.fromkeys(source.uid for source in task.sources))
    return [
        ("objective", task.objective),
        ("question", plain(task.question, LONGEST_TEXT)),
        ("template", plain(task.template) or "-"),
        ("verifier", plain(task.verifier)),
        ("prompt", f"{len(task.messages)} messages, {prompt} characters"),
        ("sampling", f"{task.sampling.n} completions of up to {task.sampling.max_new_tokens} tokens"),
        ("issued at", f"policy version {task.issued_version}, prompt {task.dataset_index}"),
        *([("sources", plain(sources, LONGEST_TEXT))] if sources else []),
    ]


def _of_group(group: RolloutGroup) -> list[tuple[str, str]]:
    tokens = [len(rollout.completion.token_ids) for rollout in group.rollouts]
    verdicts = Counter(rollout.verdict.status for rollout in group.rollouts)
    return [
        ("actor", plain(group.actor)),
        ("weights", f"epoch {group.weights_epoch}, oldest policy version {group.oldest_version}"),
        ("tokens", f"{len(group.prompt_token_ids)} of the prompt, {sum(tokens)} of {len(tokens)} completions"),
        ("verdicts", ", ".join(f"{number} {status}" for status, number in sorted(verdicts.items()))),
    ]


def _holds_rollouts(letter: DeadLetter) -> bool:
    return ":rollouts:" in letter.stream
