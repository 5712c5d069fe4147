"""The optimizer on a GPU: bits, waits, streams, memory.  Skipped where there is none."""

from __future__ import annotations

import copy
import math
import os
import subprocess
import sys
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kernel_cases import (
    DIRECTIONS,
    DTYPES,
    GROUP,
    alignment_of,
    along,
    assert_aligned,
    assert_same_run,
    extreme_values,
    make_state,
    make_weights,
    make_window,
    models,
    moved,
    run,
    same_bits,
    two_groups,
)
from torch import nn
from torch.autograd import DeviceType

from salsa_fused import FusedSaLSa
from salsa_fused.kernels import Kernels
from salsa_fused.kernels.backends import cuda as cuda_backend
from salsa_fused.kernels.backends.triton import TritonBackend

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
]

# not built, or their nvcc is newer than the driver
HERE = torch.device("cuda", 0)
WITHOUT_NATIVE = cuda_backend.missing() or cuda_backend.launch_failure(HERE)
needs_native = pytest.mark.skipif(WITHOUT_NATIVE is not None, reason=str(WITHOUT_NATIVE))
BACKENDS_ON_GPU = ["triton", pytest.param("native", marks=needs_native)]
on_every_backend = pytest.mark.parametrize("backend", BACKENDS_ON_GPU)
on_every_direction = pytest.mark.parametrize("direction", DIRECTIONS)
SIZES = [1, 7, 8, 9, 511, 512, 513, 2047, 4096, 5003, 2 * TritonBackend.chunk_size + 9, 1_000_003]


# -- bits -------------------------------------------------------------------------------------


@on_every_backend
@on_every_direction
@pytest.mark.parametrize("dtype", DTYPES)
def test_bits_over_sizes_and_states(dtype, direction, backend):
    def make():
        weights = make_weights(SIZES, dtype, missing={3})
        return weights, None, make_state(weights[:5])

    assert_same_run(along(direction, make), (backend, "native"), "cuda")


@on_every_backend
@on_every_direction
@pytest.mark.parametrize("make", [two_groups, extreme_values])
def test_bits_of_special_models(make, direction, backend):
    assert_same_run(along(direction, make), (backend, "native"), "cuda")


@on_every_backend
@given(model=models(), direction=st.sampled_from(DIRECTIONS))
def test_bits_over_shapes_strides_alignments_dtypes_groups_and_missing_gradients(
    model, direction, backend
):
    assert_same_run(along(direction, model.build), (backend, "native"), "cuda")


@on_every_backend
@on_every_direction
@pytest.mark.parametrize("unit", [0, 1])
def test_bits_of_trials_of_one_unit(unit, direction, backend):
    assert_same_run(along(direction, two_groups), (backend, "native"), "cuda", unit=unit)


@on_every_backend
@on_every_direction
def test_the_slope_repeats_bit_for_bit(direction, backend):
    make = along(direction, lambda: (make_weights(SIZES), None, None))
    slopes = {run(backend, *moved(make(), "cuda"))[1] for _ in range(3)}
    assert len(slopes) == 1


@on_every_backend
@pytest.mark.parametrize("dtype", DTYPES)
def test_alignment(dtype, backend):
    def make():
        weights = make_weights(SIZES, dtype, missing={3})
        state = make_window(weights, make_state(weights[:5]), without={0, 4})
        return moved((weights, None, state), "cuda")

    assert_aligned((backend, "reference"), make)
    assert len({alignment_of(backend, *make()) for _ in range(3)}) == 1


def test_the_reference_backend_on_a_gpu():
    assert_same_run(two_groups, ("reference", "native"), "cuda")


# -- whole runs -------------------------------------------------------------------------------


def make_net(seed=0, dropout=0.0, device="cuda"):
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Dropout(dropout), nn.Linear(32, 1))
    return net.to(device)


def make_batch(step, device="cuda"):
    random = torch.Generator().manual_seed(step)
    inputs = torch.randn(64, 8, generator=random)
    noise = 0.1 * torch.randn(64, 1, generator=random)
    return inputs.to(device), (inputs[:, :1].sin() + noise).to(device)


def closure_of(net, step, factor=1.0):
    inputs, targets = make_batch(step, next(net.parameters()).device)
    return lambda: factor * (net(inputs) - targets).square().mean()


def tensors(net, optimizer):
    entries = optimizer.state.values()
    moments = [entry[name] for entry in entries for name in ("exp_avg", "exp_avg_sq")]
    return [tensor.detach().cpu().clone() for tensor in [*net.parameters(), *moments]]


def train(steps, backend=None, net=None, **keywords):
    net = net or make_net()
    optimizer = FusedSaLSa(net.parameters(), backend=backend, **keywords)
    sizes = []
    for step in range(steps):
        torch.manual_seed(step)
        optimizer.step(closure_of(net, step))
        sizes.append(optimizer.step_size)
    return net, optimizer, sizes


@pytest.fixture
def deterministic():
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@on_every_backend
@pytest.mark.parametrize(
    "keywords",
    [{}, {"search_period": 1, "weight_decay": 0.1}, {"direction": "sgd"}, {"direction": "lamb"}],
)
def test_a_run_takes_the_same_steps_as_the_reference(keywords, backend, deterministic):
    ours, theirs = (train(60, name, **keywords) for name in (backend, "reference"))
    assert ours[2] == theirs[2]
    assert all(map(same_bits, tensors(*ours[:2]), tensors(*theirs[:2])))
    assert ours[1].backends == (backend,)


def test_it_trains():
    net, optimizer, _ = train(200)
    assert optimizer._kernels.buckets[0].backend.name == "triton"  # chosen without being asked
    assert closure_of(net, 1000)().item() < 0.2


def test_bf16_weights_train():
    net = make_net().to(torch.bfloat16)
    optimizer = FusedSaLSa(net.parameters())
    first = None
    for step in range(100):
        inputs, targets = (x.to(torch.bfloat16) for x in make_batch(step))
        loss = optimizer.step(lambda i=inputs, t=targets: (net(i) - t).float().square().mean())
        first = first or loss.item()
    assert loss.item() < 0.5 * first
    assert {e["exp_avg"].dtype for e in optimizer.state.values()} == {torch.float32}


def test_autocast():
    net = make_net()
    optimizer = FusedSaLSa(net.parameters())
    for step in range(30):
        with torch.autocast("cuda", torch.bfloat16):
            loss = optimizer.step(closure_of(net, step))
    assert math.isfinite(loss.item()) and optimizer.step_size != 1.0


def test_dropout_masks_are_those_of_the_first_evaluation():
    net = make_net(dropout=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # check_replay warns of another mask
        optimizer = FusedSaLSa(net.parameters(), search_period=1)
        for step in range(20):
            optimizer.step(closure_of(net, step))
    # the number of trials moves no random stream, where every search accepts one
    states = []
    for max_trials in (10, 30):
        torch.manual_seed(5)
        net = make_net(dropout=0.5)
        optimizer = FusedSaLSa(net.parameters(), search_period=1, max_trials=max_trials)
        for step in range(12):
            optimizer.step(closure_of(net, step))
        states.append(torch.cuda.get_rng_state())
    assert torch.equal(*states)


@pytest.mark.parametrize("at", [2, 3])
def test_an_exception_at_a_trial_undoes_the_search(at):
    net, optimizer, _ = train(12)
    optimizer.param_groups[0]["period"] = 1
    while not optimizer.search_due:
        optimizer.step(closure_of(net, 12))
    before, calls = tensors(net, optimizer), 0
    evaluate = closure_of(net, 12)

    def closure():
        nonlocal calls
        calls += 1
        if calls == at:
            raise KeyboardInterrupt
        return evaluate() + (calls == 2) * 1e6  # a rejected trial before the third evaluation

    with pytest.raises(KeyboardInterrupt):
        optimizer.step(closure)
    assert all(map(torch.equal, before, tensors(net, optimizer)))


def test_checkpoint_to_the_cpu_and_back():
    net, optimizer, _ = train(15)
    saved = copy.deepcopy((net.state_dict(), optimizer.state_dict()))
    other = make_net(seed=7, device="cpu")
    loaded = FusedSaLSa(other.parameters())
    other.load_state_dict(saved[0])
    loaded.load_state_dict(saved[1])
    assert all(map(torch.equal, tensors(net, optimizer), tensors(other, loaded)))
    other.to("cuda")  # the moments follow their weights
    loaded.step(closure_of(other, 15))
    optimizer.step(closure_of(net, 15))
    assert all(map(same_bits, tensors(net, optimizer), tensors(other, loaded)))


# -- waiting ----------------------------------------------------------------------------------


@pytest.fixture
def waits():
    """Counts the waits of the host in the block that it is called for."""

    def count(call):
        torch.cuda.synchronize()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                call()
            finally:
                torch.cuda.set_sync_debug_mode("default")
        return sum("synchronizing CUDA operation" in str(w.message) for w in caught)

    return count


@on_every_backend
@on_every_direction
def test_a_plain_step_never_waits(direction, backend):
    net, optimizer, _ = train(40, backend, direction=direction)
    while optimizer.search_due:
        optimizer.step(closure_of(net, 0))
    closure = closure_of(net, 0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        optimizer.step(closure)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@on_every_backend
@on_every_direction
def test_a_search_waits_once_an_evaluation(waits, direction, backend):
    net, optimizer, _ = train(12, backend, direction=direction)
    for step in range(12, 60):
        due, closure = optimizer.search_due, closure_of(net, step)
        counted = waits(lambda c=closure: optimizer.step(c))
        assert counted == (1 + optimizer.last_search.trials if due else 0)


@on_every_backend
@pytest.mark.parametrize("direction", ["adam", "sgd"])
def test_one_launch_for_the_whole_model(direction, backend):
    weights = [nn.Parameter(torch.randn(1000, device="cuda")) for _ in range(200)]
    for weight in weights:
        weight.grad = torch.randn_like(weight)
    optimizer = FusedSaLSa(
        weights, search_period=None, init_step_size=1e-3, backend=backend, direction=direction
    )
    optimizer.step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        optimizer.step()
        torch.cuda.synchronize()
    on_device = [e.name for e in profile.events() if e.device_type == DeviceType.CUDA]
    (kernel,) = [name for name in on_device if not name.startswith("Mem")]
    assert f"{direction}_step" in kernel
    assert len(on_device) <= 2  # and a copy of the scalars


def test_what_is_sent_is_not_overwritten_while_it_is_read():
    """The host runs far ahead of a device that is busy, with other scalars in every step."""
    final = []
    for ahead in (False, True):
        torch.manual_seed(0)
        weights = [nn.Parameter(torch.randn(500, device="cuda")) for _ in range(20)]
        optimizer = FusedSaLSa(weights, search_period=None, init_step_size=1e-2)
        torch.cuda.synchronize()
        if ahead:
            torch.cuda._sleep(400_000_000)
        for step in range(60):
            optimizer.param_groups[0]["lr"] = 1.0 / (1 + step)
            for weight in weights:
                weight.grad = torch.cos(weight.detach() * step)  # at another address every time
            optimizer.step()
            optimizer.zero_grad()
            if not ahead:
                torch.cuda.synchronize()
        torch.cuda.synchronize()
        final.append([weight.detach().clone() for weight in weights])
    assert all(map(same_bits, *final))


def test_side_streams():
    _, _, sizes = train(30)
    net = make_net()
    optimizer = FusedSaLSa(net.parameters())
    streams = [torch.cuda.Stream(), torch.cuda.Stream()]
    found = []
    for step in range(30):
        stream = streams[step % 2]  # the table on the device is of the other one
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            torch.manual_seed(step)
            optimizer.step(closure_of(net, step))
        torch.cuda.current_stream().wait_stream(stream)
        found.append(optimizer.step_size)
    assert found == sizes


def test_a_bad_loss_between_searches_is_skipped_on_the_device():
    net, optimizer, _ = train(60)
    while optimizer.search_due:
        optimizer.step(closure_of(net, 0))
    before = tensors(net, optimizer)
    optimizer.step(closure_of(net, 0, math.nan))
    assert all(map(torch.equal, before, tensors(net, optimizer)))
    while not optimizer.search_due:
        optimizer.step(closure_of(net, 0))
    optimizer.step(closure_of(net, 0))
    assert optimizer.skipped_steps == 1


# -- devices ----------------------------------------------------------------------------------


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is one GPU only")
def test_another_device_than_the_current_one():
    assert torch.cuda.current_device() == 0
    _, _, sizes = train(20)
    _, _, others = train(20, net=make_net(device="cuda:1"))
    assert others == pytest.approx(sizes, rel=1e-3)
    assert_same_run(two_groups, ("triton", "native"), "cuda:1")
    if WITHOUT_NATIVE is None:
        assert_same_run(two_groups, ("native", "native"), "cuda:1")


def test_weights_on_two_kinds_of_devices():
    weights = [nn.Parameter(torch.ones(10, device=device)) for device in ("cuda", "cpu")]
    optimizer = FusedSaLSa(weights)
    for _ in range(20):
        optimizer.step(lambda: sum((w * w).sum().cuda() for w in weights))
    names = {one.device.type: one.backend.name for one in optimizer._kernels.buckets}
    assert names["cuda"] == "triton"
    assert all(weight.abs().max().item() < 0.5 for weight in weights)


def test_a_step_cannot_be_captured():
    net, optimizer, _ = train(12)
    closure = closure_of(net, 0)
    graph = torch.cuda.graph(torch.cuda.CUDAGraph())
    with pytest.raises(RuntimeError, match="captured in a CUDA graph"), graph:
        optimizer.step(closure)


def test_without_a_c_compiler_another_backend_serves(tmp_path):
    code = (
        "import torch, warnings, salsa_fused\n"
        "w = torch.nn.Parameter(torch.ones(3, device='cuda'))\n"
        "o = salsa_fused.FusedSaLSa([w])\n"
        "for _ in range(3): o.step(lambda: (w * w).sum())\n"
        "print(o._kernels.buckets[0].backend.name)\n"
    )
    environment = {
        **{k: v for k, v in os.environ.items() if k not in ("CC", "CXX")},
        "PATH": "/nonexistent",
        "TRITON_CACHE_DIR": str(tmp_path),
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    name = done.stdout.strip()
    if name == "triton":
        pytest.skip("this Triton needs no C compiler")
    assert done.stderr.count("without its Triton kernels") == 1


def test_many_addresses_over_and_over():
    """Gradients move and memory is reused at once: no launch may read what is gone."""
    weights = make_weights([3000] * 8)
    (cuda, *_), (cpu, *_) = (moved((weights, None, None), d) for d in ("cuda", "cpu"))
    cpu = [weight.clone() for weight in cpu]
    tables = {
        "triton": (Kernels("triton"), cuda),
        "native": (Kernels("native"), cpu),
    }
    states = {name: {weight: {} for weight in pair[1]} for name, pair in tables.items()}
    for step in range(30):
        for name, (table, copies) in tables.items():
            for i, weight in enumerate(copies):
                gradient = torch.randn(3000, generator=torch.Generator().manual_seed(31 * step + i))
                weight.grad = gradient.to(weight.device) if (step + i) % 5 else None
            groups = [{**GROUP, "params": copies}]
            table.refresh(groups, states[name])
            table.final_write(groups, 0.01)
            table.commit(states[name])
            table.release()
            for weight in copies:
                weight.grad = None
            torch.full((3000 * 8,), math.nan, device=copies[0].device)  # over the freed memory
    assert all(map(same_bits, cuda, cpu))
