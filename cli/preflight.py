"""What is checked before anything of a run starts."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import structlog

from actors.verifiers import check_scorable
from cli.installed import check_installed
from common.errors import SettingsError, TaskError
from common.settings import Settings
from common.templates import load_templates
from common.weights import WeightStore
from learner.checkpoint import CheckpointStore
from learner.engines import own_place
from learner.identity import identity_of
from learner.prompts import PromptSource, open_prompts
from learner.sinks.base import opener

LONGEST_CHECK_S: Final = 10.0
SHOWN_CHATS: Final = 16
"""Prompts that are rendered for the model: chats of one source are of one form."""

log = structlog.get_logger()


def check_run(settings: Settings, environment: Mapping[str, str] | None = None) -> None:
    """Raises SettingsError for the first thing that would make the run fail: one sentence, nothing started or made.

    ``environment``: of a learner that a launcher may have given a rank. None: `spark up` starts it.
    """
    if settings.redis.memory_share <= 0:
        raise SettingsError("redis.memory_share=0 would never issue a prompt; set it between 0 and 1")
    check_installed(settings)
    own_place(settings, environment or {})
    WeightStore.of(settings)  # the URL, and the package that it needs; it makes nothing before it publishes
    check_model(settings)
    sys.path[:0] = [str(path) for path in settings.run.python_path]  # for verifiers `python:MODULE:FUNCTION`
    for sink in settings.metrics.sinks:
        opener(sink, settings.run.python_path)
    templates = load_templates(settings.templates.path)
    if settings.learner.judge_share > 0:
        mix = settings.recycler.mix
        for name, share in (("pointwise", mix.pointwise), ("pairwise", mix.pairwise), ("reflect", mix.reflect)):
            if share > 0 and not getattr(templates, name):
                raise SettingsError(
                    f"recycler.mix.{name}={share} but template set {templates.name!r} has no {name} template; "
                    f"add one, or set recycler.mix.{name}=0"
                )
    prompts = check_prompts(settings)
    CheckpointStore(settings.run.directory / "checkpoints", 1).check(identity_of(settings, prompts))
    if settings.eval.prompts:
        held_out = {"source": settings.eval.prompts, "args": settings.eval.args, "epochs": 1}
        check_prompts(
            settings.model_copy(update={"prompts": settings.prompts.model_copy(update=held_out)}), "eval.prompts"
        )
    check_chats(settings, prompts)


def check_model(settings: Settings) -> None:
    path = settings.model.path
    if not path:
        raise SettingsError("model.path is empty; set it to a Hugging Face directory or hub id")
    if Path(path).is_dir() and not (Path(path) / "config.json").is_file():
        raise SettingsError(f"model.path={path!r} has no config.json: it is no Hugging Face model directory")
    if not Path(path).exists() and path.startswith((".", "/", "~")):
        raise SettingsError(f"model.path={path!r} does not exist")


def check_chats(settings: Settings, prompts: PromptSource) -> None:
    """The model can be found, and its tokenizer and chat template take what it is to be asked."""
    from transformers import AutoConfig  # seconds; after all that is quicker to refuse

    from actors.chat import ChatTokenizer
    from actors.vocabulary import load_tokenizer
    from common.pretrained import pretrained

    pretrained(AutoConfig.from_pretrained, settings.model)
    to_ids = ChatTokenizer(load_tokenizer(settings.model))
    for index in range(min(len(prompts), SHOWN_CHATS)):
        try:
            to_ids(prompts[index].messages)
        except TaskError as error:
            raise SettingsError(
                f"prompts.source={settings.prompts.source!r}: prompt {index} cannot be put to the model: {error}"
            ) from error


def check_prompts(settings: Settings, key: str = "prompts.source") -> PromptSource:
    """Every prompt can be read, and some verifier can score it. Returns them."""
    prompts = open_prompts(settings.prompts, settings.run.python_path, settings.run.seed)
    if len(prompts) == 0:
        raise SettingsError(f"{key}={settings.prompts.source!r} has no prompts")
    give_up_at = time.monotonic() + LONGEST_CHECK_S
    for index in range(len(prompts)):
        if time.monotonic() > give_up_at:  # parsing a gold answer may take milliseconds; the rest is met in the run
            log.info("preflight.sampled", checked=index, prompts=len(prompts))
            break
        prompt = prompts[index]
        if reason := check_scorable(prompt.answer, prompt.verifier, prompt.verifier_args):
            raise SettingsError(f"{key}={settings.prompts.source!r}: prompt {index} cannot be scored: {reason}")
    return prompts
