"""The step size that is applied: windows of steps, looks back, and the horizon."""

from __future__ import annotations

import copy
import math
import warnings
from itertools import pairwise

import pytest
import torch
from seeds import seed_torch
from torch import nn

from salsa_fused import FusedSaLSa, look_back, settings, turns
from salsa_fused.look_back import Window

# -- plain numbers ----------------------------------------------------------------------------


def after(looks, *, step=20, found=1.0, **state):
    window = Window(1.0, window_begin=10, window_end=20, last_look=10, last_change=10)
    return look_back.searched(window._replace(**state), step, found, looks)


@pytest.mark.parametrize(
    "looks, factor",
    [([1.0, 2.0], 4.0), ([-1.0], 2**-0.5), ([3.0, -1.0], 2.0), ([1.0, -3.0], 2**-0.25), ([], 1.0)],
)
def test_a_window_changes_the_applied_step_size_by_its_agreement(looks, factor):
    assert after(looks).applied_step_size == pytest.approx(factor)


def test_a_known_horizon_leaves_shortening_to_the_end():
    window = Window(1.0, window_begin=10, window_end=20, last_look=10, last_change=10)
    for look, factor in ((-1.0, 1.0), (1.0, 4.0)):
        known = look_back.searched(window, 20, 1.0, [look], horizon_known=True)
        assert known.applied_step_size == pytest.approx(factor)


def test_the_change_is_spread_over_the_last_three_quarters():
    early = after([1.0], step=12)
    assert early.applied_step_size == 1.0 and early.last_change == 10
    half = after([1.0], step=15)  # (15 - 12.5) of 7.5
    assert half.applied_step_size == pytest.approx(4 ** (1 / 3))
    whole = look_back.searched(half, 20, 1.0, [1.0])
    assert whole.applied_step_size == pytest.approx(4.0)


def test_a_late_search_changes_no_more_than_the_window_allows():
    late = after([1.0], step=60)
    assert late.applied_step_size == pytest.approx(4.0)
    assert (late.window_begin, late.window_end) == (60, 120)


def test_a_window_ends_where_the_run_is_twice_as_long():
    window, ends = Window(1.0), []
    for step in range(1, 170):
        before = window.window_end
        window = look_back.searched(window, step, 1.0, [])
        if window.window_end != before:
            ends.append((window.window_begin, window.window_end))
            assert window.looks_sum == window.looks_size == 0.0
    assert ends == [(10, 20), (20, 40), (40, 80), (80, 160), (160, 320)]


def test_what_is_applied_is_bounded_by_what_is_found():
    assert after([1.0], found=0.05).applied_step_size == pytest.approx(38 * 0.05)
    assert after([], found=1e-3).applied_step_size == pytest.approx(0.038)


def test_the_first_steps_apply_what_is_found_but_move_the_weights_little():
    window = Window(7.0)
    for step in range(1, 11):
        free = look_back.searched(window, step, 0.5, [])
        assert free.applied_step_size == free.longest == 0.5
        bounded = look_back.searched(window._replace(first_move=0.1), step, 0.5, [])
        assert bounded.applied_step_size == bounded.longest == 0.1
    late = window._replace(window_begin=10, window_end=20)
    assert look_back.searched(late, 11, 0.5, []).applied_step_size == 7.0


def test_the_first_move_is_no_less_than_a_share_of_what_is_found():
    tiny = look_back.searched(Window(7.0, first_move=1e-9), 1, 0.5, [])
    assert tiny.applied_step_size == pytest.approx(0.5e-4)
    free = look_back.searched(Window(7.0, first_move=-1.0), 1, 0.5, [])
    assert free.applied_step_size == 0.5


def test_looks_that_are_not_finite_are_none():
    window = look_back.looked(Window(1.0), [math.nan, 2.0, math.inf, -1.0])
    assert (window.looks_sum, window.looks_size) == (1.0, 3.0)
    assert Window(1.0).agreement == 0.0


def test_the_last_bits_of_a_sum_do_not_matter():
    window = Window(1.0, looks_sum=1.0, looks_size=3.0)
    assert window.agreement == window._replace(looks_sum=1.0 + 2e-16).agreement == 341 / 1024


@pytest.mark.parametrize("begin, last, gap", [(10, 10, 1), (20, 20, 2), (160, 170, 10)])
def test_sixteen_looks_a_window(begin, last, gap):
    numbers = {"window_begin": begin, "window_end": 2 * begin, "last_look": last, "look_back": True}
    due = [s for s in range(last, last + 40) if turns.look_is_due({**numbers, "steps": s})]
    assert due[0] + 1 == last + gap
    assert not turns.look_is_due({**numbers, "window_begin": 0, "steps": 1000})


def test_the_horizon():
    shares = [turns.share_of_horizon(10, step) for step in range(1, 13)]
    assert shares == pytest.approx([1, 1, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2, 0.2, 0.2])
    assert turns.share_of_horizon(1, 1) == turns.share_of_horizon(None, 99) == 1.0


# -- in the optimizer -------------------------------------------------------------------------


class Noisy:
    """A small network, and batches that depend on the step alone."""

    def __init__(self, **options):
        seed_torch(0)
        self.model = nn.Sequential(nn.Linear(6, 16), nn.Dropout(0.1), nn.Tanh(), nn.Linear(16, 1))
        self.optimizer = FusedSaLSa(self.model.parameters(), module=self.model, **options)
        self.x = torch.randn(128, 6)
        self.y = (self.x[:, :2].prod(1, keepdim=True) + self.x[:, 2:3]).detach()
        self.sign = -1.0 if options.get("maximize") else 1.0

    def step(self, number):
        seed_torch(number)
        rows = torch.randint(128, (16,))

        def closure():
            return self.sign * (self.model(self.x[rows]) - self.y[rows]).square().mean()

        return self.optimizer.step(closure).item()

    def run(self, start, end):
        return [self.step(number) for number in range(start, end)]

    def weights(self):
        return [weight.detach().clone() for weight in self.model.parameters()]


@pytest.mark.parametrize("stop", [9, 10, 11, 13, 27, 45, 90])
def test_a_resumed_run_continues_bit_for_bit(stop, tmp_path):
    whole, part = Noisy(), Noisy()
    whole.run(0, 130)
    part.run(0, stop)
    torch.save((part.model.state_dict(), part.optimizer.state_dict()), tmp_path / "saved")
    part.run(stop, stop + 3)  # what happens afterwards is not in the file
    resumed = Noisy()
    model, optimizer = torch.load(tmp_path / "saved", weights_only=True)
    resumed.model.load_state_dict(model)
    resumed.optimizer.load_state_dict(optimizer)
    resumed.run(stop, 130)
    assert all(map(torch.equal, whole.weights(), resumed.weights()))
    ours, theirs = (run.optimizer.state_dict()["param_groups"] for run in (whole, resumed))
    assert ours == theirs


def test_a_copy_continues_alike_and_apart():
    first = Noisy()
    first.run(0, 33)
    second = copy.deepcopy(first)
    first.run(33, 100)
    second.run(33, 100)
    assert all(map(torch.equal, first.weights(), second.weights()))


def test_the_steps_grow_where_they_are_too_short():
    """A long valley: single steps are accepted that are far too short for it."""
    curvatures = torch.tensor([100.0, 0.01])
    weight = nn.Parameter(torch.tensor([1.0, 100.0]))
    optimizer = FusedSaLSa([weight])
    for _ in range(80):
        optimizer.step(lambda: (curvatures * weight.square()).sum())
    assert optimizer.applied_step_size > 3.0 * optimizer.step_size


def test_the_steps_shrink_in_noise_no_faster_than_the_root():
    weight, noise = nn.Parameter(torch.zeros(50)), torch.Generator().manual_seed(0)
    optimizer = FusedSaLSa([weight])
    sizes = {}
    for number in range(1, 641):
        target = torch.randn(50, generator=noise)
        optimizer.step(lambda target=target: (weight - target).square().mean())
        sizes[number] = optimizer.applied_step_size
    assert sizes[640] < 0.5 * sizes[80]
    for number in (80, 160, 320):
        assert sizes[2 * number] > 0.69 * sizes[number]


def test_the_applied_step_size_is_what_moves_the_weights():
    run = Noisy(betas=(0.0, 0.0, 0.99), eps=1e-12)  # then each weight moves by just that
    for number in range(60):
        before = run.weights()
        run.step(number)
        moves = [(a - b).abs().max().item() for a, b in zip(before, run.weights())]
        assert max(moves) == pytest.approx(run.optimizer.applied_step_size, rel=1e-3)


def test_total_steps_takes_the_run_to_its_end():
    known = Noisy(total_steps=100)
    sizes = []
    for number in range(50):
        known.step(number)
        sizes.append(known.optimizer.applied_step_size)
        group = known.optimizer.param_groups[0]
        assert sizes[-1] == group["applied_step_size"]  # the whole of it
    bound = 38 * known.optimizer.step_size
    assert all(b >= a or b == pytest.approx(bound) for a, b in pairwise(sizes[10:]))
    known.run(50, 100)
    group = known.optimizer.param_groups[0]
    assert known.optimizer.applied_step_size == pytest.approx(group["applied_step_size"] / 50)
    with pytest.warns(UserWarning, match="beyond total_steps=100"):
        known.step(100)  # one more than announced is a small step, too
    assert known.optimizer.applied_step_size == pytest.approx(group["applied_step_size"] / 50)


def test_maximize_goes_the_same_way():
    down, up = Noisy(), Noisy(maximize=True)
    down.run(0, 90)
    up.run(0, 90)
    assert all(map(torch.equal, down.weights(), up.weights()))
    assert down.optimizer.metrics()["agreement"] == up.optimizer.metrics()["agreement"] != 0.0


def test_several_groups_have_one_window():
    run = Noisy()
    weights = list(run.model.parameters())
    groups = [{"params": weights[:2]}, {"params": weights[2:], "lr": 0.5}]
    run.optimizer = FusedSaLSa(groups, module=run.model)
    run.run(0, 50)
    first, second = run.optimizer.param_groups
    assert {n: first[n] for n in Window._fields} == {n: second[n] for n in Window._fields}


def test_the_found_step_size_is_applied_without_looking_back():
    run = Noisy(look_back=False)
    run.run(0, 40)
    assert run.optimizer.applied_step_size == run.optimizer.step_size
    assert all("window_start" not in entry for entry in run.optimizer.state.values())


@pytest.mark.parametrize(
    "options, looks",
    [
        ({}, True),
        ({"direction": "lamb"}, True),
        ({"direction": "sgd"}, False),
        ({"units": "groups"}, False),
        ({"search_period": None}, False),
        (settings.PAPER, False),
        (settings.SGD_SALSA, False),
        (settings.ADAM_SLS, False),
    ],
)
def test_who_looks_back(options, looks):
    run = Noisy(**options)
    run.run(0, 30)
    assert (run.optimizer.param_groups[0]["window_begin"] > 0) is looks
    assert any("window_start" in entry for entry in run.optimizer.state.values()) is looks


@pytest.mark.parametrize(
    "options, message",
    [
        ({"look_back": "yes"}, "look_back must be True, False or None"),
        ({"look_back": True, "units": "groups"}, "needs one step size for all"),
        ({"look_back": True, "direction": "sgd"}, "directions of Adam's size"),
        ({"look_back": True, "search_period": None}, "needs searches"),
        ({"total_steps": 0}, "total_steps must be the number of steps"),
        ({"total_steps": 10.5}, "total_steps must be the number of steps"),
        ({"total_steps": True}, "total_steps must be the number of steps"),
    ],
)
def test_bad_settings_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        FusedSaLSa([nn.Parameter(torch.ones(2))], **options)


def test_a_checkpoint_from_before_goes_on_as_it_was():
    old = Noisy(look_back=False)
    old.run(0, 25)
    saved = old.optimizer.state_dict()
    for group in saved["param_groups"]:
        for name in (*Window._fields, "look_back", "total_steps"):
            del group[name]
    new = Noisy()
    new.model.load_state_dict(old.model.state_dict())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        new.optimizer.load_state_dict(saved)
    assert any("look_back=None by False" in str(one.message) for one in caught)
    old.run(25, 60)
    new.run(25, 60)
    assert all(map(torch.equal, old.weights(), new.weights()))


def test_suggested_lr():
    run = Noisy()
    with pytest.raises(RuntimeError, match="no search has been accepted yet"):
        run.optimizer.suggested_lr()
    sizes = []
    for number in range(200):
        run.step(number)
        sizes.append(run.optimizer.applied_step_size)
    assert run.optimizer.suggested_lr() == max(sizes[9:])
    for other in ({"search_period": None}, {"direction": "sgd"}):
        with pytest.raises(RuntimeError, match='needs searches along direction="adam"'):
            Noisy(**other).optimizer.suggested_lr()
    paper = Noisy(**settings.PAPER)
    paper.run(0, 20)
    assert paper.optimizer.suggested_lr() == paper.optimizer.step_size


@pytest.mark.parametrize("zeros", [1, 12])
def test_a_warm_up_from_zero_is_bounded_all_the_same(zeros):
    """Steps with lr 0 search nothing: the first search comes later."""
    run = Noisy()
    norm = math.sqrt(sum(weight.square().sum().item() for weight in run.weights()))
    bound = 0.03 * norm / math.sqrt(sum(weight.numel() for weight in run.weights()))
    for number in range(19):
        run.optimizer.param_groups[0]["lr"] = 0.0 if number < zeros else 1.0
        run.step(number)
        if number == zeros:
            assert run.optimizer.param_groups[0]["first_move"] == pytest.approx(bound)
            assert 0.0 < run.optimizer.applied_step_size <= 1.001 * bound
    assert run.optimizer.param_groups[0]["window_begin"] == max(10, zeros + 1)


def test_weights_next_to_zero_are_trained():
    seed_torch(0)
    weight, target = nn.Parameter(1e-8 * torch.randn(50)), torch.randn(50)
    optimizer = FusedSaLSa([weight])
    for _ in range(1000):
        loss = optimizer.step(lambda: (weight - target).square().mean())
    assert loss.item() < 1e-3


def test_plain_steps_look_back_at_most_sixteen_times_a_window(monkeypatch):
    run, looks = Noisy(search_period=(5, 40)), []
    kernel = type(run.optimizer._kernels).alignment

    def counted(table):
        looks.append(number)
        return kernel(table)

    monkeypatch.setattr(type(run.optimizer._kernels), "alignment", counted)
    for number in range(1, 400):
        run.step(number)
    late = [step for step in looks if 160 < step <= 320]
    assert 12 <= len(late) <= 16 + 16


@pytest.mark.parametrize("first", [0.0, 1.0])
def test_weights_that_are_all_zero_bound_nothing(first):
    weight = nn.Parameter(torch.full((8,), first))
    optimizer = FusedSaLSa([weight])
    optimizer.step(lambda: (weight - 5.0).square().sum())
    assert optimizer.param_groups[0]["first_move"] == pytest.approx(0.03 * first or -1.0)
    expected = optimizer.step_size if first == 0.0 else 0.03
    assert optimizer.applied_step_size == pytest.approx(expected)
