"""The issuer: dataset prompts to ``tasks:policy``, as many as the admission gate gives room for."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Final

import structlog

from common.codec import decode
from common.consumer import Consumer
from common.errors import Fenced, InvalidMessage
from common.keys import ACTORS, LEARNER
from common.messages import ChatMessage, Sampling, Task, TextPart, uid_of
from common.settings import Settings
from common.streams import Delivery, Product, Streams
from common.telemetry.quiet import QUIET, Traces
from common.templates import TemplateSet
from learner.fence import Fence
from learner.prompts import Prompt, PromptSource

log = structlog.get_logger()

READ_COUNT: Final = 64


class Issuer:
    """Moves the dataset cursor and appends the tasks in one atomic call, so a repeat issues nothing twice.

    Tasks that were issued by a lost line of weights, for versions that do not exist again yet, come back on the stream
    ``returned``. They go out again before anything new, in the order of the prompts, when there is room.
    """

    def __init__(
        self,
        streams: Streams,
        fence: Fence,
        prompts: PromptSource,
        templates: TemplateSet,
        settings: Settings,
        *,
        cursor: int,
        returned: Consumer,
        inherited: set[str] | None = None,
        reached: int = 0,
        traces: Traces = QUIET.traces,
    ) -> None:
        """``inherited``: uids in flight to be found again (arrived, returned or dead) before anything is issued.

        ``reached``: by the checkpoint that this learner goes on from.
        """
        self.cursor = cursor
        self.reached = max(cursor, reached)
        """Above every prompt that was ever issued, or may have been. A server that lost its last second has a lower
        cursor, but what it forgot may have ended by then."""
        self.outstanding: dict[str, int] = {}
        """uid -> policy version at issue, of tasks whose group has not arrived yet (those this process issued)."""
        self.came_back: dict[str, int] = {}
        """uid -> position, of tasks that came back and have not arrived since: parked, or issued again."""
        self.inherited = inherited or set()
        self._parked: dict[str, tuple[Delivery, Task]] = {}
        self._streams = streams
        self._fence = fence
        self._prompts = prompts
        self._templates = templates
        self._settings = settings
        self._returned = returned
        self._traces = traces

    @property
    def parked(self) -> int:
        """Tasks in hand that are in flight, but with no actor and not in a batch."""
        return len(self._parked)

    @property
    def exhausted(self) -> bool:
        """All epochs of the prompt source have been issued."""
        return not self._parked and self._prompts.order(self.cursor) is None

    def forget(self, uid: str) -> None:
        """The task is on nobody's way any more: its group arrived, or it died."""
        self.outstanding.pop(uid, None)
        self.came_back.pop(uid, None)
        self.inherited.discard(uid)

    def adopt(self, *, waiting: bool = False) -> None:
        """Take over what older epochs have read and not issued again, or still claim before they notice.

        ``waiting``: for what came back. A server that loses its tail may forget some of it for good.
        """
        self._returned.adopt()
        if self.inherited or waiting:
            flying = in_flight(self._streams)
            self.inherited &= flying
            self.came_back = {uid: position for uid, position in self.came_back.items() if uid in flying}

    def take_back(self) -> None:
        """Collect what was returned. A task that comes twice is the same one: the server lost where it was."""
        for delivery in self._returned.claim(READ_COUNT):
            try:
                task = decode(Task, delivery.payload)
            except InvalidMessage as error:
                self._streams.bury(delivery, LEARNER, str(error), "policy")
                self._returned.done(delivery)
                log.warning("issuer.task_dead", uid=delivery.uid, reason=str(error))
                continue
            self.forget(task.uid)
            self.came_back[task.uid] = task.position
            self._parked[task.uid] = (delivery, task)

    def parked_before(self, position: int) -> int:
        """Tasks in hand that come before this place in the order of the prompts."""
        return sum(task.position < position for _, task in self._parked.values())

    def issue(self, room: int, policy_version: int, *, new: bool = True) -> int:
        """Issue up to ``room`` tasks; returns how many of them are new. Raises Fenced, ServerFull."""
        if self.inherited:
            return 0
        again = self._issue_again(room, policy_version)
        return self._issue_new(room - again, policy_version) if new else 0

    def _issue_again(self, room: int, policy_version: int) -> int:
        tasks = self._streams.keys.tasks("policy")
        due = sorted(self._parked.values(), key=lambda parked: parked[1].position)[: max(0, room)]
        for delivery, task in due:
            again = replace(task, issued_version=policy_version, attempt=task.attempt + 1)
            issue = self._traces.issue([again], policy_version)
            product = Product.of(task.uid, issue.tasks[0])
            self._streams.transfer(delivery.stream, LEARNER, tasks, [(delivery.id, [product])])
            issue.told()
            self._returned.done(delivery)
            del self._parked[task.uid]
            self.outstanding[task.uid] = policy_version
        return len(due)

    def _issue_new(self, room: int, policy_version: int) -> int:
        if room <= 0:
            return 0
        tasks: list[Task] = []  # none at the end of the prompts: then this asks whether the server has all of them
        while len(tasks) < room and (task := self._task(self.cursor + len(tasks), policy_version)) is not None:
            tasks.append(task)
        expected, before = self.cursor + len(tasks), self.cursor
        self.reached = max(self.reached, expected)  # before the call, whose reply may be lost
        issue = self._traces.issue(tasks, policy_version)
        self.cursor = self._fence.hold(lambda: self._streams.issue(self._fence.token, before, issue.tasks))
        if self.cursor < before:
            log.warning("issuer.server_lost_its_tail", cursor=before, of_server=self.cursor)
            return self._issue_new(room, policy_version)  # at once: no batch may be cut as if they were not coming
        if self.cursor > self.reached:
            raise Fenced(f"the cursor of this run is at {self.cursor}, not {expected}: another learner moved it")
        if self.cursor != expected:  # it issued some when it was asked before; the reply was lost, and then it was full
            return self._issue_new(before + room - self.cursor, policy_version)
        issue.told()
        self.outstanding |= {task.uid: policy_version for task in tasks}
        return len(tasks)

    def _task(self, position: int, policy_version: int) -> Task | None:
        return task_at(position, self._prompts, self._templates, self._settings, policy_version=policy_version)


def task_at(
    position: int, prompts: PromptSource, templates: TemplateSet, settings: Settings, *, policy_version: int
) -> Task | None:
    """The task at a place in the order of the prompts: always the same, with the same uid. None beyond the last one."""
    if (place := prompts.order(position)) is None:
        return None
    epoch, index = place
    prompt, sampling, run = prompts[index], settings.sampling, settings.run
    template = templates.ref(templates.solve)
    drawn = Sampling(
        n=sampling.group_size,
        max_new_tokens=sampling.max_new_tokens,
        temperature=sampling.temperature,
        seed=_seed(run.seed, epoch, prompt.index),
    )
    uid = uid_of(run.name, prompt.index, "solve", template, epoch)
    task = solve_task(prompt, templates, uid, drawn)
    return replace(task, dataset_epoch=epoch, position=position, issued_version=policy_version)


def in_flight(streams: Streams) -> set[str]:
    """Uids of the policy tasks in flight. Entries move on while this reads, but only to streams that it reads later."""
    keys = streams.keys
    places = ((keys.tasks("policy"), ACTORS), (keys.rollouts("policy"), LEARNER), (keys.returned, LEARNER))
    return {uid for stream, group in places for uid in streams.unacked(stream, group)}


def solve_task(prompt: Prompt, templates: TemplateSet, uid: str, sampling: Sampling) -> Task:
    """A dataset prompt as a task, for training or evaluation."""
    return Task(
        uid=uid,
        objective="solve",
        messages=solve_messages(prompt, templates),
        question=prompt.question,
        answer=prompt.answer,
        verifier=prompt.verifier,
        verifier_args=prompt.verifier_args,
        sampling=sampling,
        template=templates.ref(templates.solve),
        dataset_index=prompt.index,
    )


def solve_messages(prompt: Prompt, templates: TemplateSet) -> tuple[ChatMessage, ...]:
    """The prompt's chat with the question of its last turn put into the solve template; images stay."""
    *earlier, last = prompt.messages
    images = tuple(part for part in last.content if not isinstance(part, TextPart))
    text = TextPart(text=templates.solve.render(prompt.question))
    return (*earlier, ChatMessage(role="user", content=(*images, text)))


def _seed(*parts: int) -> int:
    """63 bits that depend on all parts: the sampling of a prompt does not depend on when it is issued."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
