"""Trials evaluate the function whose gradient the search goes along, or somebody is told."""

from __future__ import annotations

import copy
import pickle
import re
import warnings

import pytest
import torch
from small_net import make_batch, make_closure, make_net
from torch import nn

from salsa_fused import FusedSaLSa


@pytest.fixture(autouse=True)
def _no_warning_unless_expected():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*nested tensors.*")
        warnings.filterwarnings("ignore", category=DeprecationWarning)  # torch.jit
        yield


# -- functions that are others without a graph ------------------------------------------------


def padded_transformer():
    """In eval(), torch takes another way under no_grad: other values at padded places."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2).eval()
    head = nn.Linear(16, 1)
    x, y = torch.randn(8, 10, 16), torch.randn(8, 1)
    padding = torch.arange(10) >= torch.randint(4, 10, (8, 1))
    net = nn.ModuleList([encoder, head])
    return net, lambda: (head(encoder(x, src_key_padding_mask=padding).mean(1)) - y).square().mean()


def term_of_training():
    """A term that the loss has only while gradients are on."""
    net = make_net(norm=False, dropout=0.0)
    evaluate = make_closure(net)

    def closure():
        decay = sum(p.square().sum() for p in net.parameters())
        return evaluate() + (0.1 * decay if torch.is_grad_enabled() else 0.0)

    return net, closure


@pytest.mark.parametrize("build", [padded_transformer, term_of_training])
@pytest.mark.parametrize("given", [False, True])
def test_trials_get_a_graph_where_it_makes_the_difference(build, given):
    net, closure = build()
    optimizer = FusedSaLSa(net.parameters())
    losses = []
    for _ in range(40):
        if given:
            optimizer.zero_grad()
            loss = closure()
            loss.backward()
            optimizer.step(closure, loss=loss)
        else:
            loss = optimizer.step(closure)
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]
    assert optimizer.step_size > 1e-5


def test_a_copy_knows_it_too():
    net, closure = term_of_training()
    optimizer = FusedSaLSa(net.parameters())
    optimizer.step(closure)
    for copied in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        assert copied._habits.needs_graph


def raising(look):
    def build():
        net = make_net(norm=False, dropout=0.0)
        x, y = make_batch()

        def closure():
            hidden = net[0](x)
            look(hidden)
            return (net[4](net[2](hidden)) - y).square().mean()

        return net, closure

    return build


def asserts(hidden):
    assert hidden.requires_grad


def names_the_node(hidden):
    hidden.grad_fn.name()


def calls_what_is_none(hidden):
    hidden.grad_fn()  # TypeError without a graph, and another with one


def hooks(hidden):
    hidden.register_hook(lambda g: g)


def refuses(hidden):
    if not hidden.requires_grad:
        raise ValueError("give me a graph")


@pytest.mark.parametrize("check_replay", [False, True])
@pytest.mark.parametrize("look", [asserts, names_the_node, hooks, refuses])
def test_a_closure_that_looks_at_the_graph(look, check_replay):
    net, closure = raising(look)()
    optimizer = FusedSaLSa(net.parameters(), check_replay=check_replay)
    losses = [optimizer.step(closure).item() for _ in range(20)]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("error", [AssertionError, AttributeError, TypeError, ValueError, KeyError])
def test_a_failure_of_the_moment_is_not_swallowed(error):
    net = make_net(norm=False)
    optimizer = FusedSaLSa(net.parameters(), check_replay=False)
    evaluate, calls = make_closure(net), 0

    def closure():
        nonlocal calls
        calls += 1
        if calls == 2:
            raise error("once")
        return evaluate()

    with pytest.raises(error, match="once"):
        optimizer.step(closure)
    assert not optimizer._habits.needs_graph


# -- buffers ----------------------------------------------------------------------------------


class Flat(nn.Module):
    """A weight, and a buffer that lies in its memory: as torch's first spectral norm had it."""

    def __init__(self, how):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, generator=torch.Generator().manual_seed(0)))
        self.register_buffer("flat", self.weight.data if how == "all" else self.weight.data[2:4])

    def forward(self, x):
        return x @ self.weight


@pytest.mark.parametrize("how", ["all", "part"])
def test_a_buffer_in_a_weights_memory(how):
    losses = []
    for module in (False, True):
        net = Flat(how)
        x, y = make_batch()
        optimizer = FusedSaLSa(net.parameters(), module=net if module else None)
        for _ in range(40):
            loss = optimizer.step(lambda net=net, x=x, y=y: (net(x) - y[:, 0]).square().mean())
        losses.append(loss.item())
    assert losses[0] == losses[1]


def test_torchscript():
    results = []
    for script in (False, True):
        net = make_net(dropout=0.0)
        model = torch.jit.script(net) if script else net
        optimizer = FusedSaLSa(model.parameters(), module=model)
        losses = [optimizer.step(make_closure(model, 0)).item() for _ in range(20)]
        assert int(dict(model.named_buffers())["1.num_batches_tracked"]) == 20
        results.append((losses[-1], optimizer.metrics()["total_trials"]))
    assert results[0] == pytest.approx(results[1], rel=0.05)


def test_an_exception_behind_torchscript_is_the_users():
    net = torch.jit.script(make_net())
    optimizer = FusedSaLSa(net.parameters(), module=net, check_replay=False)
    evaluate, calls = make_closure(net), 0

    def closure():
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyError("mine")
        return evaluate()

    with pytest.raises(KeyError, match="mine"):
        optimizer.step(closure)


def test_lazy_buffers():
    net = nn.Sequential(nn.Linear(6, 4), nn.LazyBatchNorm1d(affine=False), nn.Linear(4, 1))
    optimizer = FusedSaLSa([*net[0].parameters(), *net[2].parameters()], module=net)
    for step in range(5):
        optimizer.step(make_closure(net, step))
    assert int(net[1].num_batches_tracked) == 5


@pytest.mark.parametrize("dtype", ["int1", "int4", "uint2", "uint7", "uint16", "float8_e5m2"])
def test_buffers_of_every_dtype(dtype):
    net = make_net(norm=False)
    net.register_buffer("codes", torch.empty(8, dtype=getattr(torch, dtype)))
    optimizer = FusedSaLSa(net.parameters(), module=net)
    for step in range(3):
        optimizer.step(make_closure(net, step))


# -- what a forward changes -------------------------------------------------------------------


def test_batch_norm_without_module_is_noticed():
    net = make_net()
    optimizer = FusedSaLSa(net.parameters())
    with pytest.warns(UserWarning, match="'num_batches_tracked' of BatchNorm1d.*pass module=model"):
        optimizer.step(make_closure(net))
    for step in range(20):  # once
        optimizer.step(make_closure(net, step))


def test_a_discriminators_statistics_are_noticed():
    """A generator's loss goes through a model that its optimizer does not train."""
    generator, discriminator = nn.Linear(6, 6), make_net(dropout=0.0)
    x, _ = make_batch()

    def closure():
        return nn.functional.softplus(-discriminator(generator(x))).mean()

    optimizer = FusedSaLSa(generator.parameters(), module=generator)
    with pytest.warns(UserWarning, match=r"another module.*nn\.ModuleList"):
        optimizer.step(closure)
    both = nn.ModuleList([generator, discriminator])
    optimizer = FusedSaLSa(generator.parameters(), module=both)
    before = int(discriminator[1].num_batches_tracked)
    for _ in range(20):
        optimizer.step(closure)
    assert int(discriminator[1].num_batches_tracked) == before + 20


class Encoders(nn.Module):
    """As MoCo, BYOL or DINO: the keys' encoder follows in the forward."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.query = nn.Linear(6, 4)
        self.key = copy.deepcopy(self.query).requires_grad_(False)
        self.updates = 0

    def follow(self):
        self.updates += 1
        with torch.no_grad():
            for k, q in zip(self.key.parameters(), self.query.parameters()):
                k.lerp_(q, 0.1)

    def forward(self, x):
        self.follow()
        return nn.functional.cross_entropy(
            self.query(x) @ self.key(x + 0.1).T, torch.arange(len(x))
        )


@pytest.mark.parametrize("inside", [True, False])
def test_a_momentum_encoder_is_noticed(inside):
    """At the first search both encoders are equal, so that the loss tells nothing."""
    model = Encoders()
    optimizer = FusedSaLSa(model.query.parameters(), module=model)
    x, _ = make_batch()

    def closure():
        if inside:
            return model(x)
        model.follow()  # in no module's forward
        return model.query(x).sub(model.key(x)).square().mean() + model.query(x).mean()

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for _ in range(15):
            optimizer.step(closure)
    found = [str(w.message) for w in said if "'weight' of Linear" in str(w.message)]
    assert len(found) == 1 and "if not optimizer.in_trial" in found[0]


def test_in_trial_tells_what_to_do():
    model = Encoders()
    optimizer = FusedSaLSa(model.query.parameters(), module=model)
    x, _ = make_batch()
    kept, follow = [], model.follow
    model.follow = lambda: None if optimizer.in_trial else follow()

    def closure():
        loss = model(x)
        if not optimizer.in_trial:
            kept.append(loss)
        return loss

    for step in range(20):
        assert not optimizer.in_trial
        loss = optimizer.step(closure)
        assert torch.equal(kept[step].detach(), loss) and kept[step].grad_fn is not None
    assert len(kept) == model.updates == 20


def test_in_trial_is_false_after_an_exception():
    net = make_net()
    optimizer = FusedSaLSa(net.parameters(), check_replay=False)
    evaluate = make_closure(net)

    def closure():
        if optimizer.in_trial:
            raise KeyError
        return evaluate()

    with pytest.raises(KeyError):
        optimizer.step(closure)
    assert not optimizer.in_trial


def test_compiled_models_are_left_alone():
    """Looking at modules must neither recompile nor break a graph."""
    from torch._dynamo.utils import counters

    counters.clear()  # of other tests in this process
    net = make_net(dropout=0.0)
    model = torch.compile(net, backend="eager")
    optimizer = FusedSaLSa(net.parameters(), module=net)
    for _ in range(3):
        optimizer.step(make_closure(model))
    assert counters["stats"]["unique_graphs"] <= 2  # with gradients, and without
    torch._dynamo.reset()


# -- a loss that is not the closure's ---------------------------------------------------------


@pytest.mark.parametrize("inside", [True, False])
def test_the_last_micro_batchs_loss_is_named(inside):
    net = make_net(norm=False, dropout=0.0)
    optimizer = FusedSaLSa(net.parameters())
    batches = [make_batch(step) for step in range(4)]

    def closure():
        return sum((net(x) - y).square().mean() for x, y in batches) / 4

    optimizer.zero_grad()
    if inside:
        with optimizer.first_evaluation():
            losses = [(net(x) - y).square().mean() / 4 for x, y in batches]
    else:
        losses = [(net(x) - y).square().mean() / 4 for x, y in batches]
    for loss in losses:
        loss.backward()
    named = r"[3-5]\.\d+ times as much.* is `loss` that of one micro-batch"
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        optimizer.step(closure, loss=loss)
    assert re.search(named, str(said[0].message))


def test_state_in_attributes_is_named():
    """Only buffers are put back."""

    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 6)
            self.state = torch.zeros(6)

        def forward(self, x):
            out = torch.tanh(self.layer(x) + self.state)
            self.state = out.mean(0).detach()
            return out

    net = Recurrent()
    x, y = make_batch()
    optimizer = FusedSaLSa(net.parameters(), module=net)
    with pytest.warns(UserWarning, match="no state in the model's attributes"):
        optimizer.step(lambda: (net(x) - y).square().mean())


@pytest.mark.parametrize("evaluates_from", [0, 30])
def test_a_graph_that_is_missing_is_looked_for_whenever_searches_fail(evaluates_from):
    """Without check_replay, and where the model goes to eval() later."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)
    encoder, head = nn.TransformerEncoder(layer, 2), nn.Linear(8, 1)
    net = nn.ModuleList([encoder, head])
    x, y = torch.randn(16, 5, 8), torch.randn(16, 5, 1)
    padding = torch.arange(5)[None] >= torch.randint(2, 6, (16, 1))
    optimizer = FusedSaLSa(net.parameters(), check_replay=evaluates_from > 0)
    losses = []
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="10 searches in a row have accepted")
        for step in range(130):
            net.train(step < evaluates_from)
            loss = optimizer.step(
                lambda: (head(encoder(x, src_key_padding_mask=padding)) - y).square().mean()
            )
            losses.append(loss.item())
    assert optimizer._habits.needs_graph and optimizer.skipped_steps < 5
    assert losses[-1] < 0.8 * losses[50] and optimizer.step_size > 1e-4
