"""The forms that need optional packages: Hugging Face datasets and reasoning-gym, the real ones."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from common.codec import decode, encode
from common.errors import SettingsError
from common.messages import Sampling, Task
from common.settings import Prompts
from learner.prompts import open_prompts

datasets = pytest.importorskip("datasets")
reasoning_gym = pytest.importorskip("reasoning_gym")

ROWS = [
    {"prompt": "1 + 1?", "answer": "2", "verifier": None},
    {"prompt": "Which?", "answer": "B", "verifier": "choice"},
]
CHAT_ROWS = [
    {"messages": [{"role": "user", "content": "1 + 1?"}], "prompt": None, "answer": "2"},
    {"messages": None, "prompt": "2 + 2?", "answer": "4"},
]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


def _open(source: str, *folders: Path, **options: Any) -> list[tuple[str, str, str]]:
    prompts = open_prompts(Prompts(source=source, verifier="exact", **options), folders, seed=0)
    return [(p.question, p.answer, p.verifier) for p in (prompts[i] for i in range(len(prompts)))]


EXPECTED = [("1 + 1?", "2", "exact"), ("Which?", "B", "choice")]


def test_saved_dataset(tmp_path: Path) -> None:
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    assert _open(f"dataset:{tmp_path / 'saved'}") == EXPECTED


def test_relative_folder_is_found_beside_the_run_file(tmp_path: Path) -> None:
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    assert _open("dataset:saved", tmp_path) == EXPECTED


def test_split_of_a_saved_dataset_dict(tmp_path: Path) -> None:
    train, test = datasets.Dataset.from_list(ROWS), datasets.Dataset.from_list(ROWS[:1])
    datasets.DatasetDict(train=train, test=test).save_to_disk(tmp_path / "both")
    assert _open(f"dataset:{tmp_path / 'both'}") == EXPECTED
    assert _open(f"dataset:{tmp_path / 'both'}:test") == EXPECTED[:1]
    with pytest.raises(SettingsError, match="has no split 'tset'; its splits: train, test"):
        _open(f"dataset:{tmp_path / 'both'}:tset")


def test_the_only_split_needs_no_name(tmp_path: Path) -> None:
    datasets.DatasetDict(validation=datasets.Dataset.from_list(ROWS)).save_to_disk(tmp_path / "one")
    assert _open(f"dataset:{tmp_path / 'one'}") == EXPECTED


def test_nulls_of_an_arrow_table_mean_absent(tmp_path: Path) -> None:
    datasets.Dataset.from_list(CHAT_ROWS).save_to_disk(tmp_path / "chats")
    assert _open(f"dataset:{tmp_path / 'chats'}") == [("1 + 1?", "2", "exact"), ("2 + 2?", "4", "exact")]


def test_folder_of_data_files(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "train.jsonl").write_text("\n".join(json.dumps(row) for row in ROWS))
    assert _open(f"dataset:{folder}") == EXPECTED


FOREIGN = [
    {"question": "1 + 1?", "solution": 2, "level": "easy"},
    {"question": "2 / 4?", "solution": 0.5, "level": "a"},
]


def test_columns_by_other_names_and_numbers(tmp_path: Path) -> None:
    rows = [FOREIGN[0], {**FOREIGN[1], "solution": 4}]
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "saved")
    columns = {"prompt": "question", "answer": "solution"}
    opened = _open(f"dataset:{tmp_path / 'saved'}", columns=columns)
    assert opened == [("1 + 1?", "2", "exact"), ("2 / 4?", "4", "exact")]


def test_a_named_form_of_the_question_is_taken_where_a_table_has_both(tmp_path: Path) -> None:
    rows = [{"messages": [{"role": "user", "content": "chat"}], "prompt": "text", "answer": "x"}]
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "saved")
    source = f"dataset:{tmp_path / 'saved'}"
    assert _open(source, columns={"prompt": "prompt"})[0][0] == "text"
    assert _open(source, columns={"messages": "messages"})[0][0] == "chat"
    with pytest.raises(SettingsError, match=r"either prompt .* or messages"):
        _open(source)


@pytest.mark.parametrize(
    ("columns", "missing"),
    [({}, "answer"), ({"answer": "solution"}, "prompt"), ({"prompt": "question", "answer": "sol"}, "sol")],
)
def test_a_missing_column_is_named_beside_those_that_are_there(
    tmp_path: Path, columns: dict[str, str], missing: str
) -> None:
    datasets.Dataset.from_list(FOREIGN).save_to_disk(tmp_path / "saved")
    with pytest.raises(SettingsError) as error:
        _open(f"dataset:{tmp_path / 'saved'}", columns=columns)
    assert f"no column {missing!r}; its columns: question, solution, level; say which" in str(error.value)


def test_missing_folder_never_asks_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "load_dataset", _must_not_be_called)
    with pytest.raises(SettingsError, match="there is no such folder"):
        _open(f"dataset:{tmp_path / 'none'}")
    with pytest.raises(SettingsError, match="there is no such folder"):
        _open("dataset:./none", tmp_path)


def _must_not_be_called(*_: object, **__: object) -> None:
    raise AssertionError("load_dataset was called")


def test_arguments_for_a_saved_dataset_are_refused(tmp_path: Path) -> None:
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    with pytest.raises(SettingsError, match="takes no arguments"):
        _open(f"dataset:{tmp_path / 'saved'}", args={"name": "main"})


def test_hub_without_network_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(SettingsError, match="dataset:nobody/none-such cannot be loaded: ") as caught:
        _open("dataset:nobody/none-such:test")
    assert "\n" not in str(caught.value)


def test_torn_dataset_folder_is_one_sentence(tmp_path: Path) -> None:
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    next((tmp_path / "saved").glob("*.arrow")).write_bytes(b"torn")
    with pytest.raises(SettingsError, match="cannot be loaded") as caught:
        _open(f"dataset:{tmp_path / 'saved'}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "package", "extra"),
    [("dataset:x/y", "datasets", "datasets"), ("reasoning-gym:chain_sum", "reasoning_gym", "reasoning-gym")],
)
def test_missing_extra_is_named(source: str, package: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(SettingsError, match=rf"install spark-rl\[{extra}\]"):
        _open(source)


# reasoning-gym


def _gym(run_seed: int = 0, task: str = "chain_sum", **args: Any) -> Any:
    return open_prompts(Prompts(source=f"reasoning-gym:{task}", args=args), [], seed=run_seed)


def test_gym_prompts_carry_what_the_verifier_needs() -> None:
    source = _gym(size=20, seed=7, min_terms=2, max_terms=2)
    scorer = reasoning_gym.create_dataset("chain_sum")
    assert len(source) == 20
    for index in range(20):
        prompt = source[index]
        assert prompt.index == index
        assert prompt.verifier == "reasoning-gym"
        assert prompt.verifier_args["task"] == "chain_sum"
        entry = prompt.verifier_args["entry"]
        assert prompt.question == entry["question"] == prompt.messages[-1].text
        assert scorer.score_answer(prompt.answer, entry) == 1.0
        assert json.loads(json.dumps(entry)) == entry


def test_gym_problems_follow_the_seed() -> None:
    questions = [[source[i].question for i in range(10)] for source in (_gym(1, size=10), _gym(1, size=10))]
    assert questions[0] == questions[1]
    assert [_gym(2, size=10)[i].question for i in range(10)] != questions[0]
    assert [_gym(2, size=10, seed=1)[i].question for i in range(10)] == questions[0]
    assert _gym(-1, size=10)[3].question


def test_gym_prompt_fits_in_a_message() -> None:
    prompt = _gym(size=3, task="countdown")[2]
    task = Task(
        uid="u",
        objective="solve",
        messages=prompt.messages,
        question=prompt.question,
        answer=prompt.answer,
        verifier=prompt.verifier,
        verifier_args=prompt.verifier_args,
        sampling=Sampling(n=2, max_new_tokens=8),
    )
    assert decode(Task, encode(task)) == task


def test_gym_task_without_a_gold_answer() -> None:
    assert _gym(size=1, task="propositional_logic")[0].answer == ""


@pytest.mark.parametrize(
    ("task", "args", "reason"),
    [
        ("chain_som", {}, "'chain_som' not registered"),
        ("chain_sum", {"max_therms": 3}, "unexpected keyword argument 'max_therms'"),
        ("chain_sum", {"min_terms": 5, "max_terms": 2}, "max_terms"),
        ("chain_sum", {"size": 0}, "size must be positive"),
        ("rearc", {"size": 1}, "change when sent as JSON"),
    ],
)
def test_gym_faults(task: str, args: dict[str, Any], reason: str) -> None:
    with pytest.raises(SettingsError) as caught:
        _gym(0, task, **args)
    assert reason in str(caught.value)


def test_gym_index_out_of_range() -> None:
    with pytest.raises(IndexError, match="index=3"):
        _gym(size=3)[3]
