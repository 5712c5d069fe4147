"""What torch does not document may go: without any of it the package imports, trains and loads.

And importing the package changes nothing in torch.
"""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from torch_without import NAMES, NOTHING, STEPS

import salsa_fused

HELPERS = Path(__file__).parent.parent / "helpers"
PACKAGE = Path(salsa_fused.__file__).parent


# -- without a name ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def results() -> dict[str, dict]:
    """What torch_without.py says of every name."""
    batches = [list(NAMES)] if hasattr(os, "fork") else [[name] for name in NAMES]
    found = {}
    for names in batches:
        command = [sys.executable, str(HELPERS / "torch_without.py"), *names]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
        for line in done.stdout.splitlines():
            result = json.loads(line)
            found[result["name"]] = result
    return found


@pytest.mark.parametrize("name", NAMES)
def test_it_trains_without(name, results):
    """To the same bits: what takes a name's place is slower, if anything."""
    result = results.get(name, {"error": "the process died"})
    assert "error" not in result, result["error"]
    if not result["had"] and name != NOTHING:
        pytest.skip(f"this torch has no {name}")
    first, *_, last = result["losses"]
    assert last < 0.5 * first and 0 < result["searches"] < STEPS
    assert result["weights"] == results[NOTHING]["weights"]
    # nobody can call a user's hooks where torch does not ask for it, or keeps them elsewhere
    unasked = name == "torch.optim.Optimizer.profile_hook_step"
    assert result["step_hooks"] == (0 if unasked else STEPS)
    assert result["load_hooks"] == (4 if "load_state_dict" in name else 8)


# -- importing --------------------------------------------------------------------------------

COMPARE = """
import importlib, pkgutil, sys, types
import torch, torch.nn.utils.parametrize, torch.optim.lr_scheduler

def is_torchs(name):
    return str(name).partition(".")[0] == "torch"

def everything():
    found = {}
    for name, module in list(sys.modules.items()):
        if is_torchs(name):
            found[name] = dict(vars(module))
            for value in list(vars(module).values()):
                if isinstance(value, type) and is_torchs(vars(value).get("__module__")):
                    found[f"{value.__module__}.{value.__qualname__}"] = dict(vars(value))
    return found

before = everything()
for name in ("torch.amp.grad_scaler.GradScaler", "torch.optim.optimizer", "torch.Tensor",
             "torch.optim.optimizer.Optimizer", "torch.nn.modules.module.Module"):
    assert len(before[name]) > 5, name
import salsa_fused
assert not {"accelerate", "lightning", "pytorch_lightning", "transformers"} & sys.modules.keys()
for package in (salsa_fused, salsa_fused.kernels, salsa_fused.kernels.backends):
    for module in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        if not module.name.endswith(("__main__", "_kernels", "_directions", "_rounding")):
            importlib.import_module(module.name)
after = everything()
for name, names in before.items():
    for key in names.keys() | after[name].keys():
        old, new = names.get(key), after[name].get(key)
        if old is not new and not isinstance(new, types.ModuleType):
            print(name, key)
"""


def test_importing_the_package_changes_nothing_in_torch():
    run = subprocess.run([sys.executable, "-c", COMPARE], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout == ""


# -- in one file ------------------------------------------------------------------------------

ALLOWED = {
    "_buffers",  # of nn.Module, since its first release
    *("_asdict", "_fields", "_replace"),  # of named tuples
    *("_current_frames", "_getframe"),  # of sys
}

# undocumented without a line in front
UNDOCUMENTED = {
    "__dlpack_c_exchange_api__",
    "clear_autocast_cache",
    "is_lazy",
    "profile_hook_step",
}

TREES = {
    path.relative_to(PACKAGE): ast.parse(path.read_text())
    for path in sorted(PACKAGE.rglob("*.py"))
    if path.name != "_torch.py"
}


def names_defined(trees: Iterable[ast.AST]) -> set[str]:
    """The package's own names: of functions, classes, modules, variables and attributes."""
    found = {"_torch", "_native", "_native_cuda"}
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            found.add(node.attr)
    return found


OWN = names_defined(TREES.values())


def names_used(tree: ast.AST) -> Iterator[tuple[str, bool]]:
    """Attributes, and what is imported from torch; whether it is certainly torch's."""
    torchs = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            modules, names = [node.module or ""], node.names
        elif isinstance(node, ast.Import):
            modules, names = [alias.name for alias in node.names], node.names
        else:
            continue
        if node.__dict__.get("level") or not re.match(r"torch\b", modules[0]):
            continue
        torchs |= {(alias.asname or alias.name).partition(".")[0] for alias in names}
        dotted = ".".join([*modules, *(alias.name for alias in names)])
        yield from ((part, True) for part in dotted.split("."))
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            root: ast.AST = node
            while isinstance(root, ast.Attribute):
                root = root.value
            yield node.attr, isinstance(root, ast.Name) and root.id in torchs
        elif isinstance(node, ast.Call):  # getattr and its like
            for argument in node.args[1:2]:
                if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                    yield argument.value, False


def private_names(tree: ast.AST) -> set[str]:
    return {
        name
        for name, certain in names_used(tree)
        if name in UNDOCUMENTED - (set() if certain else OWN)
        or (re.match(r"_(?!_)", name) and name not in (ALLOWED if certain else ALLOWED | OWN))
    }


@pytest.mark.parametrize("path", TREES, ids=str)
def test_no_other_file_names_what_torch_does_not_document(path):
    assert private_names(TREES[path]) == set()


def test_that_the_file_for_them_would_be_noticed():
    tree = ast.parse((PACKAGE / "_torch.py").read_text())
    assert len(private_names(tree)) >= 8


@pytest.mark.parametrize(
    "code",
    [
        "import torch\ntorch._foreach_copy_(a, b)",
        "import torch as t\nt._C.anything.at_all()",
        "import torch._dynamo",
        "from torch._C import anything",
        "from torch.nn.parameter import is_lazy",
        "from torch.nn.utils import parametrize as p\np._cache.clear()",
        "import torch\ntorch.autograd._parameters",  # a name that the package has, too
        "weight._cdata",
        "getattr(weight, '_cdata', None)",
        "self._optimizer_step_pre_hooks",
    ],
)
def test_what_counts_as_private(code):
    assert private_names(ast.parse(code))
