"""The forms of ``prompts.source``, one reader each. Optional packages are imported by the reader that needs them."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common.errors import SettingsError
from common.settings import Prompts
from learner.prompts.gym import GymPrompts
from learner.prompts.hub import load_rows
from learner.prompts.records import Prompt, prompt_from_record, record_from_row


def read_jsonl(prompts: Prompts) -> list[Prompt]:
    """One JSON object a line; blank lines are ignored."""
    if prompts.args:
        raise SettingsError(f"prompts.args={prompts.args!r}: a JSONL file takes no arguments; remove them")
    try:
        lines = Path(prompts.source).read_bytes().split(b"\n")
    except OSError as error:
        raise SettingsError(f"prompts.source={prompts.source!r} cannot be read: {error.strerror}") from None
    numbered = ((number, line) for number, line in enumerate(lines, 1) if line.strip())
    return [
        prompt_from_record(_load_json(line, where), index=index, verifier=prompts.verifier, where=where)
        for index, (number, line) in enumerate(numbered)
        for where in [f"{prompts.source}, line {number}"]
    ]


def _load_json(line: bytes, where: str) -> object:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:  # ValueError: not JSON, or not UTF-8
        raise SettingsError(f"{where}: not a line of JSON: {error}") from None


def read_dataset(prompts: Prompts, python_path: Sequence[Path]) -> list[Prompt]:
    """``dataset:NAME_OR_DIR[:SPLIT]`` through Hugging Face datasets; columns are the keys of the JSONL form, or
    those that ``columns`` names."""
    name, _, split = prompts.source.removeprefix("dataset:").partition(":")
    rows = load_rows(name, split or None, prompts.args, python_path)
    records = (record_from_row(row, prompts.columns, prompts.source) for row in rows)
    return _prompts_from(records, prompts)


def read_reasoning_gym(prompts: Prompts, seed: int) -> GymPrompts:
    """``reasoning-gym:TASK``; ``args`` are the task's parameters with ``size`` and ``seed`` (the run's by default)."""
    return GymPrompts(prompts.source.removeprefix("reasoning-gym:"), {"seed": seed % 2**32, **prompts.args})


def read_python(prompts: Prompts, python_path: Sequence[Path]) -> list[Prompt]:
    """``python:MODULE:FUNCTION``, called with ``args``; it returns records of the JSONL form.

    It must return the same records every time: a resumed run finds its prompts by position.
    """
    _, module, function = prompts.source.split(":")
    with importable_from(python_path):
        records = _call(_find(module, function, prompts.source), prompts)
    if isinstance(records, str | bytes | Mapping) or not isinstance(records, Iterable):
        raise SettingsError(f"{prompts.source} returned {type(records).__name__}, not a sequence of records")
    return _prompts_from(records, prompts)


def _find(module: str, function: str, source: str) -> Callable[..., object]:
    try:
        found = getattr(importlib.import_module(module), function, None)
    except Exception as error:
        raise SettingsError(f"{source}: cannot import {module}: {type(error).__name__}: {error}") from error
    if not callable(found):
        raise SettingsError(f"{source}: {module} has no function {function}")
    function_found: Callable[..., object] = found
    return function_found


def _call(function: Callable[..., object], prompts: Prompts) -> object:
    try:
        result = function(**prompts.args)
        # A generator runs here, where its own imports and errors still belong to the call.
        return list(result) if isinstance(result, Iterator) else result
    except Exception as error:
        raise SettingsError(
            f"{prompts.source} with arguments {prompts.args!r} raised {type(error).__name__}: {error}"
        ) from error


@contextmanager
def importable_from(folders: Sequence[Path]) -> Iterator[None]:
    """Search these folders first; only now, so that their modules shadow nothing imported later."""
    before = list(sys.path)
    sys.path[:0] = [str(folder) for folder in folders]
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path[:] = before


def _prompts_from(records: Iterable[Any], prompts: Prompts) -> list[Prompt]:
    return [
        prompt_from_record(record, index=index, verifier=prompts.verifier, where=f"{prompts.source}, record {index}")
        for index, record in enumerate(records)
    ]
