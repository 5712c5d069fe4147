"""The tests test the package that is installed, where one is, and not the tree beside them."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import which_package
from which_package import ROOT

import salsa_fused

PACKAGE = Path(salsa_fused.__file__).parent


def test_the_installed_package_is_tested():
    try:
        installed = metadata.distribution("salsa_fused")
    except metadata.PackageNotFoundError:
        pytest.skip("it is not installed, but built in place")
    url = json.loads(installed.read_text("direct_url.json") or "{}")
    editable = url.get("dir_info", {}).get("editable", False)
    if editable or which_package.names_root(which_package.INHERITED):
        assert PACKAGE.parent == ROOT
    else:
        assert PACKAGE.parent == Path(str(installed.locate_file(""))).resolve()


@pytest.mark.parametrize("folder", ["root", "elsewhere"])
@pytest.mark.skipif(sys.version_info < (3, 11), reason="there is no PYTHONSAFEPATH")
def test_so_do_processes_that_tests_start(folder, tmp_path):
    code = "import importlib.util; print(importlib.util.find_spec('salsa_fused').origin)"
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT if folder == "root" else tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(run.stdout.strip()).parent == PACKAGE


def test_bench_is_the_trees():
    spec = importlib.util.find_spec("bench")
    assert spec is not None and Path(str(spec.origin)).parent == ROOT / "bench"


# -- the rule, with folders that look like a tree and an installation -------------------------


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A tree that comes first on the path, and is the current folder."""
    tree = tmp_path / "tree"
    (tree / "salsa_fused").mkdir(parents=True)
    (tree / "salsa_fused" / "__init__.py").touch()
    monkeypatch.setattr(which_package, "ROOT", tree)
    monkeypatch.setattr(sys, "path", ["", str(tree), str(tmp_path / "site")])
    for name in ("PYTHONPATH", "PYTHONSAFEPATH"):
        monkeypatch.setenv(name, "")  # so that it is put back where it was not there
        monkeypatch.delenv(name)
    monkeypatch.chdir(tree)
    return tree


def install(tmp_path, *names):
    """What an installation leaves in site-packages."""
    for name in names:
        (tmp_path / "site" / name).mkdir(parents=True)
        file = "METADATA" if name.endswith("-info") else "__init__.py"
        (tmp_path / "site" / name / file).write_text("Name: salsa_fused\n" * (file == "METADATA"))


def chosen():
    which_package.choose()
    return which_package.description(), sys.path, os.environ.get("PYTHONPATH")


def test_an_installed_copy_comes_first(tree, tmp_path):
    install(tmp_path, "salsa_fused", "salsa_fused-1.0.dist-info")
    (tmp_path / "site" / "salsa_fused" / "_native.so").touch()
    site = tmp_path / "site"
    says = f"salsa_fused: the installed one, with _native, in {site / 'salsa_fused'}"
    assert chosen() == (says, [str(site), str(tree)], None)
    assert os.environ["PYTHONSAFEPATH"] == "1"


@pytest.mark.parametrize("names", [(), ("salsa_fused-1.0.dist-info",), ("salsa_fused",)])
def test_without_one_it_is_the_tree(names, tree, tmp_path):
    """Not installed, installed editable, or something that pip knows nothing of."""
    install(tmp_path, *names)
    says = f"salsa_fused: the tree's, with no compiled module, in {tree / 'salsa_fused'}"
    assert chosen() == (says, [str(tree), str(tmp_path / "site")], str(tree))
    assert "PYTHONSAFEPATH" not in os.environ


def test_the_tree_by_wish(tree, tmp_path, monkeypatch):
    install(tmp_path, "salsa_fused", "salsa_fused-1.0.dist-info")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["/other", "."]))
    says, path, inherited = chosen()
    assert says.startswith("salsa_fused: the tree's") and path[0] == str(tree)
    assert inherited is not None and inherited.split(os.pathsep)[0] == str(tree)
    assert chosen()[1] == path  # and so do the processes that it starts
