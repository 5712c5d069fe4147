"""Scripted losses and gradients for the reference, and a reference of one weight."""

import numpy as np
from reference import ReferenceSaLSa

PLAIN = {"growth": 1.0, "look_back": False}


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


def make(cls, *weights, groups=None, found=True, **keywords):
    """Return a reference with one weight per group, eps 0 and growth 1.

    ``found``: as if a search had been accepted before.
    """
    groups = groups or [{}] * len(weights)
    groups = [{"params": [i], "eps": 0.0, **group} for i, group in enumerate(groups)]
    opt = cls([np.atleast_1d(w) for w in weights], groups, **{**PLAIN, **keywords})
    opt.located = opt.accepted_once = found
    for unit in getattr(opt, "units", []):
        unit.located = found
    return opt


def watch(seen, *losses):
    """Return a `script` that notes the first number of every tensor it is called with."""
    left = script(*losses)
    return lambda w: seen.append([x.flat[0] for x in w]) or left(w)


def weights(opt):
    """Return the first number of every tensor."""
    return [w.flat[0] for w in opt.params]


def flat(opt):
    """Take a step whose search ends flat: the loss hides every difference."""
    return opt.step(given(1e60, 1.0), script(1e60))


def search_state(opt):
    """Return all that a search may change."""
    names = "eta h s L E_fast E_slow since_search steps eta_accepted flats"
    return tuple(getattr(opt, name) for name in names.split())
