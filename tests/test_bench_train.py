"""The training runs' own logic: schedules, tuning, what is kept, and what is missing."""

from __future__ import annotations

import io
import json
import math
import sys
from argparse import Namespace
from dataclasses import replace
from functools import partial

import pytest
import torch
from rich.console import Console
from torch import nn

from bench import method, others, peers, report, results, tables, train, train_summary, train_table
from bench.collect import collect
from bench.optimizers import FUSED_SALSA, METHODS
from bench.others import ADAM, adamw, tuned_adamw
from bench.peers import MissingPeer
from bench.problems import PROBLEMS
from bench.results import Results
from bench.runs import TUNING_SEED, Runner, Store
from bench.sets.batches import Batch, shuffled
from bench.sets.fetch import DataError
from bench.training import Problem
from bench.verdict import train_verdict

CPU = torch.device("cpu")


def quiet() -> Console:
    return Console(file=io.StringIO(), width=200)


def linear_problem(plain_steps: int = 20, case: str = "linear") -> Problem:
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
        checkpoints=5,
    )


# --- schedules and optimizers ---------------------------------------------------------------------


def test_a_factor_scales_the_learning_rate_over_the_work():
    seen = []
    method = adamw("A", "", 0.1, factor=lambda share: seen.append(share) or 1 - share)
    run = train.Runner(CPU, quiet()).run_all(linear_problem(10), [lambda: method], 1)[0].runs[0]
    assert seen == pytest.approx([i / 10 for i in range(10)])
    assert run.step_sizes == pytest.approx([0.1 * (1 - i / 10) for i in range(10)])


def test_schedules():
    assert [method.cosine_end(s) for s in (0.0, 0.49, 0.5, 0.75, 1.0)] == pytest.approx(
        [1, 1, 1, 0.5, 0]
    )
    ramp = [method.warm_up_and_cosine(s) for s in (0.05, 0.1, 0.55, 1.0)]
    assert ramp == pytest.approx([0.5, 1, 0.5, 0])


@pytest.mark.parametrize("make", METHODS, ids=lambda make: make().name)
def test_every_optimizer_trains(make):
    method = make(lr=1e-2) if make().grid else make()
    try:
        method.build(nn.Linear(1, 1))
    except MissingPeer as missing:
        pytest.skip(str(missing))
    (done,) = Runner(CPU, quiet()).run_all(linear_problem(60), [lambda: method_of(method)], 1)
    losses = [point.train_loss for point in done.runs[0].checkpoints]
    assert losses[-1] < losses[0]
    assert method.name == "MoMo" or done.runs[0].step_sizes[-1] > 0.0


def method_of(method):
    return replace(method, grid=())


def test_names_are_unique():
    names = [make().name for make in METHODS]
    assert len(set(names)) == len(names)


def test_a_missing_peer_is_named_with_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr(peers, "FOLDER", tmp_path)
    monkeypatch.setitem(sys.modules, "prodigyopt", None)
    with pytest.raises(MissingPeer, match=r"prodigyopt==1\.1\.2 is missing.*python -m bench data"):
        peers.peer("prodigyopt")
    console = quiet()
    runner = Runner(CPU, console)
    done = runner.run_all(linear_problem(), [lambda: ADAM, others.prodigy], 2)
    assert [one.method.name for one in done] == ["Adam"]
    assert list(runner.missing) == ["Linear: Prodigy"]
    assert "left out" in console.file.getvalue()


def test_peers_are_found_in_the_folder(monkeypatch, tmp_path):
    (tmp_path / "somebodys.py").write_text("value = 3")
    monkeypatch.setattr(peers, "FOLDER", tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert peers.peer("somebodys").value == 3


# --- tuning ---------------------------------------------------------------------------------------


def test_the_best_of_the_grid_is_chosen_with_a_seed_of_its_own(monkeypatch):
    monkeypatch.setattr(others, "GRID", (1e-4, 1e-1, 1e3))
    seeds = []
    kept = Runner._run

    def seen(self, case, method, seed, advance, title):
        seeds.append((method.chosen_lr, seed))
        return kept(self, case, method, seed, advance, title)

    monkeypatch.setattr(Runner, "_run", seen)
    (done,) = Runner(CPU, quiet()).run_all(linear_problem(), [tuned_adamw], 2)
    assert seeds[:3] == [(lr, TUNING_SEED) for lr in (1e-4, 1e-1, 1e3)]
    assert seeds[3:] == [(0.1, 0), (0.1, 1)]
    assert done.method.chosen_lr == 0.1 and len(done.tuning) == 3
    case = linear_problem()
    found = collect("train", [case], {case.case: [done]}, CPU)
    assert found.row("linear", "AdamW, tuned", "tuning_runs").mean == 3
    assert found.settings["optimizers"] == {"AdamW, tuned": "the best lr of 3, warm-up and cosine"}


def test_a_run_that_diverges_is_not_chosen(monkeypatch):
    monkeypatch.setattr(others, "GRID", (math.inf, 1e-2))
    (done,) = Runner(CPU, quiet()).run_all(linear_problem(), [tuned_adamw], 1)
    assert done.method.chosen_lr == 1e-2


# --- what is kept ---------------------------------------------------------------------------------


def test_a_stopped_command_goes_on_where_it_was(tmp_path, monkeypatch):
    from bench import runs

    make_methods = [lambda: ADAM, lambda: FUSED_SALSA]
    trained = []
    train_one = runs.train

    def stopping(problem, method, seed, *rest, **more):
        if len(trained) == 3:
            raise KeyboardInterrupt
        trained.append((method.name, seed))
        return train_one(problem, method, seed, *rest, **more)

    monkeypatch.setattr(runs, "train", stopping)
    with pytest.raises(KeyboardInterrupt):
        Runner(CPU, quiet(), Store(tmp_path, CPU)).run_all(linear_problem(), make_methods, 2)
    monkeypatch.setattr(runs, "train", train_one)
    runner = Runner(CPU, quiet(), Store(tmp_path, CPU))
    resumed = runner.run_all(linear_problem(), make_methods, 2)
    assert runner.reused == 3
    fresh = Runner(CPU, quiet()).run_all(linear_problem(), make_methods, 2)
    for one, other in zip(resumed, fresh):
        for run, again in zip(one.runs, other.runs, strict=True):
            assert run.losses == again.losses
            assert run.checkpoints[-1].train_loss == again.checkpoints[-1].train_loss
    assert not list(tmp_path.glob("*.unfinished"))


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
    store = Store(tmp_path, CPU)
    same = {"case": linear_problem(), "method": ADAM, "seed": 0}
    (done,) = Runner(CPU, quiet()).run_all(same["case"], [lambda: ADAM], 1)
    store.put(store.key(**same), done.runs[0], results.commit())
    run, commit = store.get(store.key(**same))
    assert run == done.runs[0] and commit == results.commit()
    assert store.get(store.key(**{**same, **change})) is None


# --- the command ----------------------------------------------------------------------------------


@pytest.fixture
def arguments(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "KEPT", tmp_path / "runs")
    monkeypatch.setitem(PROBLEMS, "linear", lambda device, steps=20: linear_problem(steps))
    return Namespace(
        device="cpu", data=["linear"], optimizers=["FusedSaLSa", "AdamW"], seeds=2, work=1.0,
        again=False, json=tmp_path / "train.json", family=False, without=[],
    )  # fmt: skip


def test_the_command_writes_rows_curves_and_a_table(arguments, tmp_path, capsys):
    assert train.main(arguments) == 0
    found = Results.read(arguments.json)
    assert found.row("linear", "AdamW", "train_loss").n == 2
    units = {curve.x_unit for curve in found.curves_of("linear", "train_loss")}
    assert units == {"plain steps of work", "s"}
    over_seconds = next(found.curves_of("linear", "train_loss", "s"))
    assert list(over_seconds.x) == sorted(over_seconds.x) and over_seconds.x[-1] > 0.0
    said = capsys.readouterr().out
    assert said.index("mean rank") < said.index("extra fwd.")  # the table of all problems first
    text = tables.to_markdown(train_summary.ratio_table(found))
    assert text.startswith("| optimizer | linear |")
    (sentence,) = train_verdict(found)
    assert "FusedSaLSa is" in sentence and "of 2 by training loss" in sentence
    drawn = report.draw(tmp_path)
    names = ("train", "train_seconds")
    assert {path.name for path in drawn} == {f"{n}.{end}" for n in names for end in ("png", "svg")}
    page = report.page(tmp_path)
    assert page.index("## What training reaches") < page.index("mean rank") < page.index(".png")
    assert train.main(arguments) == 0
    assert "4 runs were there already" in capsys.readouterr().out


def test_more_work_is_more_steps(arguments):
    arguments.work = 1.5
    assert train.main(arguments) == 0
    assert Results.read(arguments.json).row("linear", "AdamW", "steps").mean == 30


def test_problems_can_be_left_out(arguments, monkeypatch):
    monkeypatch.setitem(PROBLEMS, "other", lambda device, steps=20: linear_problem(steps, "other"))
    arguments.data, arguments.without = ["other", "linear"], ["linear"]
    assert train.main(arguments) == 0
    assert list(Results.read(arguments.json).settings["cases"]) == ["other"]


def test_again_measures_anew_and_deletes_nothing(arguments, tmp_path):
    assert train.main(arguments) == 0
    kept = sorted((tmp_path / "runs").iterdir())
    before = [path.read_text() for path in kept]
    only = Namespace(**{**vars(arguments), "again": True, "optimizers": ["AdamW"]})
    assert train.main(only) == 0
    assert sorted((tmp_path / "runs").iterdir()) == kept
    changed = [path.name for path, text in zip(kept, before) if path.read_text() != text]
    assert len(changed) == 2 and all("AdamW" in name for name in changed)


def test_other_sources_are_measured_anew(tmp_path, monkeypatch):
    from bench import runs

    store = Store(tmp_path, CPU)
    before = store.key(linear_problem(), ADAM, 0)
    monkeypatch.setattr(runs, "code", lambda ours: "another")
    assert store.key(linear_problem(), ADAM, 0) != before


def test_data_that_are_missing_are_named_and_left_out(arguments, monkeypatch, capsys):
    def missing(device, steps=20):
        raise DataError("no network")

    monkeypatch.setitem(PROBLEMS, "gone", missing)
    arguments.data = ["gone", "linear", "linear"]
    assert train.main(arguments) == 0
    found = Results.read(arguments.json)
    assert found.settings["missing"] == {"gone": "no network"}
    assert list(found.settings["cases"]) == ["linear"]
    assert "gone: left out: no network" in capsys.readouterr().out


def test_a_file_that_cannot_be_written_is_noticed_before_the_work(arguments, tmp_path):
    arguments.json = tmp_path
    with pytest.raises(SystemExit, match="cannot be written"):
        train.main(arguments)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"work": float("nan")}, "some work"),
        ({"optimizers": ["adamw"]}, "'adamw' is none of 'FusedSaLSa'"),
        ({"seeds": 0}, "at least one seed"),
        ({"work": 0.0}, "some work"),
    ],
)
def test_bad_arguments_are_named(arguments, change, message):
    with pytest.raises(SystemExit, match=message):
        train.main(Namespace(**{**vars(arguments), **change}))


def test_losses_that_are_not_numbers_are_valid_json(arguments):
    case = linear_problem()
    method = adamw("AdamW", "", math.inf)
    done = Runner(CPU, quiet()).run_all(case, [lambda: method], 1)
    found = collect("train", [case], {case.case: done}, CPU)
    assert math.isnan(found.row("linear", "AdamW", "train_loss").mean)
    found.write(arguments.json)
    json.loads(arguments.json.read_text(), parse_constant=pytest.fail)
    again = Results.read(arguments.json)
    assert math.isnan(again.row("linear", "AdamW", "train_loss").mean)
    assert "diverged" in tables.to_markdown(train_table.train_table(again))


def test_partial_methods_keep_their_names():
    """`METHODS` holds factories; `--optimizers` finds them by the names of what they make."""
    chosen = train._chosen(METHODS, ["Prodigy, cosine"])
    assert len(chosen) == 1 and isinstance(chosen[0], partial)
