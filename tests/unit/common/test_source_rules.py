"""Rules about our own source: no code from data, no shadowed package, light imports."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PACKAGES = ("actors", "learner", "recycler", "common", "cli")
FORBIDDEN_MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}
FORBIDDEN_BUILTINS = {"eval", "exec", "__import__"}
FORBIDDEN_CALLS = {"torch.load", "torch.save", "numpy.load", "np.load", "yaml.load", "yaml.unsafe_load"}
HEAVY = ("torch", "transformers", "vllm", "deepspeed", "datasets", "math_verify", "matplotlib")


def dotted(node: ast.expr) -> str:
    """``a.b.c`` of a name or an attribute; empty for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (owner := dotted(node.value)):
        return f"{owner}.{node.attr}"
    return ""


def imported(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module:
        yield node.module
        yield from (f"{node.module}.{alias.name}" for alias in node.names)


def violations(source: str) -> list[str]:
    """What turns data into code."""
    found = []
    for node in ast.walk(ast.parse(source)):
        found += [name for name in imported(node) if name.split(".")[0] in FORBIDDEN_MODULES or name in FORBIDDEN_CALLS]
        if isinstance(node, ast.Call):
            name = dotted(node.func)
            if name in FORBIDDEN_CALLS | FORBIDDEN_BUILTINS:
                found.append(name)
            safe = any(k.arg == "allow_pickle" and getattr(k.value, "value", None) is False for k in node.keywords)
            if not safe and any(keyword.arg == "allow_pickle" for keyword in node.keywords):
                found.append("allow_pickle")
    return found


@pytest.mark.parametrize("package", PACKAGES)
def test_no_data_becomes_code(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files, f"{package} has no source"
    assert {str(path.relative_to(ROOT)): bad for path in files if (bad := violations(path.read_text()))} == {}


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "import pickle as p",
        "from pickle import loads",
        "def f():\n    import cloudpickle",
        "import dill.detect",
        "from torch import load",
        "import torch\ntorch.load('x')",
        "import torch\ntorch.load('x', weights_only=True)",
        "eval('1')",
        "exec('1')",
        "__import__('pickle')",
        "import marshal",
        "import numpy as np\nnp.load('x')",
        "reader(allow_pickle=True)",
        "reader(allow_pickle=flag)",
    ],
)
def test_the_rule_sees(source: str) -> None:
    assert violations(source)


@pytest.mark.parametrize("source", ["model.eval()", "import json", "json.load(f)", "reader(allow_pickle=False)"])
def test_the_rule_lets_pass(source: str) -> None:
    assert violations(source) == []


@pytest.mark.parametrize("name", PACKAGES)
def test_package_resolves_inside_this_repo(name: str) -> None:
    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.origin is not None
    assert Path(spec.origin).is_relative_to(ROOT), f"{name!r} is shadowed by {spec.origin}"


def modules_after(statement: str) -> set[str]:
    """Top-level modules of a fresh interpreter that ran this."""
    answer = subprocess.run(
        [sys.executable, "-c", f"import sys\n{statement}\nprint(*{{name.split('.')[0] for name in sys.modules}})"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return set(answer.stdout.split())


def modules_of(package: str) -> list[str]:
    """Every module but the entry point, which starts the process."""
    return [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in sorted((ROOT / package).rglob("*.py"))
        if path.name != "__main__.py"
    ]


@pytest.mark.parametrize("package", ["common", "recycler"])
def test_every_module_imports_light(package: str) -> None:
    statement = "\n".join(f"import {name}" for name in modules_of(package))
    assert modules_after(statement).isdisjoint(HEAVY)


@pytest.mark.parametrize("package", ["actors", "learner", "recycler", "cli"])
def test_an_entry_point_imports_light(package: str) -> None:
    """`--help`, and every mistake in the settings, must not wait for torch."""
    assert modules_after(f"import {package}.__main__").isdisjoint(HEAVY)


def test_a_heavy_import_would_be_seen() -> None:
    assert "matplotlib" in modules_after("import matplotlib")
