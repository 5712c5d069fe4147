"""Training runs: work, optimizers, schedules, tuning, what is kept, and what is missing."""

from __future__ import annotations

import json
import math
import sys
from argparse import Namespace
from functools import partial

import pytest
import torch
from torch import nn

import bench.train as command
from bench import methods, peers, plots, problems, report, results, runs
from bench.methods import ADAM, Method, adamw, tuned_adamw
from bench.optimizers import FUSED_SALSA, METHODS
from bench.problems import PROBLEMS
from bench.ranks import ratio_table
from bench.results import Results
from bench.runs import TUNING_SEED, Done, Runner, collect, path_of
from bench.sets import text
from bench.sets.batches import Batch, shuffled
from bench.sets.fetch import DataError
from bench.tables import by_case, to_markdown
from bench.training import PLAIN_STEP, Problem, Run, Work

CPU = torch.device("cpu")


def linear_problem(plain_steps: int = 20, case: str = "linear", checkpoints: int = 5) -> Problem:
    images = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
    sample = Batch(images, (images.sum(1) > 0).long())
    return Problem(
        case=case,
        title=case.title(),
        description="four numbers",
        evaluated_on="everything",
        model=lambda: nn.Linear(4, 2),
        batches=lambda generator: shuffled(sample, 8, generator),
        train_sample=[sample],
        validation_sample=[sample],
        plain_steps=plain_steps,
        checkpoints=checkpoints,
    )


# --- work -----------------------------------------------------------------------------------------


def test_a_forward_counts_one_and_a_backward_two():
    weight = torch.ones(1, requires_grad=True)
    work = Work()
    closure = work.counting(lambda: (weight**2).sum())
    closure().backward()
    assert (work.forwards, work.units) == (1, PLAIN_STEP)
    with torch.no_grad():
        closure()
    closure()  # with gradients on, but without a backward
    assert (work.forwards, work.units) == (3, PLAIN_STEP + 2)


def test_a_run_without_searches_takes_the_plain_steps():
    run = linear_problem(30).run(ADAM, 0, CPU)
    assert len(run.losses) == len(run.milliseconds) == 30
    assert run.extra_forwards == [0] * 30
    assert run.step_sizes == [1e-3] * 30
    assert run.work == list(range(PLAIN_STEP, 30 * PLAIN_STEP + 1, PLAIN_STEP))
    assert [point.work for point in run.checkpoints] == [0, 18, 36, 54, 72, 90]


def greedy_step(optimizer, closure):
    """Two evaluations too many, as a search would need them."""
    with torch.no_grad():
        closure()
        closure()
    return ADAM.step(optimizer, closure)


def test_extra_evaluations_are_paid_for_with_steps():
    greedy = Method("greedy", "", ADAM.build, greedy_step)
    run = linear_problem(30).run(greedy, 0, CPU)
    assert len(run.losses) == 30 * PLAIN_STEP // (PLAIN_STEP + 2)
    assert set(run.extra_forwards) == {2}


def test_a_step_that_passes_several_marks_fills_all_of_them():
    run = linear_problem(4, checkpoints=12).run(ADAM, 0, CPU)
    assert [point.work for point in run.checkpoints] == [0, 3, 3, 3, 6, 6, 6, 9, 9, 9, 12, 12, 12]


def test_a_seed_gives_all_optimizers_the_same_start():
    adam = linear_problem().run(ADAM, 3, CPU)
    salsa = linear_problem().run(FUSED_SALSA, 3, CPU)
    assert adam.losses[0] == salsa.losses[0]
    assert adam.checkpoints[0] == salsa.checkpoints[0]
    assert adam.losses[0] != linear_problem().run(ADAM, 4, CPU).losses[0]


def test_the_searches_of_the_line_search_are_counted():
    run = linear_problem(30).run(FUSED_SALSA, 0, CPU)
    assert run.extra_forwards[0] >= 2  # a trial, and the check that trials are replays
    assert len(run.losses) == len(run.step_sizes) < 30


def test_final_figures_are_those_of_the_last_part_of_the_work():
    problem = linear_problem(100, checkpoints=10)
    run = problem.run(ADAM, 0, CPU)
    run.extra_forwards[: runs.WARM_UP] = [9] * runs.WARM_UP
    rows = {row.metric: row for row in runs.rows_of("demo", problem, Done(ADAM, runs=[run]))}
    last = [point.train_loss for point in run.checkpoints[-2:]]  # 20 % of ten
    assert rows["train_loss"].mean == pytest.approx(sum(last) / 2)
    assert rows["extra_forwards"].mean == 0.0 and rows["steps"].mean == 100


def test_what_a_run_is_described_by():
    losses = [2.0, 8.0, 3.0, *[1.0] * 5, 0.5, 0.25]
    run = Run(losses, list(range(3, 33, 3)), step_sizes=[1.0] * 9 + [0.5])
    assert run.final_loss == pytest.approx(0.375)
    assert run.early_peak == 4.0
    assert run.step_size_at(-1) == 0.5 and math.isnan(run.step_size_at(30))
    run.losses[1] = math.nan
    assert run.early_peak == math.inf


def test_both_problems_of_the_demo_train(monkeypatch):
    characters = text.encode(["to be or not to be, that is the question. " * 20])
    monkeypatch.setattr(problems, "plays", lambda kind: characters)
    for name, steps in (("digits-cnn", 800), ("plays-gpt", 250)):
        problem = PROBLEMS[name](name, CPU)
        assert problem.plain_steps == steps
        run = problem.scaled(2 / steps).run(ADAM, 0, CPU)
        assert len(run.losses) == 2
        assert run.checkpoints[-1].train_loss < run.checkpoints[0].train_loss


# --- schedules and optimizers ---------------------------------------------------------------------


def test_a_factor_scales_the_learning_rate_over_the_work():
    seen = []
    method = adamw("A", "", 0.1, factor=lambda share: seen.append(share) or 1 - share)
    run = Runner(CPU).run(linear_problem(10), [method], 1)[0].runs[0]
    assert seen == pytest.approx([i / 10 for i in range(10)])
    assert run.step_sizes == pytest.approx([0.1 * (1 - i / 10) for i in range(10)])


def test_schedules():
    ends = [methods.cosine_end(s) for s in (0.0, 0.49, 0.5, 0.75, 1.0)]
    assert ends == pytest.approx([1, 1, 1, 0.5, 0])
    ramp = [methods.warm_up_and_cosine(s) for s in (0.05, 0.1, 0.55, 1.0)]
    assert ramp == pytest.approx([0.5, 1, 0.5, 0])
    to_a_tenth = [methods.warm_up_and_cosine(s, 0.1) for s in (0.05, 0.1, 0.55, 1.0)]
    assert to_a_tenth == pytest.approx([0.5, 1.0, 0.55, 0.1])


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_every_optimizer_trains(method):
    method = method.grid[1e-2] if method.grid else method
    try:
        method.build(nn.Linear(1, 1))
    except DataError as missing:
        pytest.skip(str(missing))
    (done,) = Runner(CPU).run(linear_problem(60), [method], 1)
    losses = [point.train_loss for point in done.runs[0].checkpoints]
    assert losses[-1] < losses[0]
    assert method.name == "MoMo" or done.runs[0].step_sizes[-1] > 0.0


def test_names_are_unique():
    names = [method.name for method in METHODS]
    assert len(set(names)) == len(names)


def test_a_missing_peer_is_named_with_what_to_do(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "prodigyopt", None)
    with pytest.raises(DataError, match=r"prodigyopt==1\.1\.2 is missing.*python -m bench data"):
        peers.peer("prodigyopt")
    runner = Runner(CPU)
    done = runner.run(linear_problem(), [ADAM, peers.PRODIGY], 2)
    assert [one.method.name for one in done] == ["Adam"]
    assert list(runner.missing) == ["Linear: Prodigy"]
    assert capsys.readouterr().out.count("left out") == 1


def test_versions_of_peers(monkeypatch):
    monkeypatch.setattr(peers, "PEERS", {"torch": "torch==0", "nobodys": "nobodys-package==1"})
    assert peers.versions() == {"torch": torch.__version__, "nobodys-package": None}


# --- tuning ---------------------------------------------------------------------------------------


def test_the_best_of_the_grid_is_chosen_with_a_seed_of_its_own(monkeypatch):
    seeds, run = [], Problem.run

    def seen(problem, method, seed, device):
        seeds.append((method.settings.partition(",")[0], seed))
        return run(problem, method, seed, device)

    monkeypatch.setattr(Problem, "run", seen)
    case, runner = linear_problem(), Runner(CPU)
    (done,) = runner.run(case, [tuned_adamw((1e-4, 1e-1, 1e3))], 2)
    assert seeds[:3] == [(lr, TUNING_SEED) for lr in ("lr=0.0001", "lr=0.1", "lr=1000")]
    assert seeds[3:] == [("lr=0.1", 0), ("lr=0.1", 1)]
    found = collect("train", {case: [done]}, runner)
    assert found.rows_of("linear", "tuning_runs")["AdamW, tuned"].mean == 3
    assert found.rows_of("linear", "chosen_lr")["AdamW, tuned"].mean == 0.1
    assert found.settings["optimizers"] == {"AdamW, tuned": "the best lr of 3, warm-up and cosine"}


def test_a_run_that_diverges_is_not_chosen():
    (done,) = Runner(CPU).run(linear_problem(), [tuned_adamw((math.inf, 1e-2))], 1)
    assert done.lr == 1e-2


# --- what is kept ---------------------------------------------------------------------------------


def test_a_stopped_command_goes_on_where_it_was(tmp_path, monkeypatch):
    both = [ADAM, FUSED_SALSA]
    trained, run = [], Problem.run

    def stopping(problem, method, seed, device):
        if len(trained) == 3:
            raise KeyboardInterrupt
        trained.append((method.name, seed))
        return run(problem, method, seed, device)

    monkeypatch.setattr(Problem, "run", stopping)
    with pytest.raises(KeyboardInterrupt):
        Runner(CPU, tmp_path).run(linear_problem(), both, 2)
    monkeypatch.setattr(Problem, "run", run)
    runner = Runner(CPU, tmp_path)
    resumed = runner.run(linear_problem(), both, 2)
    assert runner.reused == 3
    fresh = Runner(CPU).run(linear_problem(), both, 2)
    for one, other in zip(resumed, fresh):
        for run, again in zip(one.runs, other.runs, strict=True):
            assert run.losses == again.losses
            assert run.checkpoints[-1].train_loss == again.checkpoints[-1].train_loss
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize(
    "change",
    [
        {"case": linear_problem(plain_steps=21)},
        {"case": linear_problem(case="other")},
        {"method": adamw("Adam", "lr=2e-3", 2e-3)},
        {"seed": 1},
    ],
)
def test_a_run_is_used_again_only_for_the_same_settings(tmp_path, change):
    same = {"case": linear_problem(), "method": ADAM, "seed": 0, "device": CPU}
    path = path_of(tmp_path, **same)
    assert path == path_of(tmp_path, **same)
    assert path != path_of(tmp_path, **{**same, **change})


def test_other_sources_are_measured_anew(monkeypatch):
    of = partial(path_of, results.REPOSITORY, linear_problem(), ADAM, 0, CPU)
    before = of()
    assert runs.code(True) != runs.code(False)
    monkeypatch.setattr(runs, "code", lambda ours: "another")
    assert of() != before
    assert all(list((results.REPOSITORY / "bench").glob(f"{name}.py")) for name in runs.SOURCES)


# --- the command ----------------------------------------------------------------------------------


@pytest.fixture
def arguments(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "KEPT", tmp_path / "runs")
    monkeypatch.setitem(PROBLEMS, "linear", lambda case, device: linear_problem())
    return Namespace(
        device="cpu", data=["linear"], optimizers=["FusedSaLSa", "AdamW"], seeds=2, work=1.0,
        again=False, json=tmp_path / "train.json", family=False, without=[],
    )  # fmt: skip


def test_the_command_writes_rows_curves_and_a_table(arguments, tmp_path, capsys):
    assert command.train(arguments) == 0
    found = Results.read(arguments.json)
    assert found.rows_of("linear", "train_loss")["AdamW"].n == 2
    units = {curve.x_unit for curve in found.curves if curve.quantity == "train_loss"}
    assert units == {"plain steps of work"}
    said = capsys.readouterr().out
    assert said.index("mean rank") < said.index("extra fwd.")  # the table of all problems first
    assert to_markdown(ratio_table(found)).startswith("| optimizer | linear |")
    assert {path.name for path in plots.draw(tmp_path)} == {"train.png"}
    page = report.page(tmp_path)
    assert page.index("## What training reaches") < page.index("mean rank") < page.index(".png")
    assert command.train(arguments) == 0
    assert "4 runs were there already" in capsys.readouterr().out


def test_the_family_has_results_of_its_own(arguments, tmp_path):
    arguments.family, arguments.optimizers = True, ["FusedSaLSa", "PLASLS"]
    arguments.json = tmp_path / "family.json"
    assert command.train(arguments) == 0
    found = Results.read(arguments.json)
    assert {row.bench for row in found.rows} == {"family"}
    assert "## The papers' other systems" in report.page(tmp_path)


def test_more_work_is_more_steps(arguments):
    arguments.work = 1.5
    assert command.train(arguments) == 0
    assert Results.read(arguments.json).rows_of("linear", "steps")["AdamW"].mean == 30


def test_problems_can_be_left_out(arguments, monkeypatch):
    monkeypatch.setitem(PROBLEMS, "other", lambda case, device: linear_problem(case=case))
    arguments.data, arguments.without = ["other", "linear"], ["linear"]
    assert command.train(arguments) == 0
    assert list(Results.read(arguments.json).settings["cases"]) == ["other"]


def test_again_measures_anew_and_deletes_nothing(arguments, tmp_path):
    assert command.train(arguments) == 0
    kept = sorted((tmp_path / "runs").iterdir())
    before = [path.read_bytes() for path in kept]
    only = Namespace(**{**vars(arguments), "again": True, "optimizers": ["AdamW"]})
    assert command.train(only) == 0
    assert sorted((tmp_path / "runs").iterdir()) == kept
    changed = [path.name for path, text in zip(kept, before) if path.read_bytes() != text]
    assert len(changed) == 2 and all("AdamW" in name for name in changed)


def test_data_that_are_missing_are_named_and_left_out(arguments, monkeypatch, capsys):
    def missing(case, device):
        raise DataError("no network")

    monkeypatch.setitem(PROBLEMS, "gone", missing)
    arguments.data = ["gone", "linear", "linear"]
    assert command.train(arguments) == 0
    found = Results.read(arguments.json)
    assert found.settings["missing"] == {"gone": "no network"}
    assert list(found.settings["cases"]) == ["linear"]
    assert "gone: left out: no network" in capsys.readouterr().out


def test_a_file_that_cannot_be_written_is_noticed_before_the_work(arguments, tmp_path):
    arguments.json = tmp_path
    with pytest.raises(SystemExit, match="cannot be written"):
        command.train(arguments)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"work": float("nan")}, "some work"),
        ({"optimizers": ["adamw"]}, "'adamw' is none of 'FusedSaLSa'"),
        ({"data": ["digits"]}, "--data: 'digits' is none of 'digits-cnn'"),
        ({"seeds": 0}, "at least one seed"),
        ({"work": 0.0}, "some work"),
    ],
)
def test_bad_arguments_are_named(arguments, change, message):
    with pytest.raises(SystemExit, match=message):
        command.train(Namespace(**{**vars(arguments), **change}))


def test_losses_that_are_not_numbers_are_valid_json(arguments):
    case = linear_problem()
    runner = Runner(CPU)
    found = collect("train", {case: runner.run(case, [adamw("AdamW", "", math.inf)], 1)}, runner)
    assert math.isnan(found.rows_of("linear", "train_loss")["AdamW"].mean)
    found.write(arguments.json)
    json.loads(arguments.json.read_text(), parse_constant=pytest.fail)
    again = Results.read(arguments.json)
    assert math.isnan(again.rows_of("linear", "train_loss")["AdamW"].mean)
    assert "diverged" in to_markdown(by_case(again))


def test_every_command_says_what_its_options_are(capsys):
    from bench.__main__ import COMMANDS, main

    for name, (_, summary, options) in COMMANDS.items():
        with pytest.raises(SystemExit):
            main([name, "--help"])
        said = " ".join(capsys.readouterr().out.split())
        assert summary in said and "{PROBLEMS}" not in said
        assert all(option.partition("=")[0] in said for option in options.split())
