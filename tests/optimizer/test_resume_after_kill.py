"""A training process that is killed, again and again, ends as one that never was."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

STEPS, EVERY = 600, 11

TRAINER = """
import os, sys
sys.path[:0] = {path!r}
import torch
from small_net import make_closure, make_net
from snapshots import everything
from salsa_fused import FusedSaLSa

def train(file):
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
    print(os.getpid(), flush=True)
    for step in range(first, {steps}):
        optimizer.step(make_closure(net, step))
        if (step + 1) % {every} == 0 or step + 1 == {steps}:
            state = dict(model=net.state_dict(), optimizer=optimizer.state_dict(),
                         stream=torch.get_rng_state(), step=step + 1)
            torch.save(state, file + ".new")
            os.replace(file + ".new", file)

import torch._dynamo  # the first step would, in seconds: once for all
for line in sys.stdin:
    if child := os.fork():
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    else:
        train(line.strip())
        os._exit(0)
"""


class Trainer:
    """A process that forks one for every run: as fresh as a new one, without its imports."""

    def __init__(self):
        code = TRAINER.format(path=sys.path, steps=STEPS, every=EVERY)
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.process = subprocess.Popen([sys.executable, "-c", code], text=True, **pipes)

    def start(self, file):
        """Begin or resume the run whose checkpoints are in this file; return its process id."""
        print(file, file=self.process.stdin, flush=True)
        return int(self.process.stdout.readline())

    def wait(self):
        """Wait for the run's end; return its exit code."""
        return int(self.process.stdout.readline())


@pytest.fixture
def trainer():
    trainer = Trainer()
    yield trainer
    trainer.process.communicate()


def steps_done(file):
    return torch.load(file, weights_only=True)["step"] if file.exists() else 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_killed_five_times(trainer, tmp_path):
    undisturbed, killed = tmp_path / "undisturbed.pt", tmp_path / "killed.pt"
    trainer.start(undisturbed)
    started = time.perf_counter()
    assert trainer.wait() == 0
    length = time.perf_counter() - started

    moments = random.Random(0)
    for _ in range(5):
        process = trainer.start(killed)
        before = steps_done(killed)
        time.sleep(moments.uniform(0.0, length / 8))
        os.kill(process, signal.SIGKILL)
        assert trainer.wait() == -signal.SIGKILL, "it ended before it could be killed"
        assert before <= steps_done(killed) < STEPS
    trainer.start(killed)
    assert trainer.wait() == 0
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
