"""Threads that wait must not spin: on a shared machine they turn milliseconds into seconds."""

import importlib.util
import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when OpenMP loads, before torch

import hypothesis
import pytest
import which_package

which_package.choose()  # before anything imports it

hypothesis.settings.register_profile("test", max_examples=200, deadline=None)
hypothesis.settings.register_profile("fuzz", max_examples=10_000, deadline=None)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "test"))

# what bench/ shows and plots with is optional
if not all(map(importlib.util.find_spec, ("rich", "matplotlib", "sklearn"))):
    collect_ignore_glob = ["test_bench*.py", "test_swapin.py"]


def pytest_report_header() -> list[str]:
    missing = "collect_ignore_glob" in globals()
    lines = ["without test_bench*.py: pip install -e '.[bench]'"] * missing
    return [which_package.description(), *lines]


@pytest.fixture(params=[True, False], ids=["compiled", "python"])
def looks(request, monkeypatch):
    """What looks at tensors, as it is and as it is without the compiled module."""
    from salsa_fused.kernels import watch

    if not request.param:
        monkeypatch.setattr(watch, "module", None)
        monkeypatch.setattr(watch, "reader", None)
    return watch
