"""The examples: short, and told of; those with a trainer are run by tests/integrations."""

from __future__ import annotations

import ast
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
LONGEST = 65  # lines


def test_the_quickstart(capsys):
    pytest.importorskip("sklearn")
    main = runpy.run_path(str(ROOT / "examples" / "quickstart.py"))["main"]
    assert main(epochs=2) > 0.7
    assert "epoch 2: loss" in capsys.readouterr().out


def test_the_first_ten_minutes(capsys):
    pytest.importorskip("sklearn")
    runpy.run_path(str(ROOT / "examples" / "first_ten_minutes.py"))["main"](steps=200)
    said = capsys.readouterr().out
    assert said.count("AdamW with lr=") == 3 and said.count("applied step size") == 5
    assert "suggested for AdamW: lr=" in said and "'outcome': 'accepted'" in said
    assert said.rstrip().endswith("equal: True")


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_each_is_short_and_says_how_to_run_it(path):
    text = path.read_text()
    assert len(text.splitlines()) < LONGEST
    usage = ast.get_docstring(ast.parse(text))
    assert f"&& python examples/{path.name}" in usage or f"2 examples/{path.name}" in usage


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_each_is_run_by_a_test(path):
    tests = [test.read_text() for test in (ROOT / "tests").rglob("test_*.py")]
    assert any(f'/ "{path.name}"' in text for text in tests)


def test_there_are_some():
    assert len(EXAMPLES) >= 6
