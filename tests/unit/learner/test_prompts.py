"""Order of prompts, the choice of a reader, and the JSONL and Python forms."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import SettingsError
from common.settings import Prompts
from learner.prompts import Prompt, PromptSource, open_prompts


def _source(size: int, **options: Any) -> PromptSource:
    prompts = [Prompt(index=i, question=str(i), messages=(), answer=str(i), verifier="exact") for i in range(size)]
    return PromptSource(prompts, **options)


def _jsonl(folder: Path, *lines: str) -> Prompts:
    path = folder / "prompts.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    return Prompts(source=str(path), verifier="exact")


def _module(folder: Path, name: str, text: str) -> None:
    (folder / f"{name}.py").write_text(text, encoding="utf-8")


# order


@given(size=st.integers(1, 40), seed=st.integers(-(2**63), 2**63), epoch=st.integers(0, 1000), shuffle=st.booleans())
def test_every_epoch_is_a_permutation(size: int, seed: int, epoch: int, shuffle: bool) -> None:
    source = _source(size, seed=seed, shuffle=shuffle)
    issued = [source.order(epoch * size + place) for place in range(size)]
    assert {slot[0] for slot in issued if slot} == {epoch}
    assert sorted(slot[1] for slot in issued if slot) == list(range(size))


@given(position=st.integers(0, 10_000), seed=st.integers(0, 2**32))
def test_order_depends_on_position_and_seed_alone(position: int, seed: int) -> None:
    one, other = _source(37, seed=seed), _source(37, seed=seed)
    for earlier in range(0, 200, 19):
        other.order(earlier)  # having issued other prompts changes nothing
    assert one.order(position) == other.order(position)


def test_epochs_and_seeds_differ() -> None:
    source = _source(50, seed=3)
    first = [source.order(p)[1] for p in range(50)]  # type: ignore[index]
    second = [source.order(50 + p)[1] for p in range(50)]  # type: ignore[index]
    other_seed = _source(50, seed=4)
    assert first != second
    assert first != [other_seed.order(p)[1] for p in range(50)]  # type: ignore[index]
    assert first != list(range(50))


def test_without_shuffle_source_order_is_kept() -> None:
    source = _source(3, seed=0, shuffle=False)
    assert [source.order(p) for p in range(5)] == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]


@given(size=st.integers(1, 20), epochs=st.integers(1, 5))
def test_source_is_exhausted_after_its_epochs(size: int, epochs: int) -> None:
    source = _source(size, seed=0, epochs=epochs)
    issued = Counter(slot[1] for p in range(size * epochs) if (slot := source.order(p)))
    assert issued == dict.fromkeys(range(size), epochs)
    assert source.order(size * epochs) is None
    assert source.order(size * epochs + 1000) is None


def test_negative_position_is_refused() -> None:
    with pytest.raises(IndexError, match="position=-1"):
        _source(3, seed=0).order(-1)


# JSON lines


def test_jsonl_prompts(tmp_path: Path) -> None:
    source = open_prompts(
        _jsonl(
            tmp_path,
            '{"prompt": "2 + 2?", "answer": "4"}',
            "",
            '{"prompt": "which?", "answer": "B", "verifier": "choice", "verifier_args": {"letters": "ABCD"}}',
            "   ",
            '{"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi?"},'
            ' {"role": "assistant", "content": "Yes?"}, {"role": "user", "content": "1 + 1?"}], "answer": "2"}',
        ),
        [],
        seed=0,
    )
    assert len(source) == 3
    plain, choice, chat = source[0], source[1], source[2]
    assert (plain.index, plain.question, plain.answer, plain.verifier) == (0, "2 + 2?", "4", "exact")
    assert [(m.role, m.text) for m in plain.messages] == [("user", "2 + 2?")]
    assert plain.verifier_args == {}
    assert (choice.index, choice.verifier, choice.verifier_args) == (1, "choice", {"letters": "ABCD"})
    assert chat.question == "1 + 1?"
    assert [m.role for m in chat.messages] == ["system", "user", "assistant", "user"]
    assert chat.messages[-1].text == chat.question


def test_messages_may_hold_images(tmp_path: Path) -> None:
    content = [{"type": "image", "sha256": "ab12"}, {"type": "text", "text": "How many?"}]
    record = {"messages": [{"role": "user", "content": content}], "answer": "3"}
    prompt = open_prompts(_jsonl(tmp_path, json.dumps(record)), [], seed=0)[0]
    assert [part.type for part in prompt.messages[0].content] == ["image", "text"]
    assert prompt.question == "How many?"


GOOD = '{"prompt": "a", "answer": "b"}'


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "not a line of JSON"),
        ('"text"', "expected an object"),
        ("[1]", "expected an object"),
        ("[" * 100_000, "not a line of JSON"),
        ('{"prompt": "a"}', "answer is missing"),
        ('{"prompt": "a", "answer": null}', "answer is missing"),
        ('{"prompt": "a", "answer": ""}', "answer=''"),
        ('{"prompt": "a", "answer": 4}', "answer=4: input should be a valid string"),
        ('{"answer": "a"}', "either prompt"),
        ('{"prompt": "a", "messages": [{"role": "user", "content": "a"}], "answer": "b"}', "only one of them"),
        ('{"prompt": " ", "answer": "b"}', "with the question as its text"),
        ('{"messages": [], "answer": "b"}', "messages="),
        ('{"messages": [{"role": "assistant", "content": "a"}], "answer": "b"}', "must be a user message"),
        ('{"messages": [{"role": "robot", "content": "a"}], "answer": "b"}', "messages.0.role='robot'"),
        ('{"messages": [{"role": "user", "content": 4}], "answer": "b"}', "messages.0.content=4"),
        ('{"prompt": "a", "answer": "b", "anwser": "c"}', "unknown key anwser; did you mean answer?"),
        ('{"prompt": "a", "answer": "b", "verifier_arg": {}}', "did you mean verifier_args?"),
        ('{"prompt": "a", "answer": "b", "zzz": 1}', "known keys: prompt, messages, answer"),
        ('{"prompt": "\\ud800", "answer": "b"}', "not valid Unicode"),
    ],
)
def test_malformed_line_is_named(tmp_path: Path, line: str, reason: str) -> None:
    settings = _jsonl(tmp_path, GOOD, "", line, GOOD)
    with pytest.raises(SettingsError) as caught:
        open_prompts(settings, [], seed=0)
    text = str(caught.value)
    assert text.startswith(f"{settings.source}, line 3: ")
    assert reason in text
    assert "\n" not in text
    assert len(text) < 300 + len(settings.source)


def test_bytes_that_are_not_utf8_are_named(tmp_path: Path) -> None:
    path = tmp_path / "latin.jsonl"
    path.write_bytes(GOOD.encode() + b'\n{"prompt": "\xe9", "answer": "b"}\n')
    with pytest.raises(SettingsError, match="line 2: not a line of JSON"):
        open_prompts(Prompts(source=str(path)), [], seed=0)


def test_missing_and_empty_files(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be read: No such file"):
        open_prompts(Prompts(source=str(tmp_path / "none.jsonl")), [], seed=0)
    with pytest.raises(SettingsError, match="has no prompts"):
        open_prompts(_jsonl(tmp_path, "", " "), [], seed=0)


def test_arguments_for_a_file_are_refused(tmp_path: Path) -> None:
    settings = _jsonl(tmp_path, GOOD).model_copy(update={"args": {"size": 3}})
    with pytest.raises(SettingsError, match="takes no arguments"):
        open_prompts(settings, [], seed=0)


@given(
    records=st.lists(
        st.tuples(
            st.text(min_size=1).filter(str.strip), st.text(min_size=1), st.sampled_from([None, "math", "choice"])
        ),
        min_size=1,
        max_size=8,
    )
)
def test_any_text_survives_jsonl(records: list[tuple[str, str, str | None]], tmp_path_factory: Any) -> None:
    lines = [json.dumps({"prompt": q, "answer": a, "verifier": v}, ensure_ascii=False) for q, a, v in records]
    source = open_prompts(_jsonl(tmp_path_factory.mktemp("jsonl"), *lines), [], seed=0)
    assert [(p.question, p.answer, p.verifier) for p in source] == [(q, a, v or "exact") for q, a, v in records]


# unknown forms


@pytest.mark.parametrize("source", ["", "prompts.csv", "dataset:", "reasoning-gym:", "python:module", "pyhton:a:b"])
def test_unknown_form_names_the_known_ones(source: str) -> None:
    with pytest.raises(SettingsError) as caught:
        open_prompts(Prompts(source=source), [], seed=0)
    for form in (repr(source), "FILE.jsonl", "dataset:NAME_OR_DIR", "reasoning-gym:TASK", "python:MODULE:FUNCTION"):
        assert form in str(caught.value)


# Python functions


def test_python_function_is_called_with_the_arguments(tmp_path: Path) -> None:
    _module(tmp_path, "helper_of_made", "WORD = 'number'")
    _module(
        tmp_path,
        "made_prompts",
        "def make(size, start=0):\n"
        "    from helper_of_made import WORD\n"
        "    for n in range(start, start + size):\n"
        "        yield {'prompt': f'{WORD} {n}', 'answer': str(n)}\n",
    )
    settings = Prompts(source="python:made_prompts:make", args={"size": 3, "start": 5}, verifier="exact")
    before = list(sys.path)
    source = open_prompts(settings, [tmp_path], seed=0)
    assert [(p.question, p.answer, p.verifier) for p in source] == [
        ("number 5", "5", "exact"),
        ("number 6", "6", "exact"),
        ("number 7", "7", "exact"),
    ]
    assert sys.path == before


@pytest.mark.parametrize(
    ("function", "args", "reason"),
    [
        ("missing", {}, "has no function missing"),
        ("CONSTANT", {}, "has no function CONSTANT"),
        ("good", {"sise": 3}, "unexpected keyword argument 'sise'"),
        ("fails", {}, "raised ZeroDivisionError"),
        ("fails_later", {}, "raised ZeroDivisionError"),
        ("number", {}, "returned int"),
        ("record", {}, "returned dict"),
        ("bad_record", {}, "record 1: unknown key anwser; did you mean answer?"),
        ("tuples", {}, "record 0: expected an object"),
    ],
)
def test_faults_of_a_python_function(tmp_path: Path, function: str, args: dict[str, Any], reason: str) -> None:
    _module(
        tmp_path,
        "faulty_prompts",
        "CONSTANT = 3\n"
        "def good(size=1): return [{'prompt': 'a', 'answer': 'b'}] * size\n"
        "def fails(): return 1 // 0\n"
        "def fails_later():\n    yield {'prompt': 'a', 'answer': 'b'}\n    1 // 0\n"
        "def number(): return 3\n"
        "def record(): return {'prompt': 'a', 'answer': 'b'}\n"
        "def bad_record(): return [{'prompt': 'a', 'answer': 'b'}, {'prompt': 'a', 'anwser': 'b', 'answer': 'c'}]\n"
        "def tuples(): return [('a', 'b')]\n",
    )
    source = f"python:faulty_prompts:{function}"
    with pytest.raises(SettingsError) as caught:
        open_prompts(Prompts(source=source, args=args), [tmp_path], seed=0)
    assert str(caught.value).startswith(source)
    assert reason in str(caught.value)


def test_module_that_cannot_be_imported(tmp_path: Path) -> None:
    _module(tmp_path, "broken_prompts", "import no_such_module_of_mine")
    with pytest.raises(SettingsError, match="cannot import nowhere_prompts: ModuleNotFoundError"):
        open_prompts(Prompts(source="python:nowhere_prompts:f"), [tmp_path], seed=0)
    with pytest.raises(SettingsError, match="No module named 'no_such_module_of_mine'"):
        open_prompts(Prompts(source="python:broken_prompts:f"), [tmp_path], seed=0)


def test_importing_prompts_stays_light() -> None:
    code = (
        "import sys, learner.prompts; print(*{'torch', 'datasets', 'reasoning_gym', 'transformers'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=_root())
    assert done.stdout.strip() == ""


def _root() -> Path:
    return next(folder for folder in Path(__file__).resolve().parents if (folder / "pyproject.toml").is_file())
