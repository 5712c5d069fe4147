"""A training process that is killed, again and again, ends as one that never was."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

STEPS, EVERY = 1200, 11

TRAIN = """
import os, sys
sys.path[:0] = {path!r}
import torch
from models import everything, make_closure, make_net
from salsa_fused import FusedSaLSa

file = sys.argv[1]
net = make_net()
optimizer = FusedSaLSa(net.parameters(), module=net, check_replay=False)
torch.manual_seed(5)
first = 0
if os.path.exists(file):
    saved = torch.load(file, weights_only=True)
    net.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    torch.set_rng_state(saved["stream"])
    first = saved["step"]
print("ready", flush=True)
for step in range(first, {steps}):
    optimizer.step(make_closure(net, step))
    if (step + 1) % {every} == 0 or step + 1 == {steps}:
        state = dict(model=net.state_dict(), optimizer=optimizer.state_dict(),
                     stream=torch.get_rng_state(), step=step + 1)
        torch.save(state, file + ".new")
        os.replace(file + ".new", file)
"""


def start(file):
    code = TRAIN.format(path=sys.path, steps=STEPS, every=EVERY)
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(file)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    return process


def steps_done(file):
    return torch.load(file, weights_only=True)["step"] if file.exists() else 0


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_killed_five_times(tmp_path):
    undisturbed, killed = tmp_path / "undisturbed.pt", tmp_path / "killed.pt"
    process, started = start(undisturbed), time.perf_counter()
    assert process.wait() == 0
    length = time.perf_counter() - started

    moments = random.Random(0)
    kills = 0
    while kills < 5:
        process = start(killed)
        before = steps_done(killed)
        time.sleep(moments.uniform(0.0, length / 8))
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "it ended before it could be killed"
        kills += 1
        assert before <= steps_done(killed) < STEPS
    assert start(killed).wait() == 0
    ours, theirs = (flat(torch.load(Path(f), weights_only=True)) for f in (killed, undisturbed))
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        other = theirs[name]
        same = torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other
        assert same, name


def flat(tree, prefix=""):
    """Every leaf of a checkpoint, by its path."""
    if isinstance(tree, (dict, list)):
        items = tree.items() if isinstance(tree, dict) else enumerate(tree)
        return {k: v for name, value in items for k, v in flat(value, f"{prefix}/{name}").items()}
    return {prefix: tree}
