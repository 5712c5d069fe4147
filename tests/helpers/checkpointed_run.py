"""A training run that can be split in two: an optimizer of the small network, and its steps."""

from __future__ import annotations

import torch
from seeds import seed_torch
from small_net import make_closure, make_net

from salsa_fused import FusedSaLSa


def build(seed=0, dtype=torch.float32, norm=True, **keywords):
    """Return a network and its optimizer."""
    net = make_net(seed, norm=norm).to(dtype)
    keywords = {"weight_decay": 0.01, "module": net, "check_replay": False, **keywords}
    return net, FusedSaLSa(net.parameters(), **keywords)


def advance(net, optimizer, first, last):
    """Take the steps from `first` to `last`, the latter not included."""
    for step in range(first, last):
        seed_torch(step)
        optimizer.step(make_closure(net, step))
