"""What one CUDA machine can do: its tests, generation, updates in the middle of it, and the learner's step in bf16.

``python -m bench.gpu [--shape 1b] [--repeats 3] [--json FILE]``. First ``pytest -m gpu tests/gpu``, which ends with a
small run of all processes; then each measurement in a process of its own, on a Llama of random weights that is made
here. Parts of what is not installed (vLLM) are left out by name. Ends with 1 when a test or a part failed.

- generation: tokens per second of an engine driven bare, 64 groups of 8 completions of 256 tokens.
- update: the same with new weights every second. ``apply``: the engine's pause; ``first token``: until the first step
  under the new weights is over.
- learner: an optimizer step in bf16 over float32 master weights, prompts and completions of mixed lengths; 6 FLOP per
  parameter and token are counted.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from bench.random_llama import SHAPES, Shape
from common.errors import SparkError

ROOT: Final = Path(__file__).resolve().parent.parent
SHARED_MEMORY: Final = Path("/dev/shm")
LEARNER_BYTES: Final = 24
"""Of GPU memory per parameter: 16 for weights, gradient and AdamW in float32, the rest for activations."""
STORED_BYTES: Final = 8
"""Per parameter, on disk or in shared memory: the model, two published versions and what the learner writes."""
PART_LIMIT_S: Final = 1800.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=sorted(SHAPES), help="default: the largest that the GPU can train")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, default=Path("gpu.json"), help="where the figures go")
    parser.add_argument("--no-tests", action="store_true", help="measure only")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    machine = describe(arguments.device)
    shape = arguments.shape or largest_for(machine["memory_bytes"])
    print(f"{machine['device']}, torch {machine['torch']}, CUDA {machine['cuda']}, Python {machine['python']}")
    results: dict[str, Any] = {"machine": machine, "shape": shape}
    if not arguments.no_tests:
        results["tests"] = run_tests()
    results |= measure(shape, arguments.device, arguments.repeats)
    arguments.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print("\n".join(lines_of(results)))
    print(f"figures: {arguments.json}")
    sys.exit(1 if failed(results) else 0)


def describe(device: str) -> dict[str, Any]:
    """Leaves with one sentence when the device is not there."""
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        sys.exit("bench.gpu needs a CUDA device and torch finds none; bench.engines and bench.learner measure on CPUs")
    on_gpu = device == "cuda"
    return {
        "device": torch.cuda.get_device_name() if on_gpu else "the CPU",
        "memory_bytes": torch.cuda.get_device_properties(0).total_memory if on_gpu else 0,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": sys.version.split()[0],
    }


def largest_for(memory_bytes: int) -> str:
    """The largest shape that a GPU of so many bytes can train; the smallest when there is none."""
    by_size = sorted(SHAPES, key=lambda name: SHAPES[name].parameters)
    fitting = [name for name in by_size if LEARNER_BYTES * SHAPES[name].parameters <= memory_bytes]
    return fitting[-1] if fitting else by_size[0]


def place_for(shape: Shape) -> Path:
    """Shared memory, where weights travel in a run, if it has the room for twice of what is stored."""
    needed = 2 * STORED_BYTES * shape.parameters
    roomy = SHARED_MEMORY.is_dir() and shutil.disk_usage(SHARED_MEMORY).free >= needed
    return SHARED_MEMORY if roomy else Path(tempfile.gettempdir())


def run_tests() -> dict[str, Any]:
    """``pytest -m gpu``, its output shown as it comes; the exit code and its last line."""
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-rs", "-p", "no:cacheprovider", "tests/gpu"]
    last = ""
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None  # PIPE
        for line in process.stdout:
            print(line, end="", flush=True)
            last = line.strip(" =\n") or last
    return {"exit_code": process.returncode, "summary": last}


# -- parts ----------------------------------------------------------------------------------------------------


def measure(shape: str, device: str, repeats: int) -> dict[str, Any]:
    """Figures by part; of one that failed ``error``, its last words."""
    from bench.gpu_parts import Job

    parts = ["transformers", *(["vllm"] if find_spec("vllm") else []), "learner"]
    with tempfile.TemporaryDirectory(prefix="spark-gpu-", dir=place_for(SHAPES[shape])) as name:
        job = Job(folder=Path(name), shape=shape, device=device, repeats=repeats)
        if shape == "tiny":
            job = tiny(job)
        job.write(job.folder / "job.json")
        made = run_part("model", job.folder)
        if "error" in made:
            return {"model": made, "parts": {}}
        return {"model": made, "parts": {part: run_part(part, job.folder) for part in parts}}


def tiny(job: Any) -> Any:
    """So little work that a CPU has done it in seconds."""
    work = {"groups": 8, "siblings": 2, "prompt_tokens": 16, "new_tokens": 64, "sequences": 16}
    return replace(job, **work, update_every_s=0.05, learner_tokens=512, microbatch_tokens=256)


def run_part(part: str, folder: Path) -> dict[str, Any]:
    out, log = folder / f"{part}.json", folder / f"{part}.log"
    command = [sys.executable, "-m", "bench.gpu_parts", part, str(folder / "job.json"), str(out)]
    print(f"measuring: {part} ...", flush=True)
    try:
        with log.open("wb") as output:
            code = subprocess.run(
                command, cwd=ROOT, stdout=output, stderr=output, timeout=PART_LIMIT_S, check=False
            ).returncode
    except subprocess.TimeoutExpired:
        return {"error": f"not done after {PART_LIMIT_S:.0f} s"}
    if code == 0:
        return dict(json.loads(out.read_text(encoding="utf-8")))
    said = log.read_text(encoding="utf-8", errors="replace").strip()
    print(said[-8000:])
    return {"error": said.splitlines()[-1] if said else f"ended with {code}"}


# -- report ---------------------------------------------------------------------------------------------------


def failed(results: dict[str, Any]) -> bool:
    parts = [results["model"], *results["parts"].values()]
    return any("error" in part for part in parts) or results.get("tests", {}).get("exit_code", 0) != 0


def lines_of(results: dict[str, Any]) -> list[str]:
    """For people."""
    model, lines = results["model"], []
    if "tests" in results:
        lines.append(f"tests: {results['tests']['summary']}")
    if "error" in model:
        return [*lines, f"the model could not be made: {model['error']}"]
    lines.append(
        f"model: {results['shape']}, {model['parameters'] / 1e9:.2f} billion parameters, "
        f"{model['published_bytes'] / 1e9:.2f} GB published in {model['publish_s']:.2f} s"
    )
    for part, figures in results["parts"].items():
        if "error" in figures:
            lines.append(f"{part}: FAILED: {figures['error']}")
        else:
            lines += learner_lines(figures) if part == "learner" else engine_lines(part, figures)
    return lines


def engine_lines(name: str, figures: dict[str, Any]) -> list[str]:
    lines = [f"{name}: {figures['tokens_per_s']:,.0f} tokens/s; weights verified in {figures['verify_s']:.2f} s"]
    for kv, update in figures["update"].items():
        lines.append(
            f"{name}, KV cache {kv}: {update['updates']} updates, apply {update['apply_s']:.2f} s, first token "
            f"{update['first_token_s']:.2f} s, {update['tokens_per_s']:,.0f} tokens/s ({update['of_no_update']:.2f})"
        )
    return lines


def learner_lines(figures: dict[str, Any]) -> list[str]:
    lines = []
    for arm, found in figures.items():
        memory = f", peak {found['peak_gib']:.1f} GiB" if "peak_gib" in found else ""
        lines.append(
            f"learner, {arm}: {found['tokens_per_s']:,.0f} tokens/s, {found['tflop_per_s']:.1f} TFLOP/s{memory}, "
            f"weights written in {found['write_weights_s']:.2f} s"
        )
    return lines


if __name__ == "__main__":
    try:
        main()
    except SparkError as error:
        sys.exit(f"bench.gpu: {error}")
