"""A line search on scripted losses, without a tensor."""

from __future__ import annotations

from salsa_fused import turns
from salsa_fused.line_search import LineSearch, SearchSettings, SearchState

DEFAULTS = SearchSettings()
EPS = 2.0**-52
# settled: the order of magnitude is known, and the first ten steps are over
SETTLED = SearchState(
    step_size=0.5,
    smoothed_decrease=0.2,
    smoothed_slope=1.0,
    period=4,
    steps=50,
    steps_since_search=3,
    located=True,
    accepted_once=True,
)


def search(state=SETTLED, losses=(), *, loss=1.0, slope=1.0, settings=DEFAULTS, eps=EPS):
    """Run one search on trial losses: a list (its last element repeats) or a function of eta."""
    done = LineSearch(settings, state)
    done.tried = []
    first = done.first_trial()
    done.start_from(loss, slope, eps)
    left = [] if callable(losses) else list(losses)
    while done.trying:
        assert done.tried or done.step_size == first
        done.tried.append(done.step_size)
        trial_loss = losses(done.step_size) if callable(losses) else left[0]
        left = left[1:] if len(left) > 1 else left
        done.report(trial_loss)
    return done


def is_due(state, settings=DEFAULTS):
    return turns.is_due([{"units": "all", **settings._asdict(), **state._asdict()}])


def plain_step(state):
    return state._replace(**turns.plain_step(state._asdict()))


def smooth(before, now, beta3=0.99):
    return beta3 * before + (1 - beta3) * now
