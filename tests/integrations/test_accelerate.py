"""evaluate(accelerator, optimizer) with the real Accelerate of Hugging Face."""

from __future__ import annotations

import runpy
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from pages import block_with
from small_net import make_net
from torch.nn import MSELoss
from torch.utils.data import DataLoader, TensorDataset

pytest.importorskip("accelerate")

from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.tracking import GeneralTracker
from accelerate.utils import DistributedType

from salsa_fused import FusedSaLSa
from salsa_fused.integrations import accelerate as ours

EXAMPLES = Path(__file__).parent.parent.parent / "examples"
STEPS = 12
SIZE = 16


@pytest.fixture(autouse=True)
def afresh():
    """Warnings are errors; and no setting of the test before is left."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        yield


def make_loader(size=SIZE):
    random = torch.Generator().manual_seed(0)
    x = torch.randn(STEPS * SIZE, 6, generator=random)
    y = x[:, :1] * x[:, 1:2]
    return DataLoader(TensorDataset(x, y), batch_size=size)


def loss_of(model, batch):
    x, y = batch
    return (model(x).float() - y).square().mean()


class Run:
    """A loop as Accelerate's guide has it, over all batches."""

    def __init__(self, micro=1, clip=0.0, dropout=0.2, norm=True, factor=None, parts=1, **keywords):
        self.accelerator = Accelerator(cpu=True, gradient_accumulation_steps=micro, **keywords)
        net = make_net(dropout=dropout, norm=norm)
        optimizer = FusedSaLSa(net.parameters(), module=net)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor or (lambda step: 1.0))
        loader = make_loader(SIZE // micro // parts)  # of so many ranks
        self.prepared = self.accelerator.prepare(net, optimizer, loader, schedule)
        self.model, self.optimizer, self.loader, self.schedule = self.prepared
        self.evaluate = ours.evaluate(self.accelerator, self.optimizer, self.model)
        self.clip, self.losses, self.factors = clip, [], []

    def epoch(self):
        for batch in self.loader:
            with self.accelerator.accumulate(self.model):
                loss = self.evaluate(lambda batch=batch: loss_of(self.model, batch))
                self.losses.append(loss.item())
                self.accelerator.backward(loss)
                if self.clip and self.accelerator.sync_gradients:
                    self.accelerator.clip_grad_norm_(self.model.parameters(), self.clip)
                self.factors.append(self.optimizer.param_groups[0]["lr"])
                self.optimizer.step()
                self.schedule.step()
                self.optimizer.zero_grad()
        return self

    @property
    def metrics(self):
        return {k: v for k, v in self.evaluate.optimizer.metrics().items() if k != "outcome"}


def test_the_same_as_a_loop_with_a_closure():
    torch.manual_seed(1)
    run = Run(clip=0.1)
    torch.manual_seed(2)
    run.epoch()
    net = make_net()
    optimizer = FusedSaLSa(net.parameters(), module=net, max_grad_norm=0.1)
    torch.manual_seed(2)
    torch.empty((), dtype=torch.int64).random_()  # a loader draws a seed for its workers
    losses = [
        optimizer.step(lambda batch=batch: loss_of(net, batch)).item() for batch in make_batches()
    ]
    assert run.losses == losses and run.metrics["steps"] == STEPS
    assert all(map(torch.equal, run.model.state_dict().values(), net.state_dict().values()))


def make_batches():
    return [(x.clone(), y.clone()) for x, y in zip(*(t.split(SIZE) for t in whole()))]


def whole():
    return make_loader().dataset.tensors


def test_accumulation_with_a_closure_is_warned_of():
    run = Run(2)
    batches = iter(run.loader)

    def one_batch():
        batch = next(batches)
        with run.accelerator.accumulate(run.model):
            run.accelerator.backward(loss_of(run.model, batch))
            run.optimizer.step(lambda: loss_of(run.model, batch))

    one_batch()  # whose gradients are lost
    with pytest.warns(UserWarning, match="accumulated is thrown away.*integrations"):
        one_batch()


@pytest.mark.parametrize("micro", [2, 4])
def test_accumulation(micro):
    expected, found = (Run(n, clip=0.1, dropout=0.0, norm=False).epoch() for n in (1, micro))
    assert found.metrics == pytest.approx(expected.metrics, rel=1e-3)
    assert found.metrics["searches"] == 10 and found.metrics["steps"] == STEPS
    assert len(found.losses) == micro * len(expected.losses)


def test_bf16():
    run = Run(2, mixed_precision="bf16")
    before = loss_of(run.model, whole()).item()
    run.epoch().epoch()
    assert run.metrics["searches"] >= 10 and run.metrics["steps"] == 2 * STEPS
    assert loss_of(run.model, whole()).item() < before


def test_autocast_of_the_accelerator():
    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    net = make_net(norm=False)  # not prepared: only the context casts
    optimizer = accelerator.prepare(FusedSaLSa(net.parameters()))
    evaluate = ours.evaluate(accelerator, optimizer)
    seen = []

    def closure():
        seen.append(torch.is_autocast_enabled("cpu"))
        return loss_of(net, make_batches()[0])

    with accelerator.autocast():
        loss = evaluate(closure)
    accelerator.backward(loss)
    optimizer.step()
    assert len(seen) > 2 and all(seen)


def test_a_schedule_is_a_factor():
    run = Run(factor=lambda step: min(1.0, (step + 1) / 4)).epoch()
    assert run.factors[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]


def test_resume_bit_for_bit(tmp_path):
    """Random streams, too: Accelerate saves them."""
    first = Run(2).epoch()
    first.accelerator.save_state(str(tmp_path))
    first.epoch()
    second = Run(2)
    second.accelerator.load_state(str(tmp_path))
    second.epoch()
    assert second.losses == first.losses[len(second.losses) :]
    states = (run.model.state_dict().values() for run in (first, second))
    assert all(map(torch.equal, *states))
    assert (
        first.optimizer.state_dict()["param_groups"]
        == (second.optimizer.state_dict()["param_groups"])
    )


def test_numbers_reach_the_trackers():
    class Tracker(GeneralTracker):
        name, requires_logging_directory, tracker = "rows", False, None

        def __init__(self):
            super().__init__(_blank=True)
            self.rows = []

        def start(self): ...

        def store_init_configuration(self, values): ...

        def log(self, values, step):
            self.rows.append((step, values))

    tracker = Tracker()
    run = Run(log_with=tracker)
    run.accelerator.init_trackers("test")
    run.epoch()
    run.accelerator.log(run.evaluate.metrics(), step=STEPS)
    ((step, values),) = tracker.rows
    assert step == STEPS == values["salsa/steps"]
    assert all(isinstance(value, (int, float)) for value in values.values()) and len(values) > 10


def test_two_optimizers_hear_of_their_own_clipping():
    accelerator = Accelerator(cpu=True)
    nets = [make_net(seed, norm=False, dropout=0.0) for seed in range(2)]
    optimizers = accelerator.prepare(*(FusedSaLSa(net.parameters()) for net in nets))
    found = []
    for clip in (None, 1e-3):
        for net, optimizer in zip(nets, optimizers):
            evaluate = ours.evaluate(accelerator, optimizer)
            accelerator.backward(evaluate(lambda net=net: loss_of(net, make_batches()[0])))
        if clip is not None:
            accelerator.clip_grad_norm_(nets[0].parameters(), clip)
        found.append([optimizer.optimizer._clipped.factor for optimizer in optimizers])
        for optimizer in optimizers:
            optimizer.zero_grad()
    assert found[0] == [None, None]
    assert 0.0 < found[1][0] < 1e-2 and found[1][1] is None


def test_the_readmes():
    net = make_net()
    names = {"accelerator": Accelerator(cpu=True, gradient_accumulation_steps=2), "model": net}
    names |= {"optimizer": FusedSaLSa(net.parameters(), module=net), "loader": make_loader()}
    exec(
        block_with("evaluate(accelerator, optimizer, model)"), names | {"loss_function": MSELoss()}
    )
    assert names["optimizer"].metrics()["steps"] == STEPS // 2


def test_the_example():
    main = runpy.run_path(str(EXAMPLES / "accelerate_loop.py"))["main"]
    assert main(epochs=2, cpu=True) > 0.7


def test_what_is_refused():
    accelerator = Accelerator(cpu=True)
    adam = accelerator.prepare(torch.optim.AdamW(make_net().parameters()))
    with pytest.raises(TypeError, match=r"must be a salsa_fused\.FusedSaLSa, got Accelerated"):
        ours.evaluate(accelerator, adam)
    optimizer = FusedSaLSa(make_net().parameters())
    for kind, name in (("DEEPSPEED", "DeepSpeed"), ("MEGATRON_LM", "Megatron-LM")):
        other = SimpleNamespace(distributed_type=DistributedType[kind])
        with pytest.raises(ValueError, match=f"does not run under {name}"):
            ours.evaluate(other, optimizer)
