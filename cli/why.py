"""`spark why`: the lineage of a uid both ways, with texts, versions, times and what it did to the weights."""

from __future__ import annotations

import contextlib
import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.text import Text
from rich.tree import Tree

from cli.ancestry import Ancestry, Evidence, Known, in_words
from cli.as_json import as_json as to_json
from cli.plain import plain
from cli.rundir import RunDirectory, open_run
from cli.status import streams_of
from cli.wording import clock, fields, label, mark, number, quoted, short, span, versions
from common.archive import FOLDER, ArchivedGroup, ArchiveReader
from common.entries import Entries
from common.errors import SettingsError, SparkError
from common.messages import Rollout, RolloutGroup, Task

EXCERPT: Final = 400
"""Characters of a text that are shown; ``--json`` has it whole."""
MOST_NAMED: Final = 6
"""Uids named when a prefix fits several."""


def why(path: Path, uid: str, *, as_json: bool) -> None:
    """Print the lineage. Raises SettingsError for a uid that is nowhere, and for a prefix of several."""
    run = open_run(path)
    with _evidence(run) as (evidence, looked):
        found = evidence.ancestry(_resolved(evidence, uid, looked))
        looked += _gaps(evidence, found)
    if as_json:
        print(json.dumps({**to_json(found), "looked_through": looked}))
        return
    console = Console(highlight=False)
    if not console.is_terminal:  # a file has no width
        console.width = 2 * EXCERPT
    console.print(tree(found, time.time()), soft_wrap=False)


@contextlib.contextmanager
def _evidence(run: RunDirectory) -> Iterator[tuple[Evidence, list[str]]]:
    """The evidence, and what was looked through. A server that cannot be asked is said, and done without."""
    archive, events = ArchiveReader(run.path / FOLDER), run.path / "events"
    looked = [f"the archive {archive.directory}", f"the event log {events}"]
    with contextlib.ExitStack() as stack:
        try:
            streams = stack.enter_context(streams_of(run))
            evidence = Evidence(archive, Entries(streams.client, run.settings.run.name, give_up_s=5.0), events)
        except SparkError as error:
            looked.append(f"not its streams, since {error}")
            evidence = Evidence(archive, None, events)
        else:
            looked.append("its streams")
        yield evidence, looked


def _resolved(evidence: Evidence, asked: str, looked: Sequence[str]) -> str:
    """``asked``: also as other screens write it, ``UID#SIBLING``, or in capitals."""
    prefix = asked.strip().partition("#")[0].lower()
    if not prefix:
        raise SettingsError("give a uid, or its beginning; `spark tail RUN groups` shows those of the newest groups")
    uids = evidence.uids(prefix)
    if len(uids) == 1:
        return uids[0]
    if uids:
        named = ", ".join(map(plain, uids[:MOST_NAMED])) + (", ..." if len(uids) > MOST_NAMED else "")
        raise SettingsError(f"{len(uids)} uids begin with {plain(prefix, 40)!r}: {named}; give more of it")
    raise SettingsError(f"no uid begins with {plain(asked, 40)!r}; looked through {', '.join(looked)}")


def _gaps(evidence: Evidence, found: Ancestry) -> list[str]:
    unknown = [one.uid for one in (found.subject, *found.sources, *found.made) if one.task is None]
    gaps = [f"what was in {uid} is neither in the archive (any more) nor on a stream" for uid in unknown]
    return gaps + ([f"{evidence.archive.unreadable} records cannot be read"] if evidence.archive.unreadable else [])


# -- a tree for people ------------------------------------------------------------------------------------------


def tree(found: Ancestry, now: float) -> Tree:
    """The subject with all that is known, its sources in short, and its judge tasks under the answer they show."""
    subject = found.subject
    root = Tree(_title(subject, full=True))
    for source in found.sources:
        _add_source(root, source, subject.task)
    if subject.task is not None:
        _add_task(root, subject.task)
    _add_life(root, subject, now)
    branches = _add_rollouts(root, subject)
    for judge in found.made:
        shown = [source.sample for source in judge.task.sources if source.uid == subject.uid] if judge.task else []
        _add_judge(branches.get(min(shown, default=-1), root), judge, now)
    return root


def _title(known: Known, *, full: bool = False) -> Text:
    objective = known.task.objective if known.task else "unknown"
    name = plain(known.uid) if full else short(known.uid)
    return Text.assemble((name, "bold"), f"  {objective}  ", (_fate(known), _style(known)))


def _fate(known: Known) -> str:
    """How it ended, or where it is."""
    if known.record is not None:
        record = known.record
        if record.outcome == "trained":
            return f"trained in step {record.policy_version}"
        return f"{record.outcome} at v{record.policy_version}"
    ends = [event.fields.get("outcome", "") for event in known.history if event.event == "ended"]
    if ends:
        return plain(ends[-1].partition(":")[0])
    return "in flight" if known.places or known.history else "not known any more"


def _style(known: Known) -> str:
    fate = _fate(known)
    return "green" if fate.startswith("trained") else "red" if fate.startswith("dead") else "yellow"


def _add_task(branch: Tree, task: Task) -> None:
    for message in task.messages:
        branch.add(Text.assemble((f"{message.role}: ", "dim"), quoted(message.text, EXCERPT)))
    expected = f"{quoted(task.answer, EXCERPT)} by {plain(task.verifier)}"
    branch.add(Text.assemble(("right answer: ", "dim"), expected))


def _add_source(root: Tree, source: Known, judge: Task | None) -> None:
    """What a judge task was made from: the prompt, and the answers shown."""
    branch = root.add(Text.assemble(("made from ", "dim"), _title(source)))
    if source.task is not None:
        branch.add(Text.assemble(("asked: ", "dim"), quoted(source.task.question, EXCERPT)))
    for shown in [ref for ref in judge.sources if ref.uid == source.uid] if judge else []:
        said = f"#{shown.sample}, v{shown.policy_version}, {'right' if shown.correct else 'wrong'}"
        text = quoted(source.group.rollouts[shown.sample].completion.text, EXCERPT) if source.group else ""
        branch.add(Text.assemble(("shows ", "dim"), f"{said}  ", text))


def _add_life(branch: Tree, known: Known, now: float) -> None:
    """When what happened, oldest first, as the clocks of those who wrote it down say; and where it is now."""
    group, record = known.group, known.record
    life = [(event.at, _event_words(event.event, event.fields, known.task)) for event in known.history]
    if group is not None:
        life.append((group.generated_at, _generated(group)))
    if record is not None:
        life.append((record.at, _consumed(known, record)))
    for at, words in sorted(life, key=lambda one: one[0]):
        branch.add(Text.assemble((f"{clock(at, now)} ", "dim"), words))
    for words in filter(None, map(in_words, known.places)):
        branch.add(Text.assemble(("now ", "dim"), (plain(words), "yellow")))


def _event_words(event: str, said: Mapping[str, str], task: Task | None) -> str:
    if event == "issued" and task is not None:
        place = f"prompt {task.dataset_index}, pass {task.dataset_epoch}, " if task.dataset_index >= 0 else ""
        again = f", again ({task.attempt})" if task.attempt else ""
        return f"issued at v{task.issued_version}: {place}template {plain(task.template) or '-'}{again}"
    if event == "ended":
        reason = f": {plain(said['reason'], EXCERPT)}" if said.get("reason") else ""
        return f"on record as {plain(said.get('outcome', '?').partition(':')[0])}{reason}"
    return f"{plain(event)} {fields(dict(said))}"


def _generated(group: RolloutGroup) -> str:
    return (
        f"generated by {plain(group.actor)} with weights {versions(group.rollouts)} of epoch {group.weights_epoch}, "
        f"{len(group.rollouts)} completions"
    )


def _consumed(known: Known, record: ArchivedGroup) -> str:
    stale = f"staleness {record.staleness}"
    content = "" if record.content_staleness is None else f", of what it shows {record.content_staleness}"
    loss = "" if record.loss is None else f", adds {number(sum(record.loss))} to the loss"
    return f"{_fate(known)}: {stale}{content}{loss}"


def _add_rollouts(root: Tree, known: Known) -> dict[int, Tree]:
    """Sibling -> its branch."""
    if known.group is None:
        return {}
    return {index: root.add(_rollout(known, index, one)) for index, one in enumerate(known.group.rollouts)}


def _rollout(known: Known, index: int, rollout: Rollout) -> Text:
    verdict, completion, record = rollout.verdict, rollout.completion, known.record
    style = "green" if verdict.correct else "red" if verdict.scored else "yellow"
    spans = [version for version, _ in completion.spans]
    told = f"  {span(spans[0], spans[-1])}  {len(completion.token_ids)} tokens, {completion.finish_reason}"
    if record is not None and record.outcome == "trained":
        told += f"  advantage {record.advantages[index]:+.3g}"
    if record is not None and record.loss is not None:
        told += f"  loss {number(record.loss[index])}"
    answer = "" if verdict.answer is None else f"  answered {quoted(verdict.answer, EXCERPT)}"
    detail = f"  {plain(verdict.detail, EXCERPT)}" if verdict.detail else ""
    words = {"ok": f"reward {mark(verdict)}"}.get(verdict.status, verdict.status)
    return Text.assemble(
        f"#{index} ", (words, style), (told, "dim"), answer, detail, f"  {quoted(completion.text, EXCERPT)}"
    )


def _said(rollout: Rollout) -> str:
    """Its answer in quotes; without one only why there is none, which nobody said."""
    answer = rollout.verdict.answer
    return quoted(answer, 60) if answer else rollout.verdict.status.replace("_", " ")


def _add_judge(branch: Tree, judge: Known, now: float) -> None:
    """A judge task made of an answer: what was said about it, and what became of that."""
    about = f" ({label(judge.task)})" if judge.task and label(judge.task) else ""
    node = branch.add(Text.assemble(("made into ", "dim"), _title(judge), about))
    if judge.group is not None:
        said = Counter(_said(rollout) for rollout in judge.group.rollouts)
        words = ", ".join(f"{times} x {answer}" for answer, times in said.most_common(MOST_NAMED))
        right = sum(rollout.verdict.correct for rollout in judge.group.rollouts)
        node.add(f"said {words}; {right} of {len(judge.group.rollouts)} right")
    _add_life(node, judge, now)
