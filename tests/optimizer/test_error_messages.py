"""Every error of the constructor and of a backend: its text says what to do."""

from __future__ import annotations

import copy
import subprocess
import sys
import warnings

import pytest
import torch
from small_net import make_closure, make_net
from torch import nn

from salsa_fused import FusedSaLSa, settings
from salsa_fused import groups as groups_module
from salsa_fused import optimizer as optimizer_module
from salsa_fused.line_search import LineSearch, SearchSettings, SearchState

NAN = float("nan")


def weight(*shape, **keywords):
    return torch.ones(*(shape or (3,)), requires_grad=True, **keywords)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"lr": -1.0}, r"lr must be >= 0 and finite, got -1.0; it is a factor"),
        ({"lr": NAN}, "lr must be >= 0"),
        ({"lr": torch.ones(2)}, "lr must be a number or a tensor of one element"),
        ({"lr": "fast"}, "lr must be a number, got 'fast'"),
        ({"betas": (0.9, 0.999)}, r"betas=\(0.9, 0.999, 0.99\)"),
        ({"betas": 0.9}, "betas must be three numbers"),
        ({"betas": (1.0, 0.999, 0.99)}, r"betas\[0\] must lie in \[0, 1\), got 1.0"),
        ({"betas": (0.9, -0.1, 0.99)}, r"betas\[1\] must lie"),
        ({"betas": (0.9, 0.999, 1.0)}, r"betas\[2\] \(beta3\) must lie in \[0, 1\)"),
        ({"eps": -1e-8}, "eps must be >= 0"),
        ({"weight_decay": -0.1}, "weight_decay must be >= 0"),
        ({"c": 0.0}, r"c must lie in \(0, 1\), got 0.0"),
        ({"c": 1}, r"c must lie in \(0, 1\)"),
        ({"backtrack": 1.0}, r"backtrack must lie in \(0, 1\)"),
        ({"growth": 0.9}, "growth must be at least 1"),
        ({"growth": float("inf")}, "growth must be at least 1 and finite"),
        ({"growth_per": "epoch"}, "growth_per must be one of 'search', 'step', got 'epoch'"),
        ({"init_step_size": 0.0}, "init_step_size must be positive"),
        ({"schedule": "cosine"}, "schedule must be one of 'doubling', 'rate'"),
        ({"search_period": 0}, "search_period must be .* got 0"),
        ({"search_period": (5, 2)}, r"search_period must be \(L_min, L_max\)"),
        ({"search_period": 2.5}, "search_period must be"),
        ({"search_period": True}, "search_period must be"),
        ({"max_trials": 0}, "max_trials must be an integer >= 1, got 0"),
        ({"max_trials": 2.0}, "max_trials must be an integer"),
        ({"units": "layers"}, "units must be one of 'all', 'groups', got 'layers'"),
        ({"direction": "rmsprop"}, "direction must be one of 'adam', .*'ademamix', got 'rmsprop'"),
        ({"trust_clip": 0}, "trust_clip must be positive, or None for no bound .*, got 0"),
        ({"trust_clip": float("nan")}, "trust_clip must be positive"),
        ({"trust_clip": "none"}, "trust_clip must be a number, got 'none'"),
        ({"trust_clip": torch.ones(2)}, r"trust_clip must be a number, got tensor"),
        (
            {"backend": "cuda"},
            "backend is 'cuda'; the backends are 'triton', 'native', 'reference'",
        ),
    ],
)
def test_arguments(keywords, message):
    with pytest.raises(ValueError, match=message):
        FusedSaLSa([weight()], **keywords)


def test_module_must_be_a_module():
    with pytest.raises(TypeError, match=r"module must be an nn.Module or None, got list"):
        FusedSaLSa([weight()], module=[weight()])


def test_unknown_arguments_are_refused():
    with pytest.raises(TypeError, match="momentum"):
        FusedSaLSa([weight()], momentum=0.9)
    with pytest.raises(TypeError):
        FusedSaLSa([weight()], 1e-3)  # lr by position is not Adam's lr


def overlapping():
    return torch.ones(1).expand(4).requires_grad_()


def with_gradient(dtype):
    weight = torch.ones(3, dtype=dtype)
    weight.grad = torch.ones(3, dtype=dtype)
    return weight


class Subclass(torch.Tensor):
    pass


@pytest.mark.parametrize(
    ("parameters", "error", "message"),
    [
        (lambda: [], ValueError, "empty parameter list"),
        (lambda: weight(), TypeError, "iterable of Tensors or dicts"),
        (lambda: [3.0], TypeError, "can only optimize Tensors"),
        (lambda: [weight() * 2], ValueError, "non-leaf"),
        (lambda: [with_gradient(torch.int64)], TypeError, "0 of its group .*floating dtype"),
        (lambda: [weight(), weight(dtype=torch.complex64)], TypeError, "parameter 1 of its group"),
        (lambda: [weight(device="meta")], ValueError, "meta device.*to_empty"),
        (lambda: [overlapping()], ValueError, "overlaps itself in memory"),
        (lambda: nn.LazyLinear(3).parameters(), TypeError, "lazy.*run one forward pass"),
        (
            lambda: [torch.ones(3).as_subclass(Subclass).requires_grad_()],
            TypeError,
            "is a .*Subclass.*plain tensors",
        ),
        (lambda: [torch.eye(3).to_sparse().requires_grad_()], TypeError, "sparse"),
        (lambda: [(w := weight()), w], ValueError, "in its group twice"),
        (lambda: [{"params": [w := weight()]}, {"params": [w]}], ValueError, "more than one"),
        (lambda: [{"params": {weight()}}], TypeError, "ordered collections"),
        (lambda: [{"params": [weight()], "lr": -1}], ValueError, "lr must be >= 0"),
        (lambda: [{"params": [weight()], "betas": 0.9}], ValueError, r"\(beta1, beta2\)"),
        (
            lambda: [{"params": [weight()], "c": 0.3}],
            ValueError,
            "names c=0.3, .* has c=0.5: leave c out of the group, the constructor's c sets it",
        ),
        (
            lambda: [{"params": [weight()], "step_size": 3.0}],
            ValueError,
            "names step_size=3.0, .* found by the search and is not given: leave it out",
        ),
        (
            lambda: [{"params": [weight()]}, {"params": [weight()], "betas": (0.9, 0.9, 0.5)}],
            ValueError,
            r"names beta3=0.5, .* the constructor's betas\[2\] sets it",
        ),
        (lambda: [{"params": [weight()], "trust_clip": 2.0}], ValueError, "names trust_clip=2.0"),
        (lambda: [{"params": [weight()], "units": "groups"}], ValueError, "names units='groups'"),
        (lambda: [{"params": [weight()], "direction": "sgd"}], ValueError, "names direction='sgd'"),
    ],
)
def test_parameters(parameters, error, message):
    with pytest.raises(error, match=message):
        FusedSaLSa(parameters())


@pytest.mark.parametrize("change", [{}, {"c": 0.3}, {"direction": "sgd"}])
@pytest.mark.parametrize("several", [False, True])
def test_groups_of_an_earlier_optimizer(change, several):
    """It keeps its search in their dictionaries, as torch's keep their settings in them."""
    groups = [{"params": [weight()], "lr": 0.5}, {"params": [weight()]}][: 1 + several]
    earlier = FusedSaLSa(groups)
    parameters = [p for group in groups for p in group["params"]]
    earlier.step(lambda: sum(p.square().sum() for p in parameters))
    message = (
        r"belong to an earlier optimizer.*\[\{'params': group\['params'\], 'lr': group\['lr'\]"
    )
    with pytest.raises(ValueError, match=message):
        FusedSaLSa(groups, **change)
    with pytest.raises(ValueError, match=message):
        FusedSaLSa([weight()], **change).add_param_group(groups[-1])
    fresh = [{"params": group["params"], "lr": group["lr"]} for group in groups]
    assert FusedSaLSa(fresh, **change).param_groups[0]["lr"] == 0.5


def test_numbers_are_looked_at_before_parameters():
    for keywords in ({"lr": -1.0}, {"eps": -1.0}, {"weight_decay": NAN}, {"betas": (2, 0.9, 0.9)}):
        with pytest.raises(ValueError, match=f"^{next(iter(keywords))}"):
            FusedSaLSa(None, **keywords)


def test_a_dtensor_without_its_model_is_refused_where_it_searches():
    from torch.distributed import destroy_process_group, init_process_group
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import distribute_tensor
    from torch.testing._internal.distributed.fake_pg import FakeStore

    init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    try:
        mesh = init_device_mesh("cpu", (2,))
        parameter = nn.Parameter(distribute_tensor(torch.ones(4), mesh))
        with pytest.raises(RuntimeError, match="pass module=model"):
            FusedSaLSa([parameter]).step(lambda: parameter.sum())
        assert parameter.to_local().tolist() == [1.0] * 4
        plain = weight()
        alone = FusedSaLSa([plain], search_period=None, init_step_size=0.1)
        plain.grad = torch.ones(3)
        alone.step()
        assert plain.tolist() == pytest.approx([0.9] * 3)
    finally:
        destroy_process_group()


def test_named_parameters_are_named():
    net = nn.Sequential(nn.Linear(2, 2), nn.LazyLinear(2))
    with pytest.raises(TypeError, match=r"parameter '1.weight'"):
        FusedSaLSa(net.named_parameters())


def test_a_refused_group_leaves_the_optimizer_as_it_was():
    net = make_net()
    optimizer = FusedSaLSa(net.parameters())
    with pytest.raises(ValueError, match="weight_decay"):
        optimizer.add_param_group({"params": [weight()], "weight_decay": -1.0})
    assert len(optimizer.param_groups) == 1
    optimizer.step(make_closure(net))


# -- backends ---------------------------------------------------------------------------------


def test_a_forced_backend_that_cannot_serve():
    parameter = weight(dtype=torch.float64)
    optimizer = FusedSaLSa([parameter], backend="native")
    with pytest.raises(
        RuntimeError,
        match=r"'native' was asked for.*float64.*only for equal dtypes among torch.float32",
    ):
        optimizer.step(lambda: parameter.sum())
    assert parameter.tolist() == [1.0] * 3


def test_a_backend_forced_by_the_environment(monkeypatch):
    monkeypatch.setenv("SALSA_FUSED_BACKEND", "reference")
    parameter = weight()
    optimizer = FusedSaLSa([parameter])
    optimizer.step(lambda: parameter.square().sum())
    assert optimizer.backends == ("reference",)
    monkeypatch.setenv("SALSA_FUSED_BACKEND", "abacus")
    with pytest.raises(ValueError, match="SALSA_FUSED_BACKEND is 'abacus'"):
        FusedSaLSa([parameter])


def test_native_serves_fp32_on_the_cpu():
    parameter, double = weight(), weight(dtype=torch.float64)
    optimizer = FusedSaLSa([parameter, double])
    optimizer.step(lambda: parameter.square().sum() + double.square().sum())
    assert optimizer.backends == ("native", "reference")


# -- warnings ---------------------------------------------------------------------------------


def test_a_learning_rate_as_lr_is_warned_of():
    message = r"lr=0.001 is a factor .* not a learning rate: pass lr=1.0 \(the default\)"
    with pytest.warns(UserWarning, match=message) as seen:
        FusedSaLSa([weight()], lr=1e-3)
    assert seen[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        FusedSaLSa([weight()], lr=0.05)
        FusedSaLSa([{"params": [weight()], "lr": 1e-3}, {"params": [weight()]}])
        FusedSaLSa([weight()], lr=1e-3, search_period=None)
        FusedSaLSa([weight()], **settings.PAPER)


def test_parameters_that_share_memory():
    first = weight(4)
    with pytest.raises(
        ValueError, match=r"parameter 0 .* and parameter 1 .* share memory.*b.weight"
    ):
        FusedSaLSa([first, nn.Parameter(first.data)])
    with pytest.raises(ValueError, match="share memory"):
        FusedSaLSa([{"params": [first]}, {"params": [nn.Parameter(first.data[1:])]}])
    halves = torch.ones(8)
    FusedSaLSa([nn.Parameter(halves[:4]), nn.Parameter(halves[4:])])  # beside each other


def test_a_new_group_that_shares_memory():
    first = weight(4)
    optimizer = FusedSaLSa([first])
    before = [dict(group) for group in optimizer.param_groups]
    with pytest.raises(ValueError, match="share memory"):
        optimizer.add_param_group({"params": [nn.Parameter(first.data[1:])]})
    assert optimizer.param_groups == before
    optimizer.add_param_group({"params": [weight(4)]})


def test_the_memory_of_all_groups_is_looked_at_once(monkeypatch):
    """Not once for every group: two thousand of them would take seconds."""
    check, seen = optimizer_module.check_no_shared_memory, []

    def counted(groups):
        seen.append(len(groups))
        check(groups)

    for module in (optimizer_module, groups_module):
        monkeypatch.setattr(module, "check_no_shared_memory", counted)
    optimizer = FusedSaLSa([{"params": [weight()]} for _ in range(20)])
    assert seen == [20]
    optimizer.add_param_group({"params": [weight()]})
    copy.deepcopy(optimizer).add_param_group({"params": [weight()]})
    assert seen == [20, 21, 22]


def test_weights_made_where_nothing_has_gradients():
    with torch.inference_mode():
        net = nn.Linear(3, 1)
    with pytest.raises(ValueError, match="inference_mode"):
        FusedSaLSa(net.parameters())


def test_duplicates_are_an_error_without_a_warning_before_it():
    first = weight()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match="twice"):
            FusedSaLSa([first, first])


def test_a_negated_view_is_no_parameter():
    with pytest.raises(ValueError, match="resolve_neg"):
        FusedSaLSa([torch._neg_view(torch.ones(3)).requires_grad_()])


def test_a_search_that_has_not_ended():
    search = LineSearch(SearchSettings(), SearchState(1.0))
    with pytest.raises(RuntimeError, match="no search has ended"):
        _ = search.result
    with pytest.raises(RuntimeError, match="has not ended"):
        search.finish()


def test_a_compiled_module_that_is_older_than_the_sources_is_not_used():
    code = (
        "import sys, types; sys.modules['salsa_fused._native'] = types.ModuleType('_native'); "
        "from salsa_fused.kernels import compiled; print(compiled.missing())"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "older than the sources" in run.stdout
