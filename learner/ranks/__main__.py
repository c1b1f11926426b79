"""A rank that the learner on this host started: ``python -m learner.ranks``, with the settings on standard input."""

from __future__ import annotations

import os
import sys

from common import log
from learner.ranks.children import settings_from_parent
from learner.ranks.place import place_of


def main() -> None:
    settings = settings_from_parent()
    place = place_of(os.environ, settings.learner.processes)
    log.configure(
        file=settings.run.directory / "logs" / "learner.log",
        run=settings.run.name,
        role="learner",
        member="learner",
        rank=place.rank,
    )
    from learner.engines import follow_rank

    sys.exit(follow_rank(settings, place))


if __name__ == "__main__":
    main()
