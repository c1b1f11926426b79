"""Reads a run's group archive for the report, within bounds: the newest groups, and those that some of them name."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from common.archive import ArchivedGroup, ArchiveReader, blocks_of, segments

FOLDER: Final = "groups"
MOST_GROUPS: Final = 4000
MOST_TOKENS: Final = 20_000_000
"""Sampled tokens that are looked through at most, as with the groups above: a report takes seconds."""
MOST_JUDGEMENTS: Final = 4
"""Judge groups shown of one source."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Related:
    """What the shown groups were made from, and what was made from them."""

    sources: dict[str, ArchivedGroup]
    """By uid."""
    judged: dict[str, list[ArchivedGroup]]
    """By uid of the source, in the order of their ends; the newest few."""


def newest(directory: Path) -> Iterator[ArchivedGroup]:
    """The newest groups of the archive, the newest first, each once."""
    tokens = 0
    for groups, record in enumerate(ArchiveReader(directory).newest_first(), start=1):
        yield record
        tokens += sum(len(rollout.completion.token_ids) for rollout in record.group.rollouts)
        if groups >= MOST_GROUPS or tokens >= MOST_TOKENS:
            return


def related(directory: Path, sources: Collection[str], judged: Collection[str]) -> Related:
    """The groups of the uids ``sources``, and the judge groups made from the uids ``judged``, in one go."""
    reader = ArchiveReader(directory)
    found: dict[str, ArchivedGroup] = {}
    made: dict[str, dict[str, ArchivedGroup]] = {uid: {} for uid in judged}
    for block in (block for path in segments(directory) for block in blocks_of(path)):
        wanted = [e for e in block.entries if e.uid in sources or not made.keys().isdisjoint(e.sources)]
        for record in reader.read(block, wanted) if wanted else ():
            if record.uid in sources:
                found[record.uid] = record  # of a repeated uid the newest counts
            for uid in {ref.uid for ref in record.group.task.sources} & made.keys():
                made[uid][record.uid] = record
    in_order = {uid: sorted(records.values(), key=lambda record: record.at) for uid, records in made.items()}
    return Related(sources=found, judged={uid: records[-MOST_JUDGEMENTS:] for uid, records in in_order.items()})
