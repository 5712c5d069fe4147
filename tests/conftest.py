"""What holds for all tests: which package they import, threads, hypothesis' profiles."""

import importlib.util
import os

# read when OpenMP loads, before torch: threads that wait must not spin, on a shared machine they
# turn milliseconds into seconds; and processes side by side have one thread each
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis
import pytest
import which_package

which_package.choose()  # before anything imports it

hypothesis.settings.register_profile("test", max_examples=200, deadline=None)
hypothesis.settings.register_profile("fuzz", max_examples=10_000, deadline=None)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "test"))

# what bench/ trains, shows and plots with is optional
if not all(map(importlib.util.find_spec, ("rich", "matplotlib", "sklearn", "transformers"))):
    collect_ignore_glob = ["bench/*"]


def pytest_report_header() -> list[str]:
    missing = "collect_ignore_glob" in globals()
    lines = ["without tests/bench: pip install -e '.[bench]'"] * missing
    return [which_package.description(), *lines]


@pytest.fixture(params=[True, False], ids=["compiled", "python"])
def looks(request, monkeypatch):
    """What looks at tensors, as it is and as it is without the compiled module."""
    from salsa_fused.kernels import columns

    if not request.param:
        monkeypatch.setattr(columns, "look", columns.InPython())
    return columns
