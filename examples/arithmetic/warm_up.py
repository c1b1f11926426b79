"""Make the base model of the demo: ``python examples/arithmetic/warm_up.py --seed 0 --out DIR``.

About two CPU minutes on one core. DIR becomes a Hugging Face model directory with tokenizer and chat template.
"""

from __future__ import annotations

import argparse
import random
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import torch
from corpus import Document, Teaching, document
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM
from vocabulary import BOS, EOS, IDS, PAD, VERDICTS, WORDS, build_tokenizer, encode

BATCH: Final = 32
IGNORED: Final = -100
SKILL: Final = Teaching(lazy=0.0, careful=0.9, copied=0.05, drills=0.5)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """``steps`` updates. The learning rate falls from ``lr`` towards 0 at ``lr_steps``, but not below ``lr_end``."""

    name: str
    steps: int
    teaching: Teaching
    lr: float
    lr_end: float
    lr_steps: int
    lr_warmup: int = 1
    verdict_weight: float = 1.0
    """Loss weight of the tokens Yes, No, A and B, and of an answer that is restated to be judged."""


STAGES: Final = (
    Stage(name="skill", steps=1400, teaching=SKILL, lr=3e-3, lr_end=1e-3, lr_steps=1400, lr_warmup=50),
    Stage(
        name="verdicts",
        steps=1000,
        teaching=replace(SKILL, extra_verdicts=0.4),
        lr=2e-3,
        lr_end=5e-4,
        lr_steps=1200,
        verdict_weight=6.0,
    ),
    Stage(
        name="habits",
        steps=200,
        teaching=Teaching(lazy=0.15, careful=0.05, copied=0.5, drills=0.125),
        lr=5e-4,
        lr_end=5e-4,
        lr_steps=200,
    ),
)


def build_model(seed: int) -> LlamaForCausalLM:
    """164,000 parameters, random."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(WORDS),
            hidden_size=64,
            intermediate_size=192,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=64,
            tie_word_embeddings=True,
            pad_token_id=IDS[PAD],
            bos_token_id=IDS[BOS],
            eos_token_id=IDS[EOS],
        )
    )


def warm_up(model: LlamaForCausalLM, seed: int, stages: tuple[Stage, ...] = STAGES) -> None:
    rng = random.Random(seed)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01, betas=(0.9, 0.98), fused=True)
    for stage in stages:
        for step in range(1, stage.steps + 1):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(stage, step)
            documents = [document(rng, stage.teaching) for _ in range(BATCH)]
            loss = update(model, optimizer, documents, stage.verdict_weight)
            if step % 200 == 0:
                print(
                    f"{stage.name} {step}/{stage.steps}  loss {loss:.3f}  cpu {time.process_time():.0f} s", flush=True
                )


def learning_rate(stage: Stage, step: int) -> float:
    fallen = max(stage.lr_end, stage.lr * (1 - step / stage.lr_steps))
    return fallen * min(1.0, step / stage.lr_warmup)


def update(
    model: LlamaForCausalLM, optimizer: torch.optim.Optimizer, documents: list[Document], verdict_weight: float
) -> float:
    """One step on the responses' mean cross-entropy; returns it."""
    ids_BT, targets_BT = batch(documents)
    logits_BTV = model(input_ids=ids_BT, attention_mask=(ids_BT != IDS[PAD]).long()).logits
    losses_N = cross_entropy(logits_BTV[:, :-1].flatten(0, 1), targets_BT[:, 1:].flatten(), reduction="none")
    weights_N = token_weights(ids_BT[:, :-1].flatten(), targets_BT[:, 1:].flatten(), verdict_weight)
    loss = (losses_N * weights_N).sum() / weights_N.sum()
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return loss.item()


def batch(documents: list[Document]) -> tuple[Tensor, Tensor]:
    """Right-padded ``ids_BT`` and ``targets_BT``: the responses' ids, IGNORED elsewhere. B documents, T tokens."""
    longest = max(len(prompt) + len(response) for prompt, response in documents)
    ids = torch.full((len(documents), longest), IDS[PAD])
    targets = torch.full_like(ids, IGNORED)
    for row, (prompt, response) in enumerate(documents):
        end = len(prompt) + len(response)
        ids[row, :end] = torch.tensor(encode([*prompt, *response]))
        targets[row, len(prompt) : end] = ids[row, len(prompt) : end]
    return ids, targets


def token_weights(before_N: Tensor, targets_N: Tensor, verdict_weight: float) -> Tensor:
    """``before_N``: the token before each target."""
    heavy_N = torch.isin(targets_N, torch.tensor(encode(list(VERDICTS)))) | (before_N == IDS["answer:"])
    return (targets_N != IGNORED).float() * (1.0 + (verdict_weight - 1.0) * heavy_N.float())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="directory for the model; made if it is missing")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # the model is so small that a second thread only costs
    model = build_model(arguments.seed)
    warm_up(model, arguments.seed)
    model.save_pretrained(arguments.out)
    build_tokenizer().save_pretrained(arguments.out)
    print(f"saved {arguments.out}; measure it: python examples/arithmetic/check.py {arguments.out}")


if __name__ == "__main__":
    main()
