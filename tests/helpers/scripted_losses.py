"""Scripted losses and gradients for the reference, and a reference of one weight."""

import numpy as np
from reference import ReferenceSaLSa


def scalar(w=1.0, *, located=True, group=None, **keywords):
    """Return a reference of one weight, with eps 0 and without looking back.

    ``located``: as if a search had been accepted before.
    """
    group = {"params": [0], "eps": 0.0, **(group or {})}
    opt = ReferenceSaLSa([np.array([w])], [group], **{"look_back": False, **keywords})
    opt.located = opt.accepted_once = located
    return opt


def given(f0, *grads):
    """Return a loss_and_grads that gives this loss and these gradients, whatever the weights."""
    return lambda w: (f0, [None if g is None else np.array([g]) for g in grads])


def script(*losses):
    """Return a loss_at that gives these losses, then the last one for ever."""
    left = list(losses)
    return lambda w: left.pop(0) if len(left) > 1 else left[0]


def never(w):
    """Fail: a loss_at for steps that try nothing."""
    raise AssertionError("no trial expected")
