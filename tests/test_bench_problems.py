"""Every problem of `train`: it builds, trains and is evaluated, the same way each time."""

from __future__ import annotations

import math
import warnings
from functools import partial

import pytest
import torch

from bench.models.bert import Bert, BertSize
from bench.models.burgers import BurgersNet
from bench.optimizers import FUSED_SALSA
from bench.others import ADAM
from bench.problems import PROBLEMS, reviews
from bench.problems.digits import few_recipe
from bench.problems.plays import continued_recipe
from bench.problems.regressions import burgers_pinn
from bench.sets.batches import Batch
from bench.sets.burgers import VISCOSITY, burgers, solution
from bench.sets.digits import digits, of_classes, with_wrong_labels
from bench.sets.heavy_tails import heavy_tails
from bench.sets.plays import encode
from bench.sets.pretrained import pretrained
from bench.training import Problem, train

CPU = torch.device("cpu")
TEXT = encode(["to be or not to be, that is the question. " * 40])
TINY_BERT = BertSize(vocabulary=40, width=16, layers=2, heads=2, inner=32, positions=48)


def snippets(rows: int) -> Batch:
    generator = torch.Generator().manual_seed(rows)
    tokens = torch.randint(1, 40, (rows, 12), generator=generator)
    return Batch(tokens, tokens[:, 0] % 2)


@pytest.fixture
def build(tmp_path, monkeypatch):
    """A problem by its name, for two steps and without what has to be fetched."""
    monkeypatch.setattr(reviews, "MINILM_L6", TINY_BERT)
    monkeypatch.setattr(reviews, "minilm_weights", Bert(TINY_BERT).state_dict)
    monkeypatch.setattr(reviews, "reviews", lambda: (snippets(80), snippets(40)))

    def made(name: str) -> Problem:
        more = {"text": lambda: TEXT} if name.startswith("plays") else {}
        if name == "plays-continued":
            more |= {"recipe": partial(continued_recipe, lambda: TEXT, 2), "cache": tmp_path}
        if name == "digits-vit-few":
            more |= {"recipe": partial(few_recipe, 2), "cache": tmp_path}
        return PROBLEMS[name](CPU, 2, **more)

    return made


@pytest.mark.parametrize("name", PROBLEMS)
def test_every_problem_trains_the_same_way_each_time(name, build):
    problem = build(name)
    run, again = (train(problem, ADAM, 0, CPU) for problem in (problem, build(name)))
    assert problem.case == name and problem.description and problem.title
    assert len(run.losses) == 2 and all(map(math.isfinite, run.losses))
    assert run.losses == again.losses
    end = run.checkpoints[-1]
    assert end.train_loss == again.checkpoints[-1].train_loss
    assert math.isfinite(end.train_loss) and math.isfinite(end.validation_loss)
    assert math.isnan(end.validation_accuracy) == (not problem.loss.classes)
    first, other = (next(problem.batches(torch.Generator().manual_seed(seed))) for seed in (0, 1))
    assert not torch.equal(first.inputs, other.inputs)


def test_there_are_problems_enough_and_their_names_are_unique(build):
    titles = [build(name).title for name in PROBLEMS]
    assert len(titles) >= 12 and len(set(titles)) == len(titles)


# --- data -----------------------------------------------------------------------------------------


def test_three_labels_in_ten_are_wrong_and_always_the_same():
    train_part, _ = digits()
    noisy, again = (with_wrong_labels(train_part, 0.3) for _ in range(2))
    assert torch.equal(noisy.targets, again.targets)
    wrong = noisy.targets != train_part.targets
    assert wrong.sum() == round(0.3 * len(wrong))
    assert set(noisy.targets.tolist()) == set(range(10))
    assert torch.equal(noisy.inputs, train_part.inputs)


def test_the_noisy_problem_is_validated_on_right_labels(build):
    problem, (clean, validation) = build("digits-noisy"), digits()
    (sample,), (checked,) = problem.train_sample, problem.validation_sample
    assert (sample.targets != clean.targets).float().mean() == pytest.approx(0.3, abs=1e-3)
    assert torch.equal(checked.targets, validation.targets)


def test_a_few_images_of_some_classes():
    few = of_classes(digits()[0], range(5, 10), 20)
    assert few.targets.bincount().tolist() == [20] * 5
    assert len(of_classes(digits()[1], range(5)).targets) > 100


def test_the_columns_have_other_units_and_the_tails_are_heavy():
    (first, check), (again, _) = heavy_tails(), heavy_tails()
    assert torch.equal(first.inputs, again.inputs) and torch.equal(first.targets, again.targets)
    scales = first.inputs.abs().median(0).values
    assert scales.max() / scales.min() > 1e3
    kurtosis = [(v / v.std()).pow(4).mean() for v in (*first.inputs.T, first.targets)]
    assert min(kurtosis) > 4  # a normal distribution's is 3
    assert len(check.targets) == 1000


# --- Burgers' equation ----------------------------------------------------------------------------


def test_the_solution_solves_burgers_equation():
    x = torch.tensor([-0.8, -0.3, -0.05, 0.1, 0.6], dtype=torch.float64)
    t = torch.tensor([0.1, 0.3, 0.5, 0.6, 0.9], dtype=torch.float64)
    h = 1e-4

    def u(dx: float = 0.0, dt: float = 0.0) -> torch.Tensor:
        return solution(x + dx, t + dt)

    u_t = (u(dt=h) - u(dt=-h)) / (2 * h)
    u_x = (u(h) - u(-h)) / (2 * h)
    u_xx = (u(h) - 2 * u() + u(-h)) / h**2
    residual = u_t + u() * u_x - VISCOSITY * u_xx
    assert residual.abs().max() < 1e-4 * u_t.abs().max()
    assert torch.allclose(solution(x, torch.full_like(x, 1e-6)), -torch.sin(math.pi * x), atol=1e-4)


def test_the_network_gives_the_residual_inside_and_the_value_on_the_edge():
    torch.manual_seed(0)
    net = BurgersNet(0.1, width=8, layers=1).double()
    first, last = net.layers[0], net.layers[2]
    rows = torch.tensor([[0.3, 0.5, 1.0], [0.3, 0.5, 0.0]], dtype=torch.float64)
    hidden = torch.tanh(first(rows[0, :2]))
    slope = 1 - hidden**2  # of tanh
    u = last(hidden)[0]
    u_x = (last.weight[0] * slope * first.weight[:, 0]).sum()
    u_t = (last.weight[0] * slope * first.weight[:, 1]).sum()
    u_xx = (last.weight[0] * -2 * hidden * slope * first.weight[:, 0] ** 2).sum()
    expected = torch.stack((u_t + u * u_x - 0.1 * u_xx, u))
    assert torch.allclose(net(rows)[:, 0], expected)
    with torch.no_grad():
        outputs = net(rows)
    assert torch.allclose(outputs[:, 0], expected) and not outputs.requires_grad


def test_a_line_search_finds_nothing_odd_in_a_closure_that_differentiates():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run = train(burgers_pinn(CPU, 30), FUSED_SALSA, 0, CPU)
    assert sum(run.extra_forwards) > 0 and run.losses[-1] < run.losses[0]


def test_the_points_lie_inside_and_on_the_edge():
    part, check = burgers()
    x, t, inside = part.inputs.unbind(1)
    assert (part.targets[inside == 1] == 0).all()
    edge = inside == 0
    assert ((x[edge].abs() == 1) | (t[edge] == 0)).all()
    assert (check.inputs[:, 2] == 0).all() and check.targets.abs().max() <= 1.0


# --- weights that are trained once ----------------------------------------------------------------


def test_the_same_recipe_gives_the_same_weights(tmp_path):
    recipe = continued_recipe(lambda: TEXT, 3)
    state = torch.get_rng_state()
    one = pretrained(recipe, tmp_path / "a")
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(5)
    other = pretrained(continued_recipe(lambda: TEXT, 3), tmp_path / "b")
    assert all(torch.equal(one[name], other[name]) for name in one)
    (path,) = (tmp_path / "a").iterdir()
    before = path.stat().st_mtime_ns
    kept = pretrained(recipe, tmp_path / "a")
    assert path.stat().st_mtime_ns == before
    assert all(torch.equal(one[name], kept[name]) for name in one)


def test_another_recipe_is_another_file(tmp_path):
    files = [continued_recipe(lambda: TEXT, steps).file for steps in (3, 4)]
    assert len({*files, few_recipe().file}) == 3


def test_weights_that_were_trained_are_where_training_begins(build):
    problem = build("plays-continued")
    one, other = (problem.model().state_dict() for _ in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)
    torch.manual_seed(0)
    first = build("digits-vit-few").model().state_dict()
    torch.manual_seed(1)
    second = build("digits-vit-few").model().state_dict()
    assert torch.equal(first["embed.weight"], second["embed.weight"])
    assert not torch.equal(first["head.weight"], second["head.weight"])
