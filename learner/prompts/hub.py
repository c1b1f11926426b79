"""Rows of a Hugging Face dataset: a folder on disk, or a name for the hub (and its local cache)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import structlog

from common.errors import SettingsError

log = structlog.get_logger(__name__)


def load_rows(
    name: str, split: str | None, args: Mapping[str, Any], folders: Sequence[Path]
) -> Iterable[Mapping[str, object]]:
    """Rows as dicts.

    A folder (as it is written, or inside one of ``folders``) never causes network traffic; any other name is
    for the hub, and ``args`` (such as ``name`` or ``revision``) go to ``load_dataset``. Raises SettingsError.
    """
    try:
        import datasets
    except ImportError:
        raise SettingsError(f"dataset:{name} needs the package datasets; install spark-rl[datasets]") from None
    folder = _folder(name, folders)
    try:
        found = _from_folder(datasets, folder, args) if folder else _from_hub(datasets, name, args)
    except (OSError, TypeError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise SettingsError(f"dataset:{name} cannot be loaded: {_first_sentence(error)}") from error
    splits = found if isinstance(found, dict) else {str(found.split or "train"): found}
    rows: Iterable[Mapping[str, object]] = splits[_choose_split(tuple(splits), split, name)]
    return rows


def _folder(name: str, folders: Sequence[Path]) -> Path | None:
    found = next((path for path in (*(root / name for root in folders), Path(name)) if path.is_dir()), None)
    if found is None and name.startswith((".", "/", "~")):
        raise SettingsError(f"dataset:{name}: there is no such folder")
    return found


def _from_folder(datasets: Any, folder: Path, args: Mapping[str, Any]) -> Any:
    saved = (folder / "dataset_info.json").is_file() or (folder / "dataset_dict.json").is_file()
    if not saved:  # data files (JSON, Parquet, CSV), read by their extension
        return datasets.load_dataset(str(folder), **args)
    if args:
        raise SettingsError(f"prompts.args={dict(args)!r}: a saved dataset takes no arguments; remove them")
    return datasets.load_from_disk(str(folder))


def _from_hub(datasets: Any, name: str, args: Mapping[str, Any]) -> Any:
    log.info("prompts.from_hub", dataset=name, **{f"arg_{key}": value for key, value in args.items()})
    return datasets.load_dataset(name, **args)


def _choose_split(splits: Sequence[str], split: str | None, name: str) -> str:
    if split is None:
        split = splits[0] if len(splits) == 1 else "train"
    if split not in splits:
        raise SettingsError(f"dataset:{name} has no split {split!r}; its splits: {', '.join(splits)}")
    return split


def _first_sentence(error: Exception) -> str:
    return str(error).split("\n")[0] or type(error).__name__
