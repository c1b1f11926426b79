"""How well does a model solve held-out problems? ``python examples/arithmetic/check.py DIR [--draws 2048]``."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

import torch
from arithmetic import prompts
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar
from vocabulary import BOX, CLOSE

MAX_NEW_TOKENS: Final = 16
BATCH: Final = 256


def sample(model_dir: Path, questions: Sequence[str], seed: int) -> list[str]:
    """One response a question, at temperature 1, without special tokens."""
    tokenizer = AutoTokenizer.from_pretrained(model_dir, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(model_dir)
    torch.manual_seed(seed)
    responses: list[str] = []
    for start in range(0, len(questions), BATCH):
        chats = [[{"role": "user", "content": f"solve question: {q}"}] for q in questions[start : start + BATCH]]
        inputs = tokenizer.apply_chat_template(
            chats, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
        )
        outputs = model.generate(**inputs, do_sample=True, top_k=0, max_new_tokens=MAX_NEW_TOKENS)
        new_tokens = outputs[:, inputs["input_ids"].shape[1] :]
        responses += tokenizer.batch_decode(new_tokens, skip_special_tokens=True)
    return responses


def boxed_answer(response: str) -> str | None:
    words = response.split()
    return words[-2] if len(words) >= 3 and words[-3] == BOX and words[-1] == CLOSE else None


def figures(records: Sequence[Mapping[str, str]], responses: Iterable[str]) -> dict[str, float]:
    """Shares of right answers, of answers without working, and of right answers among those with working."""
    judged = [
        (boxed_answer(response) == record["answer"], response.startswith(BOX))
        for record, response in zip(records, responses, strict=True)
    ]
    worked = [right for right, lazy in judged if not lazy]
    return {
        "accuracy": sum(right for right, _ in judged) / len(judged),
        "lazy": 1 - len(worked) / len(judged),
        "accuracy_with_working": sum(worked) / max(1, len(worked)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="Hugging Face model directory")
    parser.add_argument("--draws", type=int, default=2048)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    disable_progress_bar()
    records = prompts(arguments.draws, arguments.seed, held_out=True)
    responses = sample(arguments.model, [record["prompt"] for record in records], arguments.seed)
    for name, share in figures(records, responses).items():
        print(f"{name:22} {share:6.1%}")
    print(f"{'draws':22} {len(records):6}")


if __name__ == "__main__":
    main()
