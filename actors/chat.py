"""Chats to prompt token ids, so that no text of a message can ever become a control token."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

import numpy as np
from jinja2 import TemplateError
from numpy.typing import NDArray

from common.errors import TaskError
from common.messages import ChatMessage, TextPart


class ChatTokenizer:
    """Renders the model's chat template around untrusted texts.

    A tokenizer turns ``<|im_end|>`` inside an answer into the control token of that name. Here the template
    and the texts are told apart: control tokens come from the template only, whatever a text says.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._control_ids = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)

    def __call__(self, messages: Sequence[ChatMessage]) -> NDArray[np.int32]:
        """Prompt ids of the chat with the generation prompt appended."""
        pieces = self._pieces(messages)
        ids = self._encode_whole(pieces)
        if ids is None:
            ids = [token for piece, text in pieces for token in self._encode_piece(piece, is_text=text)]
        return np.asarray(ids, dtype=np.int32)

    def _pieces(self, messages: Sequence[ChatMessage]) -> list[tuple[str, bool]]:
        """The rendered chat in order, as (string, does it come from a message)."""
        texts = [_text_of(message) for message in messages]
        marks = [f"\u27e6{secrets.token_hex(8)}\u27e7" for _ in texts]  # no text can foresee them
        chat = [{"role": m.role, "content": mark} for m, mark in zip(messages, marks, strict=True)]
        rest = self._render(chat)
        pieces: list[tuple[str, bool]] = []
        for mark, text in zip(marks, texts, strict=True):
            before, found, rest = rest.partition(mark)
            if not found:
                raise TaskError(
                    "the model's chat template drops or changes a message; SPARK needs one that keeps them all"
                )
            pieces += [(before, False), (text, True)]
        return [*pieces, (rest, False)]

    def _render(self, chat: list[dict[str, str]]) -> str:
        try:
            rendered: str = self._tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        except TemplateError as error:
            raise TaskError(f"the model's chat template refuses this chat: {error}") from error
        return rendered

    def _encode_whole(self, pieces: list[tuple[str, bool]]) -> list[int] | None:
        """Ids exactly as the model was trained to see them, or None when a text produced a control token."""
        whole = "".join(piece for piece, _ in pieces)
        encoding = self._tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True)
        spans, start = [], 0
        for piece, is_text in pieces:
            if is_text:
                spans.append((start, start + len(piece)))
            start += len(piece)
        for token, (begin, end) in zip(encoding["input_ids"], encoding["offset_mapping"], strict=True):
            if token in self._control_ids and any(begin < high and end > low for low, high in spans):
                return None
        ids: list[int] = encoding["input_ids"]
        return ids

    def _encode_piece(self, piece: str, *, is_text: bool) -> list[int]:
        ids: list[int] = self._tokenizer(piece, add_special_tokens=False, split_special_tokens=is_text)["input_ids"]
        # A word-level vocabulary knows its control tokens as words too; those can only be left out.
        return [token for token in ids if token not in self._control_ids] if is_text else ids


def _text_of(message: ChatMessage) -> str:
    if not all(isinstance(part, TextPart) for part in message.content):
        raise TaskError("this engine takes text only, but the task shows an image")
    return message.text
