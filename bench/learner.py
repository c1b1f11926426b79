"""The learner's step: tokens per second against a hand-written loop, packed against padded, and peak memory.

``python -m bench.learner [--repeats 7] [--tokens 8192]``. The loop written by hand makes the same update of the same
model on the same packed batch with nothing around it: no statistics, no objectives, no metrics. Arms take turns, so
that a busy machine slows all; ratios are medians over the turns. Peak memory is that of one forward and backward
pass at a vocabulary of 150,000, each measured in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
from rich.console import Console
from rich.table import Table

from common.messages import OBJECTIVES
from common.settings import Settings
from learner.packing import Microbatch, pack
from learner.samples import Sample

MEMORY: Final = {"vocabulary": 150_000, "tokens": 1024}
ARMS: Final = ("engine", "minimal", "padded")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=8192, help="prompt and completion tokens of one batch")
    parser.add_argument("--memory-of", choices=("engine", "naive"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if arguments.memory_of:
        print(peak_mb(arguments.memory_of))
        return
    memory = {arm: in_a_child(arm) for arm in ("engine", "naive")}
    report(times(arguments.tokens, arguments.repeats), memory, arguments)


# -- what is trained ------------------------------------------------------------------------------------------


def save_model(folder: Path, vocabulary: int) -> None:
    """A random Qwen3 of 3.4 million parameters at a vocabulary of 512."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        tie_word_embeddings=True,
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)


def samples(tokens: int, vocabulary: int) -> list[Sample]:
    """Groups of four with a prompt in common, completions of mixed lengths: mean about 110 tokens, 600 at most."""
    rng, made = np.random.default_rng(0), []
    while sum(map(len, made)) < tokens:
        prompt = rng.integers(0, vocabulary, rng.integers(24, 72)).astype(np.int32)
        for length in np.clip(rng.exponential(110, 4), 8, 600).astype(int):
            made.append(
                Sample(
                    objective=OBJECTIVES[len(made) // 4 % len(OBJECTIVES)],
                    prompt_token_ids=prompt,
                    token_ids=rng.integers(0, vocabulary, length).astype(np.int32),
                    behaviour_logprobs=np.full(length, -np.log(vocabulary), dtype=np.float32),
                    advantage=float(rng.normal()),
                    staleness=0,
                )
            )
    return made


def settings_of(folder: Path, **learner: Any) -> Settings:
    return Settings(model={"path": str(folder)}, learner={"lr": 1e-5, "warmup_steps": 0, **learner})


# -- tokens per second ----------------------------------------------------------------------------------------


def times(tokens: int, repeats: int) -> dict[str, list[float]]:
    """Seconds of one optimizer step, per arm and turn."""
    import torch

    from learner.torch_engine import TorchEngine

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_model(folder, 512)
        batch = pack(samples(tokens, 512), 2048)
        engine, padded = (
            TorchEngine(settings_of(folder)),
            TorchEngine(settings_of(folder, packing=False, tokens_per_microbatch=2048)),
        )
        steps: dict[str, Callable[[], object]] = {
            "engine": lambda: engine.step(batch),
            "minimal": minimal_loop(folder, batch),
            "padded": lambda: padded.step(batch),
        }
        seconds: dict[str, list[float]] = {arm: [] for arm in ARMS}
        for turn in range(repeats + 1):
            for arm in ARMS if turn % 2 else reversed(ARMS):
                started = time.perf_counter()
                steps[arm]()
                if turn:  # the first one warms up
                    seconds[arm].append(time.perf_counter() - started)
    return seconds


def minimal_loop(folder: Path, batch: list[Microbatch]) -> Callable[[], None]:
    """PPO on a packed batch with torch and transformers alone; everything that can be is computed beforehand."""
    import torch
    from transformers import AutoModelForCausalLM

    from learner.attention import PACKED, Segments

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model.set_attn_implementation(PACKED)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    total = sum(int(part.is_target_T.sum()) for part in batch)
    inputs = []
    for part in batch:
        starts, targets = torch.from_numpy(part.starts_S1), torch.from_numpy(part.targets_N)
        inputs.append(
            (
                torch.from_numpy(part.token_ids_T)[None],
                torch.cat([torch.arange(length) for length in part.lengths_S.tolist()])[None],
                Segments.of(part.starts_S1, torch.device("cpu")),
                targets,
                torch.from_numpy(part.behaviour_logprobs_T)[targets],
                torch.from_numpy(part.advantages_S)[torch.searchsorted(starts, targets, right=True) - 1],
            )
        )

    def step() -> None:
        for ids, places, segments, targets, behaviour, advantages in inputs:
            logits = model(
                input_ids=ids, position_ids=places, segments=segments, use_cache=False, logits_to_keep=targets - 1
            ).logits[0]
            logprobs = torch.log_softmax(logits, dim=-1).gather(1, ids[0, targets][:, None])[:, 0]
            ratio = (logprobs - behaviour).exp()
            gain = torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages)
            (-gain.sum() / total).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


# -- memory ---------------------------------------------------------------------------------------------------


def in_a_child(arm: str) -> float:
    command = [sys.executable, "-m", "bench.learner", "--memory-of", arm]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return float(done.stdout.splitlines()[-1])  # what comes before is log


def peak_mb(arm: str) -> float:
    """Most memory that one forward and backward pass holds beyond model and gradients, MB; Linux only."""
    import torch
    from transformers import AutoModelForCausalLM

    from learner.scorer import Scorer

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        save_model(Path(name), MEMORY["vocabulary"])
        model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32).eval()
    [batch] = pack(samples(MEMORY["tokens"], MEMORY["vocabulary"]), 10**6)
    scorer = Scorer(model, settings_of(Path("unused"), packing=True)) if arm == "engine" else None
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    before = resident_mb("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the high-water mark starts again
    if scorer is not None:
        scorer(batch).logprobs.sum().backward()
    else:
        naive_logprobs(model, batch).sum().backward()
    return resident_mb("VmHWM") - before


def naive_logprobs(model: Any, batch: Microbatch) -> Any:
    """Log-probs [T - S] of all tokens, from logits of all tokens; the packed row as in the other arm."""
    import torch

    from learner.attention import PACKED
    from learner.layout import packed

    model.set_attn_implementation(PACKED)
    arguments = packed(batch, torch.device("cpu")).arguments
    logprobs = torch.log_softmax(model(**arguments).logits[0, :-1], dim=-1)
    return logprobs.gather(1, arguments["input_ids"][0, 1:, None])[:, 0]


def resident_mb(name: str) -> float:
    """``VmRSS`` (now) or ``VmHWM`` (the most so far) of this process."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


# -- report ---------------------------------------------------------------------------------------------------


def report(seconds: dict[str, list[float]], memory: dict[str, float], arguments: argparse.Namespace) -> None:
    made = samples(arguments.tokens, 512)
    tokens = sum(map(len, made))
    rates = {arm: tokens / statistics.median(found) for arm, found in seconds.items()}
    ratio = {
        arm: statistics.median(a / b for a, b in zip(seconds[arm], seconds["engine"], strict=True))
        for arm in ("minimal", "padded")
    }
    table = Table(title=f"{len(made)} samples, {tokens} tokens a step; median of {arguments.repeats} turns")
    for column in ("arm", "tokens/s", "engine over arm"):
        table.add_column(column)
    for arm in ARMS:
        table.add_row(arm, f"{rates[arm]:.0f}", f"{ratio[arm]:.2f}" if arm in ratio else "")
    console = Console(width=120)
    console.print(table)
    console.print(
        f"peak of one pass at V = {MEMORY['vocabulary']:,}, {MEMORY['tokens']} tokens: "
        f"{memory['engine']:.0f} MB against {memory['naive']:.0f} MB naively"
    )
    figures = {
        "engine_over_minimal": ratio["minimal"],
        "packed_over_padded": ratio["padded"],
        "tokens_per_s": rates,
        "peak_mb": memory,
        "peak_share_of_naive": memory["engine"] / memory["naive"],
        "reference": "minimal",
        "samples": len(made),
        "tokens": tokens,
        "repeats": arguments.repeats,
        "seconds": seconds,
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
