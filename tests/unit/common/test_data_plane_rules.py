"""Rules about our own source: no shell, no compiler, and no model code unless the settings ask for it.

Pickles, eval and unsafe loaders are the business of test_source_rules.py.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PACKAGES = ("actors", "learner", "recycler", "common", "cli")
FORBIDDEN_MODULES = {"jsonpickle", "hickle", "pty"}
FORBIDDEN_CALLS = {
    "compile",
    "os.system",
    "os.popen",
    "subprocess.getoutput",
    "subprocess.getstatusoutput",
    "asyncio.create_subprocess_shell",
    "yaml.load_all",
    "yaml.full_load",
    "torch.hub.load",
    "torch.jit.load",
}


def real_names(tree: ast.AST) -> dict[str, str]:
    """Local name -> what was imported under it."""
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.asname or alias.name.split(".")[0]: alias.name for alias in node.names if alias.asname}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return names


def dotted(node: ast.expr, names: dict[str, str]) -> str:
    """``a.b.c`` of a name or an attribute, with ``a`` as it was imported; empty for anything else."""
    if isinstance(node, ast.Name):
        return names.get(node.id, node.id)
    if isinstance(node, ast.Attribute) and (owner := dotted(node.value, names)):
        return f"{owner}.{node.attr}"
    return ""


def modules(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module:
        yield node.module


def told_by_settings(value: ast.expr) -> bool:
    """``anything.trust_remote_code`` (the setting) or a plain False."""
    setting = isinstance(value, ast.Attribute) and value.attr == "trust_remote_code"
    return setting or (isinstance(value, ast.Constant) and value.value is False)


def argument_violations(node: ast.AST) -> Iterator[str]:
    """Of keywords and of dictionaries that become keywords."""
    pairs: list[tuple[object, ast.expr]] = []
    if isinstance(node, ast.Call):
        pairs = [(keyword.arg, keyword.value) for keyword in node.keywords]
    elif isinstance(node, ast.Dict):
        pairs = [(getattr(key, "value", None), value) for key, value in zip(node.keys, node.values, strict=True)]
    for name, value in pairs:
        if name == "shell" and not (isinstance(value, ast.Constant) and value.value is False):
            yield "shell"
        if name == "trust_remote_code" and not told_by_settings(value):
            yield "trust_remote_code"


def violations(source: str) -> list[str]:
    tree = ast.parse(source)
    names, found = real_names(tree), []
    for node in ast.walk(tree):
        found += [name for name in modules(node) if name.split(".")[0] in FORBIDDEN_MODULES]
        found += argument_violations(node)
        if isinstance(node, ast.Call) and (name := dotted(node.func, names)) in FORBIDDEN_CALLS:
            found.append(name)
    return found


def violations_in(folder: Path) -> dict[str, list[str]]:
    """Path -> what is wrong there, for every Python file below a folder."""
    files = sorted(folder.rglob("*.py"))
    assert files, f"{folder} has no source"
    return {str(path.relative_to(folder)): bad for path in files if (bad := violations(path.read_text()))}


@pytest.mark.parametrize("package", PACKAGES)
def test_no_shell_no_compiler_and_no_unasked_model_code(package: str) -> None:
    assert violations_in(ROOT / package) == {}


def test_a_planted_violation_is_found(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "good.py").write_text("import os\nos.replace('a', 'b')\n")
    (tmp_path / "deep" / "bad.py").write_text("import os as o\n\n\ndef f():\n    o.system('ls')\n")
    assert violations_in(tmp_path) == {"deep/bad.py": ["os.system"]}


@pytest.mark.parametrize(
    "source",
    [
        "import os\nos.system('ls')",
        "from os import system\nsystem('ls')",
        "from os import popen as p\np('ls')",
        "import subprocess\nsubprocess.run('ls', shell=True)",
        "import subprocess as s\ns.Popen('ls', shell=flag)",
        "options = {'shell': True}",
        "from subprocess import getoutput\ngetoutput('ls')",
        "import asyncio\nasyncio.create_subprocess_shell('ls')",
        "compile('1', 'f', 'exec')",
        "import jsonpickle",
        "from jsonpickle import decode",
        "load(path, trust_remote_code=True)",
        "load(path, trust_remote_code=flag)",
        "load(path, **{'trust_remote_code': True})",
        "import torch\ntorch.hub.load('a', 'b')",
        "from torch.jit import load\nload('a')",
    ],
)
def test_the_rule_sees(source: str) -> None:
    assert violations(source)


@pytest.mark.parametrize(
    "source",
    [
        "import re\nre.compile('a')",
        "model.compile()",
        "import subprocess\nsubprocess.run(['ls'])",
        "subprocess.run(['ls'], shell=False)",
        "load(path, trust_remote_code=settings.model.trust_remote_code)",
        "load(path, trust_remote_code=False)",
    ],
)
def test_the_rule_lets_pass(source: str) -> None:
    assert violations(source) == []
