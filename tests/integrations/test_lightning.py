"""SaLSaCallback with the real Lightning Trainer, and evaluate() with Fabric."""

from __future__ import annotations

import logging
import math
import runpy
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from pages import block_with
from small_net import make_net
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

pytest.importorskip("lightning")

import lightning
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.plugins.precision import MixedPrecision

from salsa_fused import FusedSaLSa
from salsa_fused.integrations.lightning import SaLSaCallback

pytestmark = pytest.mark.slow

EPOCHS = 2
EXAMPLES = Path(__file__).parent.parent.parent / "examples"


@pytest.fixture(autouse=True)
def quiet():
    """Warnings are errors, but Lightning's advice."""
    logging.getLogger("lightning").setLevel(logging.ERROR)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings("ignore", "The '.*dataloader' does not have many workers")
        warnings.filterwarnings("ignore", "The number of training batches")
        warnings.filterwarnings("ignore", "You defined a `validation_step`")
        warnings.filterwarnings("ignore", ".*`dataloader_iter`")
        warnings.filterwarnings("ignore", "Starting from v1.9.0, `tensorboardX`")
        warnings.filterwarnings("ignore", "`training_step` returned `None`")
        warnings.filterwarnings("ignore", "Checkpoint directory")
        warnings.filterwarnings("ignore", "GPU available but not used")
        yield


def make_loader(size=16, n=192):
    random = torch.Generator().manual_seed(0)
    x = torch.randn(n, 6, generator=random)
    y = x[:, :1] * x[:, 1:2]
    return DataLoader(TensorDataset(x, y), batch_size=size)


def loss_of(net, batch):
    x, y = batch
    return (net(x).float() - y).square().mean()


class Module(lightning.LightningModule):
    """Notes losses, hooks, and whether evaluations have a graph."""

    def __init__(self, dropout=0.0, norm=True, schedule=None, optimizer=FusedSaLSa, **settings):
        super().__init__()
        self.net = make_net(dropout=dropout, norm=norm)
        self.schedule, self.kind, self.settings = schedule, optimizer, settings
        self.losses, self.evaluations, self.backwards, self.factors = [], [], 0, []

    def training_step(self, batch, index):
        loss = loss_of(self.net, batch)
        self.evaluations.append(torch.is_grad_enabled())
        if torch.is_grad_enabled():
            self.losses.append(loss.item())
        self.log("train", loss, on_step=False, on_epoch=True)
        return {"loss": loss}

    def validation_step(self, batch, index):
        self.log("validation", loss_of(self.net, batch))

    def on_after_backward(self):
        self.backwards += 1

    def on_before_zero_grad(self, optimizer):
        self.factors.append(optimizer.param_groups[0]["lr"])

    def configure_optimizers(self):
        self.optimizer = self.kind(self.parameters(), **self.settings)
        if self.schedule is None:
            return self.optimizer
        return [self.optimizer], [{"scheduler": self.schedule(self.optimizer), "interval": "step"}]


def fit(
    module,
    loader=None,
    *,
    callback=SaLSaCallback,
    callbacks=(),
    validation=None,
    resume=None,
    seed=1,
    **keywords,
):
    settings = {"logger": False, "enable_checkpointing": False, "max_epochs": EPOCHS}
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = lightning.Trainer(
        callbacks=[*([callback()] if callback else []), *callbacks],
        **{**settings, **quiet, **keywords},
    )
    torch.manual_seed(seed)
    trainer.fit(module, loader or make_loader(), validation, ckpt_path=resume)
    return trainer


def by_hand(loader, clip=0.0, seed=1, **keywords):
    """Train the same net with a closure; return net, optimizer and the losses."""
    net = make_net(**keywords)
    optimizer = FusedSaLSa(net.parameters(), module=net, max_grad_norm=clip or None)
    torch.manual_seed(seed)
    net.train()
    losses = []
    for _ in range(EPOCHS):
        for batch in loader:
            losses.append(optimizer.step(lambda batch=batch: loss_of(net, batch)).item())
    return net, optimizer, losses


def assert_equal(module, net):
    state = net.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in module.net.state_dict().items())


def assert_alike(metrics, others, rel):
    numbers = {name: value for name, value in metrics.items() if name != "outcome"}
    assert metrics["outcome"] == others["outcome"] and len(numbers) > 10
    assert numbers == pytest.approx({name: others[name] for name in numbers}, rel=rel)


# -- automatic optimization -------------------------------------------------------------------


def test_the_same_as_a_loop_with_a_closure():
    """Bit for bit, with dropout and BatchNorm; hooks and logs know of no trial."""
    module = Module(dropout=0.2)
    trainer = fit(module)
    net, optimizer, losses = by_hand(make_loader(), dropout=0.2)
    assert_equal(module, net)
    assert module.losses == losses and module.optimizer.metrics() == optimizer.metrics()
    steps = len(losses)
    assert module.backwards == steps == module.evaluations.count(True) == trainer.global_step
    checks = 4  # of check_replay: two searches
    assert module.evaluations.count(False) == optimizer.metrics()["total_trials"] + checks
    last_epoch = losses[steps // EPOCHS :]
    logged = trainer.callback_metrics["train"].item()
    assert logged == pytest.approx(sum(last_epoch) / len(last_epoch), rel=1e-6)


def test_accumulation():
    whole, parts = (Module(norm=False) for _ in range(2))
    fit(whole)
    fit(parts, make_loader(4), accumulate_grad_batches=4)
    expected, found = whole.optimizer.metrics(), parts.optimizer.metrics()
    assert_alike(found, expected, rel=1e-3)
    assert found["step_size"] == expected["step_size"] and found["searches"] > 10
    assert parts.backwards == 4 * whole.backwards
    for a, b in zip(whole.parameters(), parts.parameters()):
        assert torch.allclose(a, b, atol=1e-4)


def test_accumulation_without_the_callback_is_warned_of():
    module = Module(norm=False)
    with pytest.warns(UserWarning, match="accumulated is thrown away.*SaLSaCallback"):
        fit(module, make_loader(4), callback=None, accumulate_grad_batches=4, max_epochs=1)


def test_clipping():
    module = Module(dropout=0.2)
    fit(module, gradient_clip_val=0.1)
    _, optimizer, losses = by_hand(make_loader(), clip=0.1, dropout=0.2)
    assert module.losses == pytest.approx(losses, rel=1e-5)
    assert_alike(module.optimizer.metrics(), optimizer.metrics(), rel=1e-4)


def test_bf16():
    module = Module(dropout=0.2)
    fit(module, precision="bf16-mixed")
    assert module.optimizer.metrics()["searches"] > 10
    assert sum(module.losses[-4:]) < sum(module.losses[:4])


def test_a_scaler_with_accumulation_and_a_step_that_it_skips():
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    plugin = MixedPrecision("16-mixed", "cpu", scaler)
    module = Module(dropout=0.2)

    def overflow():
        module.backwards += 1
        if module.backwards == 9:
            next(module.parameters()).grad[0] = torch.inf

    module.on_after_backward = overflow
    trainer = fit(
        module, make_loader(8), plugins=[plugin], accumulate_grad_batches=2, gradient_clip_val=0.1
    )
    assert scaler.get_scale() == 512.0
    assert module.optimizer.metrics()["steps"] == trainer.global_step - 1 == 23
    assert module.optimizer.metrics()["searches"] > 10 and module.optimizer.skipped_steps == 0


def test_resume_bit_for_bit_with_validation_in_between(tmp_path):
    """Without dropout: Lightning's checkpoints do not hold the random streams."""
    loaders = {"loader": make_loader(8), "validation": make_loader(n=32)}
    arguments = {"accumulate_grad_batches": 2, "val_check_interval": 6, **loaders}
    whole, resumed = Module(), Module()
    saved = ModelCheckpoint(tmp_path, every_n_epochs=1, save_top_k=-1, filename="{epoch}")
    trainer = fit(whole, callbacks=[saved], enable_checkpointing=True, **arguments)
    assert trainer.callback_metrics["validation"] > 0.0
    again = {"callbacks": [saved], "enable_checkpointing": True}
    fit(resumed, resume=str(tmp_path / "epoch=0.ckpt"), **again, **arguments)
    assert_equal(whole, resumed.net)
    expected = whole.optimizer.state_dict()["param_groups"]
    assert resumed.optimizer.state_dict()["param_groups"] == expected
    assert len(resumed.losses) == len(whole.losses) // EPOCHS


def test_numbers_reach_the_loggers():
    rows = []

    class Logger(DummyLogger):
        def log_metrics(self, metrics, step=None):
            if any(name.startswith("salsa/") for name in metrics):
                rows.append((step, metrics))

    module = Module()
    fit(module, make_loader(8), logger=Logger(), log_every_n_steps=5, accumulate_grad_batches=2)
    assert [step for step, _ in rows] == [4, 9, 14, 19]
    assert [row["salsa/steps"] for _, row in rows] == [5, 10, 15, 20]
    assert all(math.isfinite(value) for _, row in rows for value in row.values())
    assert rows[-1][1]["salsa/applied_step_size"] > 0.0


def test_a_schedule_is_a_factor():
    def warm_up(optimizer):
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (1 + step) / 4))

    module = Module(schedule=warm_up)
    fit(module, max_epochs=1)
    assert module.factors[:6] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_a_batch_that_is_skipped():
    class Skips(Module):
        def training_step(self, batch, index):
            return None if index in (4, 5, 7) else super().training_step(batch, index)

    module = Skips()
    fit(module, max_epochs=1)
    assert module.backwards == 12 - 3 == module.optimizer.metrics()["steps"]


def test_an_exception_leaves_nothing_behind():
    class Fails(Module):
        def training_step(self, batch, index):
            if index == 3 and not torch.is_grad_enabled():
                raise ArithmeticError("at a trial")
            return super().training_step(batch, index)

    module = Fails()
    seen = {}

    class See(lightning.Callback):
        def on_exception(self, trainer, module, exception):
            seen.update(vars(trainer.strategy))

    with pytest.raises(ArithmeticError, match="at a trial"):
        fit(module, callbacks=[See()])
    assert seen and "training_step" not in seen
    assert not {"log", "log_dict"} & vars(module).keys()
    assert not module.optimizer._optimizer_step_pre_hooks


# -- manual optimization, and Fabric ----------------------------------------------------------


def test_manual_optimization():
    class Manual(Module):
        automatic_optimization = False

        def training_step(self, batch, index):
            optimizer = self.optimizers()
            loss = optimizer.evaluate(lambda: loss_of(self.net, batch))
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.clip_grad_norm_(0.1)
            optimizer.step()
            self.losses.append(loss.item())

    module = Manual(dropout=0.2)
    fit(module)
    net, optimizer, losses = by_hand(make_loader(), clip=0.1, dropout=0.2)
    assert_equal(module, net)
    assert module.losses == losses and module.optimizer.metrics() == optimizer.metrics()


@pytest.mark.parametrize("clip", ["ours", "fabric"])
def test_fabric(clip):
    fabric = lightning.Fabric(accelerator="cpu", devices=1)
    net = make_net(dropout=0.0, norm=False)
    model, optimizer = fabric.setup(net, FusedSaLSa(net.parameters()))
    loader = fabric.setup_dataloaders(make_loader(4))
    for _ in range(EPOCHS):
        for index, batch in enumerate(loader):
            with fabric.no_backward_sync(model, enabled=index % 4 < 3):
                loss = optimizer.evaluate(lambda batch=batch: loss_of(model, batch), 0.25)
                fabric.backward(loss / 4)
            if index % 4 == 3:
                if clip == "ours":
                    optimizer.clip_grad_norm_(0.1)
                else:
                    norm = fabric.clip_gradients(model, optimizer, max_norm=0.1)
                    optimizer.note_clipping(norm, 0.1)
                optimizer.step()
                optimizer.zero_grad()
    assert not {"_clipped", "_outer_replay", "_parts"} & vars(optimizer).keys()  # the wrapper's
    _, expected, _ = by_hand(make_loader(), clip=0.1, dropout=0.0, norm=False)
    assert_alike(optimizer.metrics(), expected.metrics(), rel=1e-3)


def test_fabric_with_bf16():
    fabric = lightning.Fabric(accelerator="cpu", devices=1, precision="bf16-mixed")
    net = make_net()
    model, optimizer = fabric.setup(net, FusedSaLSa(net.parameters(), module=net))
    losses = []
    for batch in make_loader():
        loss = optimizer.evaluate(lambda batch=batch: loss_of(model, batch))
        fabric.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert optimizer.metrics()["searches"] >= 10 and sum(losses[-4:]) < sum(losses[:4])


# -- README and examples ----------------------------------------------------------------------


def test_the_readmes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # logs, checkpoints
    names = {"lightning": lightning, "module": Module(), "loader": make_loader()}
    exec(block_with("SaLSaCallback("), names)
    assert names["module"].optimizer.metrics()["steps"] == 24


def test_the_example(tmp_path):
    settings = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    main = runpy.run_path(str(EXAMPLES / "lightning_trainer.py"))["main"]
    assert main(epochs=2, default_root_dir=str(tmp_path), **settings) > 0.7


# -- what is refused --------------------------------------------------------------------------


def test_another_optimizer():
    with pytest.raises(TypeError, match=r"needs a salsa_fused\.FusedSaLSa .* got AdamW"):
        fit(Module(optimizer=torch.optim.AdamW))


def test_clipping_by_value():
    with pytest.raises(ValueError, match='use "norm"'):
        fit(Module(), gradient_clip_val=0.1, gradient_clip_algorithm="value")


def test_deepspeed():
    strategy = type("DeepSpeedStrategy", (), {})()
    trainer = SimpleNamespace(strategy=strategy)
    with pytest.raises(ValueError, match="does not run under DeepSpeed"):
        SaLSaCallback().on_train_start(trainer, nn.Identity())


def test_an_iterator_in_place_of_a_batch():
    class Iterates(Module):
        def training_step(self, dataloader_iter):
            batch, index, _ = next(dataloader_iter)
            return super().training_step(batch, index)

    with pytest.raises(TypeError, match="take the batch"):
        fit(Iterates())
