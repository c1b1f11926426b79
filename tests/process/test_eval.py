"""`spark eval` of what is no run: a model as it came, with the defaults for everything else."""

from __future__ import annotations

import json
from pathlib import Path

from run_harness import spark
from tiny_models import save_tiny_model

from cli.evaluation.answer_pool import AnswerPool, Header, Item, Shown, write_pool
from common.messages import ChatMessage
from learner.prompts import Prompt


def test_a_model_and_prompts_are_enough(tmp_path: Path) -> None:
    model = save_tiny_model("llama", tmp_path / "model")
    write_pool(pool(), tmp_path / "pool.jsonl")  # a random model has no right answer to judge
    lines = [json.dumps({"prompt": f"{n} + 1", "answer": str(n + 1)}) + "\n" for n in range(4)]
    (tmp_path / "held_out.jsonl").write_text("".join(lines), encoding="utf-8")
    few = ["--draws", "4", "--set", "eval.votes=2", "--set", "eval.rounds=1", "--set", "sampling.max_new_tokens=4"]
    files = ["--json", "figures.json", "--pool", "pool.jsonl"]
    told = spark("eval", str(model), "held_out.jsonl", *files, *few, cwd=tmp_path)
    assert told.returncode == 0, told.stderr
    figures = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))["figures"]
    assert {"policy", "pointwise", "tpr", "tnr", "pairwise", "tts", "majority"} <= figures.keys()


def pool() -> AnswerPool:
    def shown(answer: str) -> Shown:
        return Shown(answer=answer, canonical=answer, response=f"\\boxed{{{answer}}}", verifier="math")

    question = ChatMessage.user("1 + 1")
    prompt = Prompt(index=0, question="1 + 1", messages=(question,), answer="2", verifier="math")
    header = Header(model="test", seed=0, temperature=1.0, samples=2, tried=1)
    return AnswerPool(header=header, items=(Item(prompt=prompt, right=shown("2"), wrong=shown("3")),), digest="")


def test_a_model_that_is_nowhere_is_told(tmp_path: Path) -> None:
    (tmp_path / "held_out.jsonl").write_text('{"prompt": "1 + 1", "answer": "2"}\n', encoding="utf-8")
    told = spark("eval", str(tmp_path / "nowhere"), "held_out.jsonl", cwd=tmp_path)
    assert told.returncode == 2
    assert "nowhere' is no directory" in told.stderr
    assert "Traceback" not in told.stderr
