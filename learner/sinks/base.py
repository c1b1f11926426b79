"""What a sink is, and which ones there are by name."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

from common.errors import SettingsError
from common.settings import Settings
from learner.prompts.readers import importable_from

FORM: Final = "python:MODULE:CLASS"
Metrics = Mapping[str, Any]
"""One line of metrics.jsonl: name -> number. ``policy_version`` is its step."""


class Sink(Protocol):
    """Takes the metrics of one step after the other, in a thread of its own.

    ``opener(settings, policy_version)`` makes one: the run goes on from ``policy_version`` (0: it begins), and steps
    beyond it that an earlier learner recorded are trained again. Any exception switches the sink off, and no more.
    """

    def record(self, metrics: Metrics) -> None:
        """May take its time: the learner does not wait for it."""
        ...

    def close(self) -> None:
        """Nothing more will come."""
        ...


Opener = Callable[[Settings, int], Sink]


def opener(name: str, python_path: Sequence[Path] = ()) -> Opener:
    """The opener of a sink of ``metrics.sinks``. Does not import TensorBoard or Weights & Biases.

    ``python_path``: folders searched for ``python:`` modules. Raises SettingsError when such a reference names nothing
    that can be called.
    """
    if name == "tensorboard":
        from learner.sinks.tensorboard import TensorBoard

        return TensorBoard
    if name == "wandb":
        from learner.sinks.weights_and_biases import WeightsAndBiases

        return WeightsAndBiases
    with importable_from(python_path):
        return _own(name)


def _own(name: str) -> Opener:
    """A class of the user's."""
    _, module, attribute = name.split(":")
    try:
        found: Opener | None = getattr(importlib.import_module(module), attribute, None)
    except Exception as error:
        raise SettingsError(f"metrics.sinks: {name!r}: importing {module} failed: {error!r}") from error
    if not callable(found):
        raise SettingsError(f"metrics.sinks: {name!r}: {module} has no class {attribute}; write {FORM}")
    return found
