"""What vLLM reads from the environment. Called before vLLM is imported, since that is when it looks."""

from __future__ import annotations

import logging
import os
from typing import Any, Final

import structlog
import torch

log = structlog.get_logger()

_ALWAYS: Final = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # an engine in a process of its own would step in the middle of an update
}
_UNLESS_SET: Final = {
    "VLLM_CONFIGURE_LOGGING": "0",  # its own handler writes to stdout; ours is added below
    "VLLM_NO_USAGE_STATS": "1",  # it reports to its makers otherwise
    "VLLM_HOST_IP": "127.0.0.1",  # its workers meet on this host; looking for a route to the internet may hang
    "VLLM_USE_V2_MODEL_RUNNER": "0",  # GPUs have another model runner too; this is the one that CPUs have and tests run
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # every actor of a host would bind to the same first cores
}
_UNLESS_SET_ON_CPU: Final = {
    "TORCHDYNAMO_DISABLE": "1",  # saves 3-20 s of compilation at the first request, and costs nothing
}


def prepare() -> None:
    """Set the variables, and send vLLM's warnings and errors to our log."""
    os.environ.update(_ALWAYS)
    for name, value in _UNLESS_SET.items():
        os.environ.setdefault(name, value)
    if not torch.cuda.is_available():
        for name, value in _UNLESS_SET_ON_CPU.items():
            os.environ.setdefault(name, value)
    _log_through_ours(logging.getLogger("vllm"))


def _log_through_ours(logger: logging.Logger) -> None:
    logger.setLevel(logging.WARNING)
    logger.propagate = False
    if not any(isinstance(handler, _ToOurs) for handler in logger.handlers):
        logger.addHandler(_ToOurs())


class _ToOurs(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        fields: dict[str, Any] = {"text": record.getMessage(), "source": record.name}
        if record.exc_info:
            fields["exc_info"] = record.exc_info
        log.log(record.levelno, "vllm.said", **fields)
