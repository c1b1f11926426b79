"""One record of a prompt source, as its author wrote it, and the ``Prompt`` made from it. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, ValidationError
from pydantic_core import PydanticSerializationError

from common.errors import SettingsError
from common.messages import ChatMessage, Part, TextPart


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """One verifiable problem.

    ``messages`` ends with the user message that holds the question, bare: the issuer wraps it with the
    template set's ``solve`` text. Earlier turns and a system message are kept as they are.
    """

    index: int
    """Position in its source."""
    question: str
    messages: tuple[ChatMessage, ...]
    answer: str
    """What the verifier scores against; empty where the verifier needs none (some reasoning-gym tasks)."""
    verifier: str
    verifier_args: dict[str, JsonValue] = field(default_factory=dict)


def _as_parts(content: object) -> object:
    return [TextPart(text=content)] if isinstance(content, str) else content


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    role: Literal["system", "user", "assistant"]
    content: Annotated[list[Part], BeforeValidator(_as_parts), Field(min_length=1)]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    prompt: str | None = None
    messages: Annotated[list[_Message], Field(min_length=1)] | None = None
    answer: Annotated[str, Field(min_length=1)]
    verifier: Annotated[str, Field(min_length=1)] | None = None
    verifier_args: dict[str, JsonValue] | None = None


KNOWN_KEYS: Final = tuple(_Record.model_fields)


def prompt_from_record(record: object, *, index: int, verifier: str, where: str) -> Prompt:
    """Check one record and make it a Prompt.

    ``verifier`` is used where the record names none; ``where`` begins the error text (file and line).
    Raises SettingsError with what is wrong, which value, and the nearest known key.
    """
    parsed = _parse(record, where)
    if (parsed.prompt is None) == (parsed.messages is None):
        raise SettingsError(f"{where}: give either prompt (a string) or messages (a chat), and only one of them")
    messages = _messages(parsed)
    question = messages[-1].text
    if messages[-1].role != "user" or not question.strip():
        raise SettingsError(f"{where}: the last message must be a user message with the question as its text")
    return Prompt(
        index=index,
        question=question,
        messages=messages,
        answer=parsed.answer,
        verifier=parsed.verifier or verifier,
        verifier_args=parsed.verifier_args or {},
    )


def record_from_row(row: Mapping[str, object], columns: Mapping[Any, str], where: str) -> dict[str, object]:
    """The record that a row of a table holds, in columns of our names or those of ``columns``; the others are ignored.

    Numbers become text. Raises SettingsError that lists the columns when one is missing.
    """
    named = {key: columns.get(key, key) for key in KNOWN_KEYS}
    for chosen, other in (("prompt", "messages"), ("messages", "prompt")):
        if chosen in columns and other not in columns:
            del named[other]  # a table may have both
    record = {key: _as_text(row[column]) for key, column in named.items() if column in row}
    missing = [column for column in (*columns.values(), named["answer"]) if column not in row]
    if not record.keys() & {"prompt", "messages"}:
        missing.append("prompt")
    if missing:
        raise SettingsError(
            f"{where}: no column {missing[0]!r}; its columns: {', '.join(row)}; say which is which: "
            'prompts.columns = {prompt = "question", answer = "solution"}'
        )
    return record


def _as_text(value: object) -> object:
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def _parse(record: object, where: str) -> _Record:
    if not isinstance(record, Mapping):
        raise SettingsError(f"{where}: expected an object with prompt and answer, got {_shorten(record)}")
    # Arrow tables fill absent fields with null, so null means absent; verifier_args keep their own nulls.
    present = {key: _without_nulls(value) if key == "messages" else value for key, value in record.items()}
    try:
        parsed = _Record.model_validate({key: value for key, value in present.items() if value is not None})
        parsed.model_dump_json()  # half of a surrogate pair (an escape like \ud800) can never be sent or tokenized
    except ValidationError as error:
        raise SettingsError(f"{where}: {_explain(error)}") from None
    except PydanticSerializationError:
        raise SettingsError(f"{where}: a text is not valid Unicode; {_shorten(record)}") from None
    return parsed


def _messages(record: _Record) -> tuple[ChatMessage, ...]:
    if record.messages is None:
        return (ChatMessage.user(record.prompt or ""),)
    return tuple(ChatMessage(role=message.role, content=tuple(message.content)) for message in record.messages)


def _without_nulls(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def _explain(error: ValidationError) -> str:
    # a misspelt key is also a missing one; the unknown one says more
    first = min(error.errors(), key=lambda fault: fault["type"] != "extra_forbidden")
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return f"unknown key {key}; {_nearest(key, KNOWN_KEYS)}"
    if first["type"] == "missing":
        return f"{key} is missing"
    return f"{key}={_shorten(first['input'])}: {first['msg'][0].lower()}{first['msg'][1:]}"


def _nearest(key: str, known: Iterable[str]) -> str:
    match = difflib.get_close_matches(key, known, n=1)
    return f"did you mean {match[0]}?" if match else f"known keys: {', '.join(known)}"


def _shorten(value: object, limit: int = 80) -> str:
    text = repr(value)
    return text if len(text) <= limit else f"{text[:limit]}..."
