"""The actor of ``bench.weights``: generates without end and says when each version's first token was there.

``python -m bench.weight_actor RUN_DIR/config.toml`` prints a JSON line per version; the monotonic clock is that of all
processes of the host.
"""

from __future__ import annotations

import json
import os
import sys
import time
from contextlib import closing
from itertools import count
from pathlib import Path
from typing import Final

import numpy as np

from actors.engine import Engine, Request
from actors.engines import open_engine
from actors.policy import PolicyFollower
from common.messages import Sampling
from common.process import open_streams
from common.settings_sources import load_settings
from common.weights_source import WeightSource

NEVER: Final = 10**9
PROMPT: Final = np.arange(1, 9, dtype=np.int32)


def main() -> None:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    settings = load_settings(Path(sys.argv[1]))
    streams = open_streams(settings)
    with closing(WeightSource.of(settings)) as source:
        engine = open_engine(settings)
        policy = PolicyFollower(streams, engine, max_staleness=NEVER, source=source)
        said = -1
        for number in count():
            policy.follow()
            if engine.policy_version < 0:
                continue
            generate(engine, number)
            if engine.policy_version != said:
                said = engine.policy_version
                print(json.dumps({"version": said, "at": time.monotonic()}), flush=True)


def generate(engine: Engine, number: int) -> None:
    """One token more, of a group of four."""
    if not engine.groups_in_flight:
        sampling = Sampling(n=4, temperature=1.0, max_new_tokens=64, seed=number)
        engine.add(Request(key=str(number), prompt_token_ids=PROMPT, sampling=sampling))
    engine.step()


if __name__ == "__main__":
    main()
