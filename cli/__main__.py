"""Entry point of ``spark``: parse, run one command, turn errors into one sentence and an exit code."""

from __future__ import annotations

import gc
import sys
from typing import Final
from urllib.parse import quote, unquote

from pydantic import ValidationError

from common.errors import SparkError

SET: Final = ("--set", "-s")
COLLECT_AT: Final = (50_000, 20, 20)
"""Thresholds of the garbage collector: torch and a model are a million objects that stay, and to look through them as
often as by default takes a tenth of a process's start."""


def main() -> None:
    gc.set_threshold(*COLLECT_AT)
    from pydantic_settings import CliApp
    from pydantic_settings.exceptions import SettingsError as CommandLineError

    from cli.commands import Spark

    try:
        CliApp.run(Spark, cli_args=keep_overrides_whole(sys.argv[1:]))
    except SparkError as error:
        sys.exit(_complain(str(error), error.exit_code))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        sys.exit(_complain(f"{where}: {first['msg']}", 2))
    except CommandLineError as error:
        sentence = unquote(str(error).removeprefix("error parsing CLI: ").removeprefix("Error: ").partition("\n")[0])
        command = " ".join(["spark", *(name for name in sys.argv[1:2] if name in Spark.model_fields)])
        sys.exit(_complain(f"{sentence}; `{command} --help` tells what there is", 2))
    except OSError as error:
        _log_failure()
        sys.exit(_complain(" ".join(str(error).split()), 1))
    except KeyboardInterrupt:
        sys.exit(130)


def keep_overrides_whole(arguments: list[str]) -> list[str]:
    """The values of ``--set`` percent-encoded: pydantic-settings would split them at commas and drop their quotes."""
    whole: list[str] = []
    for argument in options_last(arguments) if arguments[:1] == ["set"] else arguments:
        name, equals, value = argument.partition("=")
        if whole and whole[-1] in SET:
            whole.append(quote(argument))
        elif name in SET and equals:
            whole += [name, quote(value)]
        elif whole[:1] == ["set"] and len(whole) > 1 and equals and not name.startswith("-"):
            whole.append(quote(argument))
        else:
            whole.append(argument)
    return whole


def options_last(arguments: list[str]) -> list[str]:
    """Of `spark set`: its parser takes no assignment behind an option, and no user should have to know that."""
    words: list[str] = []
    options: list[str] = []
    for argument in arguments:
        of_option = options[-1:] == ["--wait"]  # its value
        (options if of_option or argument.startswith("-") else words).append(argument)
    return words + options


def _log_failure() -> None:
    """Keep the traceback in the log file of a run's process; a command without one says its sentence only."""
    import structlog

    if "member" in structlog.contextvars.get_contextvars():
        structlog.get_logger().exception("process.failed")


def _complain(sentence: str, exit_code: int) -> int:
    print(f"spark: {sentence}", file=sys.stderr)
    return exit_code


if __name__ == "__main__":
    main()
