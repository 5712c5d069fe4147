"""``evaluate(closure)``: trials call the closure with the variables that it had."""

from __future__ import annotations

import functools
import warnings

import pytest
from small_net import make_batch, make_net

from salsa_fused import FusedSaLSa
from salsa_fused.variables import Variables

MICRO = 4


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


LOOP = """
for step in range(3):
    for x, y in batches[MICRO * step : MICRO * (step + 1)]:
        loss = optimizer.evaluate({closure}, 1 / MICRO)
        (loss / MICRO).backward()
        total += loss.item() / MICRO
    if step == 1:
        del x  # or anything else
    optimizer.step()
    found.append((optimizer.last_search.loss, total))
    optimizer.zero_grad()
    total = 0.0
last = y
"""
LAMBDA = "lambda: (net(x) - y).square().mean()"
NESTED = "functools.partial(lambda: [(net(a) - y).square().mean() for a in [x]][0])"
MODULE = LOOP.format(closure=LAMBDA)
FUNCTION = "def train():\n    total = 0.0\n" + "\n".join(
    f"    {line}" for line in LOOP.format(closure=NESTED).splitlines()
)


@pytest.mark.parametrize("code", [MODULE, FUNCTION + "\ntrain()"], ids=["module", "function"])
def test_a_closure_keeps_its_variables(code):
    """A lambda in a loop reads the loop's variables, which are the next micro-batch's by then."""
    net = make_net()
    optimizer = FusedSaLSa(net.parameters(), module=net)
    batches = [make_batch(micro) for micro in range(3 * MICRO)]
    names = {"MICRO": MICRO, "functools": functools, "total": 0.0, "found": []}
    names |= {"net": net, "optimizer": optimizer, "batches": batches}
    exec(code, names)  # check_replay would warn, too
    assert len(names["found"]) == 3
    for searched, total in names["found"]:
        assert searched == pytest.approx(total, rel=1e-6)
    if "last" in names:
        assert names["y"] is names["last"] is batches[-1][1]


def test_variables_are_put_back():
    value, gone = 1, 2

    def closure():
        nonlocal value
        seen.append((value, gone))  # noqa: F821
        value += 10
        return later

    seen = []
    variables = Variables(closure)  # `later` has no value yet
    closure_of_a_class = Variables(functools.partial(print))
    value, later = 5, 7
    with variables.as_then(), closure_of_a_class.as_then():
        assert closure() == 7
    assert seen == [(1, 2)] and value == 5
    del gone
    with variables.as_then():
        closure()
    assert seen[-1] == (1, 2)
    with pytest.raises(NameError):
        closure()
