"""What both engines share about text: the same ids from a chat, the same end of a completion, the same text of ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import AutoTokenizer

from actors.chat import ChatTokenizer
from common.errors import SettingsError
from common.messages import ChatMessage, Completion
from common.pretrained import pretrained
from common.settings import Model


def load_tokenizer(settings: Model) -> Any:
    """The model's tokenizer. Raises SettingsError when there is none, or no chat template."""
    tokenizer: Any = pretrained(AutoTokenizer.from_pretrained, settings)
    if tokenizer.chat_template is None:
        raise SettingsError(
            f"model.path={settings.path!r} has no chat template; add chat_template.jinja to the directory"
        )
    return tokenizer


class Vocabulary:
    """A tokenizer and the ids that end a completion.

    ``eos_token_id``: that of the model's generation config, one or several; the tokenizer's own is added.
    """

    def __init__(self, tokenizer: Any, eos_token_id: int | list[int] | None) -> None:
        configured = eos_token_id if isinstance(eos_token_id, list) else [eos_token_id]
        self.stop_ids = frozenset(i for i in (*configured, tokenizer.eos_token_id) if i is not None)
        if not self.stop_ids:
            raise SettingsError("the model names no end-of-sequence token; set eos_token_id in generation_config.json")
        self.pad_id: int = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else min(self.stop_ids)
        self._tokenizer = tokenizer
        self._chat = ChatTokenizer(tokenizer)

    def prompt(self, messages: Sequence[ChatMessage]) -> NDArray[np.int32]:
        return self._chat(messages)

    def completion(
        self, tokens: list[int], logprobs: list[float], spans: Sequence[tuple[int, int]], *, stopped: bool
    ) -> Completion:
        """Log-probs are cut off at 0, which rounding can exceed."""
        return Completion(
            token_ids=np.asarray(tokens, dtype=np.int32),
            logprobs=np.minimum(np.asarray(logprobs, dtype=np.float32), 0.0),
            spans=tuple(spans),
            finish_reason="stop" if stopped else "length",
            text=self._tokenizer.decode(tokens, skip_special_tokens=True),
        )
