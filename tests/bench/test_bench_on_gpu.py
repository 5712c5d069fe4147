"""What only a GPU runs otherwise, with a fake one: benches, tests of the optimizer, `make gpu`."""

from __future__ import annotations

import subprocess
import sys
from argparse import Namespace
from functools import partial
from pathlib import Path

import fake_cuda
import pytest

from bench import gpu
from bench.results import Results, row

HELPER = Path(fake_cuda.__file__)

# of the fake and not of the optimizer: devices' names, other processes, the profiler and waits
NOT_FAKED = "waits or one_launch or without_a_c_compiler or two_kinds or plain_step_never"
# the bits of all kernels are looked at in tests/ptx
SLOW_THERE = "bits_over or special_models or trials_of_one_unit or slope_repeats or test_alignment"


def with_a_fake_gpu(*arguments, seconds=600):
    command = [sys.executable, str(HELPER), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("kernels", ["--rounds", "2"]),
        ("host", ["--rounds", "2"]),
        ("step", ["--rounds", "1"]),
        ("memory", []),
        ("train", ["--seeds", "1", "--work", "0.01", "--data", "digits-mlp"]),
    ],
)
def test_a_bench(name, options, tmp_path):
    file = tmp_path / f"{name}.json"
    with_a_fake_gpu("bench", name, "--device", "cuda", *options, "--json", file)
    found = Results.read(file)
    assert found.rows and found.environment["kind"] == "gpu"
    assert found.environment["device"] == fake_cuda.NAME
    left_out = {**found.settings.get("skipped", {}), **found.settings.get("missing", {})}
    # other optimizers may not have been fetched
    assert all(why.endswith("python -m bench data") for why in left_out.values()), left_out


@pytest.mark.slow
def test_the_tests_of_a_gpu():
    unfit = f"not ({NOT_FAKED} or {SLOW_THERE})"
    assert " passed" in with_a_fake_gpu(
        "pytest", "-q", "-p", "no:cacheprovider", "tests/kernels/test_cuda.py", "-k", unfit
    )


# -- make gpu ---------------------------------------------------------------------------------


@pytest.fixture
def first_hour(tmp_path, monkeypatch):
    """It with stages that end at once."""
    monkeypatch.setattr(gpu.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu.torch.cuda, "get_device_name", lambda index: "NVIDIA A40")
    folder, timed_row = tmp_path / "nvidia-a40", partial(row, timed=True)
    share = timed_row("kernels", "BERT-base, fp32", "next_trial, triton", "of_copy", "1", [0.93])
    slow = timed_row("kernels", "BERT-base, fp32", "a plain step, triton", "of_copy", "1", [0.88])
    step = timed_row("kernels", "BERT-base, fp32", "a plain step, triton", "to_fused", "1", [0.97])

    def python(code):
        return [sys.executable, "-c", code]

    def stages(into):
        Results({"device": "a"}, [share, slow, step], settings={}).write(tmp_path / "made.json")
        copy = f"import shutil; shutil.copy({str(tmp_path / 'made.json')!r}, {str(into)!r} + "
        return [
            gpu.Stage("tests", python("print('77 passed')"), 1, "tests.txt"),
            gpu.Stage("kernels", python(copy + "'/kernels.json')"), 1, "kernels.json"),
            gpu.Stage("step", python("raise SystemExit(3)"), 1, "step.json"),
            gpu.Stage("memory", python("import time; time.sleep(60)"), 0.02, "memory.json"),
        ]

    monkeypatch.setattr(gpu, "stages", stages)
    return lambda: (gpu.gpu(Namespace(out=tmp_path)), folder)


def test_the_first_hour_and_its_summary(first_hour, capsys):
    status, folder = first_hour()
    lines = (folder / "summary.txt").read_text().splitlines()
    assert status == 1 and len(lines) == 5
    assert lines[0] == "tests: 77 passed"
    assert lines[1] == "memcheck: not run; racecheck: not run"
    assert "does NOT hold (worst: a plain step, triton (BERT-base, fp32), 0.88)" in lines[2]
    assert "holds (worst: BERT-base, fp32, 0.97)" in lines[3]
    assert "step: exit status 3" in lines[4] and "memory: stopped after 0.02 minutes" in lines[4]
    capsys.readouterr()
    first_hour()
    said = capsys.readouterr().out
    assert "tests: there already" in said and "kernels: there already" in said
    assert "step: there already" not in said


def test_the_stages_take_an_hour_at_most(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu.shutil, "which", lambda name: f"/usr/bin/{name}")
    found = gpu.stages(tmp_path)
    assert sum(stage.minutes for stage in found) <= 60
    assert {"memcheck", "racecheck", "kernels", "step", "memory", "train"} <= {
        s.name for s in found
    }
