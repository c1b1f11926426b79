"""Where settings come from: run file (TOML) < environment (``SPARK_SECTION__KEY``) < command line.

A preset stands just below the source that names it, as if its values were written at the top of that source.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qsl, urlencode

from pydantic import BaseModel, SecretStr, ValidationError
from pydantic_settings import BaseSettings, InitSettingsSource, PydanticBaseSettingsSource
from pydantic_settings.exceptions import SettingsError as UnreadableSource

from common.errors import SettingsError
from common.settings import CONFIGS, Redis, Settings

PATH_KEYS: Final = (
    ("model", "path"),
    ("prompts", "source"),
    ("eval", "prompts"),
    ("templates", "path"),
    ("redis", "url_file"),
    ("redis", "tls_ca_file"),
    ("redis", "tls_cert_file"),
    ("redis", "tls_key_file"),
)
DATASET: Final = "dataset:"

LIKE_OURS: Final = 0.8
"""Likeness, of 1, from which a name is a misspelt one of ours; compared without the prefix, which all share."""


def load_settings(run_file: Path | None, overrides: Iterable[str] = ()) -> Settings:
    """Read preset, run file (if there is one), environment and ``section.key=value`` overrides.

    Paths in them become absolute.
    Raises SettingsError with one sentence that names the key, the value and the nearest known key.
    """
    file_values: dict[str, Any] = {}
    if run_file is not None:
        file_values = _read_toml(run_file)
        _make_paths_absolute(file_values, run_file.resolve().parent)
    override_values = _parse_overrides(overrides)
    _forget_arguments_of_replaced_sources(file_values, override_values)
    if preset := override_values.get("preset"):
        override_values = _merge(_preset(preset), override_values)
    elif preset := os.environ.get("SPARK_PRESET"):
        file_values = _merge(file_values, _preset(preset))
    else:
        preset = file_values.get("preset", "spark")
        file_values = _merge(_preset(preset), file_values)
    file_values["preset"] = preset
    _reject_unknown_environment()
    return _with_secrets(_absolute(_build(file_values, override_values, str(run_file or "settings"))))


def _preset(name: Any) -> dict[str, Any]:
    if not (CONFIGS / f"{name}.toml").is_file():
        known = ", ".join(sorted(path.stem for path in CONFIGS.glob("*.toml")))
        raise SettingsError(f"preset={name!r} is unknown; known presets: {known}")
    return _read_toml(CONFIGS / f"{name}.toml")


def _build(values: dict[str, Any], overrides: dict[str, Any], origin: str) -> Settings:
    class FromFile(Settings):
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return init_settings, env_settings, InitSettingsSource(settings_cls, init_kwargs=values)

    try:
        return FromFile(**overrides)
    except UnreadableSource as error:
        raise SettingsError(f"environment: {error}; a section is set key by key, as SPARK_RUN__SEED=1") from None
    except ValidationError as error:
        raise SettingsError(_explain(error, origin)) from None


def _with_secrets(settings: Settings) -> Settings:
    """With the URL from its file, and the TLS files in the URL, where every client of the server finds them."""
    url = settings.redis.url.get_secret_value()
    if not url and settings.redis.url_file is not None:
        url = _read_url(settings.redis.url_file)
    redis = settings.redis.model_copy(update={"url": SecretStr(_with_tls(url, settings.redis))})
    return settings.model_copy(update={"redis": redis})


def _read_url(path: Path) -> str:
    try:
        url = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"redis.url_file={str(path)!r} cannot be read: {error}") from None
    if not url:
        raise SettingsError(f"redis.url_file={str(path)!r} is empty; write redis://USER:PASSWORD@HOST:PORT into it")
    return url


def _with_tls(url: str, redis: Redis) -> str:
    """The URL with the files that the client library reads from it; again the same for a URL that has them."""
    keys = {"tls_ca_file": "ssl_ca_certs", "tls_cert_file": "ssl_certfile", "tls_key_file": "ssl_keyfile"}
    files = {name: path for name in keys if (path := getattr(redis, name)) is not None}
    if not files or not url or url.startswith("unix:"):  # an embedded server's socket needs no TLS
        return url
    first, path = next(iter(files.items()))
    if not url.startswith("rediss://"):
        raise SettingsError(f"redis.{first}={str(path)!r} needs TLS; write redis.url as rediss://HOST:PORT")
    if "tls_key_file" in files and "tls_cert_file" not in files:
        raise SettingsError("redis.tls_key_file needs its certificate; set redis.tls_cert_file")
    for name, path in files.items():
        if not os.access(path, os.R_OK):
            raise SettingsError(f"redis.{name}={str(path)!r} cannot be read; correct the path or its permissions")
    address, _, query = url.partition("?")
    options = dict(parse_qsl(query)) | {keys[name]: str(path.absolute()) for name, path in files.items()}
    return f"{address}?{urlencode(options)}"


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SettingsError(f"run file {path} does not exist") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise SettingsError(f"run file {path} cannot be read: {error}") from None


def _make_paths_absolute(values: dict[str, Any], folder: Path) -> None:
    """Paths in a run file are relative to that file; its folder is importable for `python:` references."""
    run = values.setdefault("run", {})
    if isinstance(run, dict):
        listed = run.get("python_path", ())
        run["python_path"] = [str(folder / path) for path in dict.fromkeys((*listed, "."))]
    for section, key in PATH_KEYS:
        table = values.get(section)
        if (
            isinstance(table, dict)
            and isinstance(table.get(key), str)
            and (folder / table[key]).exists()
            and table[key]
        ):
            table[key] = str((folder / table[key]).resolve())


def _absolute(settings: Settings) -> Settings:
    """Paths of the command line and the environment are relative to where the command runs, which no child knows."""
    changed: dict[str, dict[str, Any]] = {"run": {"python_path": tuple(p.absolute() for p in settings.run.python_path)}}
    for section, key in PATH_KEYS:
        given = getattr(getattr(settings, section), key)
        if given and Path(given).exists():
            changed.setdefault(section, {})[key] = type(given)(Path(given).absolute())
        elif str(given).startswith(DATASET):
            changed.setdefault(section, {})[key] = _absolute_dataset(given, settings.run.python_path)
    places = {key: path.absolute() for key in ("dir", "cache_dir") if (path := getattr(settings.weights, key))}
    changed["weights"] = places
    sections = {name: getattr(settings, name).model_copy(update=values) for name, values in changed.items()}
    return settings.model_copy(update=sections)


def _absolute_dataset(source: str, folders: Iterable[Path]) -> str:
    """A folder beside the run file is found there; one where the command runs is named in full."""
    name, colon, split = source.removeprefix(DATASET).partition(":")
    if any((folder / name).is_dir() for folder in folders) or not Path(name).is_dir():
        return source
    return f"{DATASET}{Path(name).absolute()}{colon}{split}"


def _forget_arguments_of_replaced_sources(file_values: dict[str, Any], overrides: dict[str, Any]) -> None:
    """Arguments belong to their prompt source: another source on the command line starts without them."""
    for section, key in (("prompts", "source"), ("eval", "prompts")):
        if key in overrides.get(section, {}) and isinstance(file_values.get(section), dict):
            file_values[section].pop("args", None)


def _parse_overrides(overrides: Iterable[str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for override in overrides:
        name, equals, text = override.partition("=")
        if not equals:
            raise SettingsError(f"--set {override!r}: write section.key=value, for example learner.max_steps=10")
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text  # a bare word is a string
        *tables, key = name.strip().split(".")
        nested: dict[str, Any] = {key: value}
        for table in reversed(tables):
            nested = {table: nested}
        values = _merge(values, nested)
    return values


def overridden_keys(overrides: Iterable[str]) -> list[str]:
    """The settings that these set, as ``section.key``."""
    return _leaves(_parse_overrides(overrides))


def _leaves(values: Mapping[str, Any], prefix: str = "") -> list[str]:
    found: list[str] = []
    for name, value in values.items():
        found += _leaves(value, f"{prefix}{name}.") if isinstance(value, Mapping) else [f"{prefix}{name}"]
    return found


def _merge(low: Mapping[str, Any], high: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(low)
    for key, value in high.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _reject_unknown_environment() -> None:
    """pydantic-settings ignores unknown variables in silence; a typo must not.

    Others use the prefix, too: SPARK_HOME of Apache Spark, SPARK_REDIS_PORT of a Kubernetes service ``spark-redis``.
    Ours have two underscores, but for SPARK_PRESET; what has not, and is like none of ours, is theirs.
    """
    known = [name.upper() for name in Settings.model_fields]
    nested_keys = [key.upper().replace(".", "__") for key in known_keys() if "." in key]
    one_underscore = {key.replace("__", "_"): key for key in nested_keys}
    for name in os.environ:
        prefix, _, rest = name.upper().partition("_")
        section, nested, _ = rest.partition("__")
        if prefix != "SPARK" or section in known:
            continue
        if (key := one_underscore.get(rest)) is not None:
            raise SettingsError(f"environment variable {name} sets nothing; did you mean SPARK_{key}?")
        if nested or difflib.get_close_matches(section, known, n=1, cutoff=LIKE_OURS):
            nearest = _nearest(f"SPARK_{section}", [f"SPARK_{key}" for key in known])
            raise SettingsError(f"environment variable {name} sets nothing; {nearest}")


def known_keys(model: type[BaseModel] = Settings, prefix: str = "") -> list[str]:
    keys: list[str] = []
    for name, info in model.model_fields.items():
        nested = info.annotation
        if isinstance(nested, type) and issubclass(nested, BaseModel):
            keys += known_keys(nested, f"{prefix}{name}.")
        else:
            keys.append(f"{prefix}{name}")
    return keys


def nearest_setting(key: str) -> str:
    """The setting that a misspelt ``section.key`` may have meant, as a question."""
    return _nearest(key, known_keys())


def _nearest(key: str, known: Iterable[str]) -> str:
    names = list(known)
    by_last_part = {name.rsplit(".", 1)[-1]: name for name in names}
    match = difflib.get_close_matches(key, names, n=1) or [
        by_last_part[name] for name in difflib.get_close_matches(key.rsplit(".", 1)[-1], by_last_part, n=1)
    ]
    return f"did you mean {match[0]}?" if match else "docs/configuration.md lists all keys"


def _explain(error: ValidationError, origin: str) -> str:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    variable = f"SPARK_{key.upper().replace('.', '__')}"
    if variable in {name.upper() for name in os.environ}:
        origin = f"environment variable {variable}"
    if first["type"] == "extra_forbidden":
        return f"{origin}: unknown setting {key}; {_nearest(key, [*known_keys(), *Settings.model_fields])}"
    message = first["msg"].removeprefix("Value error, ")
    if not key:
        return f"{origin}: {message}"
    value = "" if key.startswith("redis") else f"={first['input']!r}"  # it may hold a password
    return f"{origin}: {key}{value}: {message[0].lower()}{message[1:]}"
