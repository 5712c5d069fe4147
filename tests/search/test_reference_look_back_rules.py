"""Each sentence of the reference's looking back, broken once: the product must not follow it."""

import math

import numpy as np
import pytest
import reference.look_back
import reference.salsa
from follow_reference import follow_each, shrink_step_size
from noisy_problem import GROUPS, NoisyProblem, ProblemWithNaN
from reference import LookBack

pytestmark = pytest.mark.slow


def not_to_be_followed():
    problems = [NoisyProblem(missing=0), ProblemWithNaN(missing=2)]
    keywords = {"groups": GROUPS, "backend": "reference", "steps": 200}
    with pytest.raises(AssertionError, match=r"^step "):  # noqa: PT012
        for when in (70, 4):
            follow_each(problems, before_step=shrink_step_size(when), **keywords)


class FirstMoveOfAll(LookBack):
    def _root_mean_square(self, w, g):
        return super()._root_mean_square(w, w)


class MeanOfTheTensors(LookBack):
    def _root_mean_square(self, w, g):
        return math.sqrt(np.mean([np.mean(wi**2) for wi, gi in zip(w, g) if gi is not None]))


class NewcomersWait(LookBack):
    notes_newcomers = False


class NoLooksOfPlainSteps(LookBack):
    def plain_step(self, t, w, g):
        pass


class LooksOfEveryPlainStep(LookBack):
    def plain_step(self, t, w, g):
        self.last_look = -(10**6)
        super().plain_step(t, w, g)


class SearchesAreNoLooksForThePlainSteps(LookBack):
    def search(self, t, eta, w, g):
        before, begun = self.last_look, self.t_b
        super().search(t, eta, w, g)
        if self.t_b == begun:
            self.last_look = before


class LookWithTheOtherSign(LookBack):
    def _look(self, w, g):
        return -super()._look(w, g)


class EveryChangeCountsFromTheBeginning(LookBack):
    def _change(self, t):
        self.last_change = self.t_b
        super()._change(t)


class WindowsEndAtHalf(LookBack):
    def _begin_window(self, t, w, g):
        super()._begin_window(t, w, g)
        self.t_e = t + t // 2


class AllWeightsAreKept(LookBack):
    def _begin_window(self, t, w, g):
        super()._begin_window(t, w, w)


class SumsAreKept(LookBack):
    def _begin_window(self, t, w, g):
        P, Q = self.P, self.Q
        super()._begin_window(t, w, g)
        self.P, self.Q = P, Q


class LongestOfAll(LookBack):
    def search(self, t, eta, w, g):
        before = self.longest
        super().search(t, eta, w, g)
        self.longest = max(self.longest, before)


BROKEN = [cls for cls in LookBack.__subclasses__() if cls.__module__ == __name__]


def test_the_rule_as_it_is_is_followed():
    with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
        not_to_be_followed()


@pytest.mark.parametrize("broken", BROKEN, ids=lambda cls: cls.__name__)
def test_a_broken_sentence_is_noticed(broken, monkeypatch):
    monkeypatch.setattr(reference.salsa, "LookBack", broken)
    not_to_be_followed()


@pytest.mark.parametrize(
    "name, value",
    [
        ("FIRST_STEPS", 9),
        ("FIRST_STEPS", 11),
        ("FIRST_MOVE", 0.0),
        ("FIRST_MOVE", 0.0301),
        ("LOOKS", 15),
        ("LOOKS", 17),
        ("UNSETTLED", 0.0),
        ("UNSETTLED", 0.26),
        ("GRAIN", 2048),
        ("GRAIN", 2**40),
        ("UP", 0.5),
        ("UP", 2.01),
        ("DOWN", 0.51),
        ("MOST_ETAS", 38.1),
        ("MOST_ETAS", 37.9),
    ],
)
def test_a_broken_constant_is_noticed(name, value, monkeypatch):
    monkeypatch.setattr(reference.look_back, name, value)
    not_to_be_followed()
