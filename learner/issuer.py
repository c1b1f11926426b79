"""The issuer: dataset prompts to ``tasks:policy``, as many as the admission gate gives room for."""

from __future__ import annotations

import hashlib
from dataclasses import replace

from common.errors import Fenced
from common.messages import ChatMessage, Sampling, Task, TextPart, uid_of
from common.settings import Settings
from common.streams import Streams
from common.templates import TemplateSet
from learner.prompts import Prompt, PromptSource


class Issuer:
    """Moves the dataset cursor and appends the tasks in one atomic call, so a repeat issues nothing twice."""

    def __init__(
        self,
        streams: Streams,
        token: str,
        prompts: PromptSource,
        templates: TemplateSet,
        settings: Settings,
        cursor: int,
    ) -> None:
        self.cursor = cursor
        self.outstanding: dict[str, int] = {}
        """uid -> policy version at issue, of tasks whose group has not arrived yet (those this process issued)."""
        self._streams = streams
        self._token = token
        self._prompts = prompts
        self._templates = templates
        self._settings = settings

    @property
    def exhausted(self) -> bool:
        """All epochs of the prompt source have been issued."""
        return self._prompts.order(self.cursor) is None

    def issue(self, room: int, policy_version: int) -> int:
        """Issue up to ``room`` tasks; returns how many. Raises Fenced."""
        tasks: list[Task] = []
        while len(tasks) < room and (place := self._prompts.order(self.cursor + len(tasks))) is not None:
            epoch, index = place
            tasks.append(self._task(self._prompts[index], epoch, policy_version))
        if tasks:
            expected = self.cursor + len(tasks)
            self.cursor = self._streams.issue(self._token, self.cursor, tasks)
            if self.cursor != expected:
                raise Fenced(f"the cursor of this run is at {self.cursor}, not {expected}: another learner moved it")
            self.outstanding |= {task.uid: policy_version for task in tasks}
        return len(tasks)

    def _task(self, prompt: Prompt, epoch: int, policy_version: int) -> Task:
        settings, sampling = self._settings, self._settings.sampling
        template = self._templates.ref(self._templates.solve)
        drawn = Sampling(
            n=sampling.group_size,
            max_new_tokens=sampling.max_new_tokens,
            temperature=sampling.temperature,
            seed=_seed(settings.run.seed, epoch, prompt.index),
        )
        uid = uid_of(settings.run.name, prompt.index, "solve", template, epoch)
        task = solve_task(prompt, self._templates, uid, drawn)
        return replace(task, dataset_epoch=epoch, issued_version=policy_version)


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
