"""The scripts that FusedSaLSa is swapped into, at a tiny size, and what is said of their runs."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
from torch.nn.utils import get_total_norm

from bench import report, swapin
from bench.methods import Method, closure_step, of_torch
from bench.results import Results
from bench.runs import Runner
from bench.scripts import SCRIPTS, Script, WordModel, mixed, nano_gpt, tiny_vit, word2vec, word_lm
from bench.sets.batches import Batch
from bench.sets.text import Text, encode, encode_words
from bench.tables import to_markdown
from bench.training import CPU

PLAY = "To be, or not to be:\nthat is the question.\n\nWhether 'tis nobler in the mind\n" * 60


def tiny_words() -> Text:
    return encode_words([PLAY], 20)


TINY = {
    "nano-gpt": lambda: nano_gpt(width=8, text=lambda: encode([PLAY])).scaled(0.02),
    "word-lm": lambda: word_lm(width=8, text=tiny_words).scaled(0.03),
    "word2vec": lambda: word2vec(width=8, text=tiny_words).scaled(0.006),
    "tiny-vit": lambda: tiny_vit(width=8).scaled(0.01),
}


class OnlySteps(torch.optim.SGD):
    """What can stand in for FusedSaLSa: it has `step(closure)`."""

    def __init__(self, params, module, max_grad_norm=None):
        super().__init__(params, lr=0.1)

    def step(self, closure):
        self.zero_grad()
        loss = closure()
        loss.backward()
        super().step()
        return loss.detach()


def swapped(script: Script) -> list[Method]:
    return swapin.swapped(script, {})


def driven_by_steps(make, factor=None) -> Method:
    """A method that is built and driven as FusedSaLSa is."""

    def build(module, params, clip):
        return make(module.parameters() if params is None else params, module, max_grad_norm=clip)

    return Method("Other", "", build, closure_step, factor=factor)


# --- the scripts ----------------------------------------------------------------------------------


def test_every_script_has_a_tiny_one():
    assert TINY.keys() == SCRIPTS.keys()


@pytest.mark.parametrize("case", TINY)
def test_every_script_trains_with_its_own_and_with_a_swapped_optimizer(case):
    script = TINY[case]()
    assert script.case == case
    ways = [*script.own, *swapped(script)]
    for way in ways:
        run = script.run(way, 0, CPU)
        assert len(run.losses) == len(run.work) == len(run.step_sizes) > 0
        assert all(map(math.isfinite, [*run.losses, *run.scores.values()]))
        assert math.isfinite(run.step_size_at(1)) and run.step_size_at(-1) > 0


@pytest.mark.parametrize("case", TINY)
def test_a_seed_decides_a_run(case):
    script = TINY[case]()
    way = swapped(script)[0]
    first, again, other = (script.run(way, seed, CPU) for seed in (1, 1, 2))
    assert (first.losses, first.scores) == (again.losses, again.scores)
    assert first.losses != other.losses


@pytest.mark.parametrize("case", TINY)
def test_step_with_a_closure_is_all_that_is_asked_of_a_swapped_optimizer(case):
    script = TINY[case]()
    run = script.run(driven_by_steps(OnlySteps), 0, CPU)
    assert all(map(math.isfinite, run.losses))


def test_all_do_the_same_work():
    script = TINY["nano-gpt"]()
    own, other = script.own[0], swapped(script)[0]
    plain, searched = (script.run(way, 0, CPU) for way in (own, other))
    assert plain.work == [3, 6, 9, 12, 15, 18]
    assert len(searched.losses) < len(plain.losses) and searched.work[-1] >= plain.work[-1]


def test_a_schedule_is_a_factor_on_what_the_optimizer_has():
    script = TINY["tiny-vit"]()
    ((factor,), (method,)) = script.schedules, swapped(script)
    assert method.factor is factor
    run = script.run(driven_by_steps(OnlySteps, factor), 0, CPU)
    assert run.step_sizes == pytest.approx([0.1 * factor(i / 4) for i in range(4)])


def test_clipping_is_told_to_the_swapped_optimizer_and_done_for_the_own_one():
    told, norms = [], []

    def make(params, module, *, max_grad_norm=None):
        told.append(max_grad_norm)
        return OnlySteps(params, module)

    class Own(torch.optim.SGD):
        def step(self, closure=None):
            norms.append(get_total_norm([w.grad for w in self.param_groups[0]["params"]]).item())

    script = TINY["word-lm"]()
    script.run(driven_by_steps(make), 0, CPU)
    assert told == [0.25]
    script.run(of_torch("B", "", Own), 0, CPU)
    assert norms and max(norms) < 0.2501


def test_hidden_states_are_carried_over():
    model = WordModel(20, width=8).eval()
    tokens = torch.randint(20, (6, 3))
    whole, _ = model(tokens, None)
    _, hidden = model(tokens[:4], None)
    rest, _ = model(tokens[4:], hidden)
    torch.testing.assert_close(rest, whole[4:])


def test_mixup_keeps_the_labels_sum():
    batch = Batch(torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 2, 3]))
    inputs, labels = mixed(batch, 0.25)
    torch.testing.assert_close(labels.sum(1), torch.ones(4))
    torch.testing.assert_close(inputs[0], 0.25 * batch.inputs[0] + 0.75 * batch.inputs[3])
    assert labels[0].argmax() == 3


# --- what is said of a run ------------------------------------------------------------------------


@pytest.mark.parametrize("case, lr, died", [("nano-gpt", 1e-3, False), ("nano-gpt", 1e3, True)])
def test_a_run_that_blows_up_has_died(case, lr, died):
    sgd = of_torch("SGD", "", torch.optim.SGD, lr=lr)
    assert TINY[case]().run(sgd, 0, CPU).died == died


# --- the command ----------------------------------------------------------------------------------


def test_results_table_and_page(tmp_path):
    runner, done = Runner(CPU), {}
    for case in ("word-lm", "word2vec"):
        script = TINY[case]()
        done[script] = runner.run(script, [*script.own, *swapped(script)], 1)
    swapin.collect({"c": 0.3}, done, runner).write(tmp_path / "swapin.json")

    found = Results.read(tmp_path / "swapin.json")
    assert found.rows_of("word-lm", "died")["FusedSaLSa"].n == 1
    assert {"commit", "torch", "threads"} <= found.environment.keys()
    text = to_markdown(swapin.swapin_table(found))
    assert text.count("FusedSaLSa") == 2
    assert text.count("**") == 2 * 2  # one best in each script
    assert "{'c': 0.3}" in text and "SGD (lr=20)" in text
    assert "## Swapped into scripts" in report.page(tmp_path)


def test_an_optimizer_that_fails_is_left_out_and_said(capsys):
    def make(params):
        raise RuntimeError("no such thing")

    script, runner = TINY["word2vec"](), Runner(CPU)
    (done,) = runner.run(script, [*script.own, of_torch("Broken", "", make)], 2)
    assert runner.missing == {"word2vec: Broken": "no such thing"}
    assert done.method.name == "Adam" and len(done.runs) == 2
    assert capsys.readouterr().out.count("no such thing") == 1


def test_settings_reach_the_swapped_optimizer():
    (method,) = swapin.swapped(TINY["word2vec"](), {"c": 0.3})
    module = torch.nn.Linear(1, 1)
    optimizer = method.build(module, module.parameters(), 2.0)
    assert optimizer.max_grad_norm == 2.0 and optimizer.param_groups[0]["c"] == 0.3


def test_the_command(tmp_path, monkeypatch, capsys):
    from bench.__main__ import main

    monkeypatch.setitem(SCRIPTS, "word2vec", TINY["word2vec"])
    file = tmp_path / "s.json"
    chosen = ["--only", "word2vec", "--seeds", "1", "--settings", '{"c": 0.3}']
    assert main(["swapin", *chosen, "--json", str(file)]) == 0
    assert json.loads(file.read_text())["settings"]["options"] == {"c": 0.3}
    assert "word2vec" in capsys.readouterr().out


def test_denormals_are_only_flushed_within_a_run():
    tiny, script = torch.tensor(1e-40), TINY["tiny-vit"]()
    seen = []

    def train(loop_of, run, chance):
        seen.append(float(tiny * 1))
        return False

    replace(script, train=train).run(script.own[0], 0, CPU)
    assert seen == [0.0] and tiny * 1 != 0
