"""SaLSaTrainer and its mixin with the real Trainer of Hugging Face transformers."""

from __future__ import annotations

import copy
import json
import math
import os
import runpy
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from pages import block_with

pytest.importorskip("transformers")
pytest.importorskip("accelerate")
os.environ["HF_HUB_OFFLINE"] = "1"  # nothing is fetched

from accelerate.utils import DistributedType
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from salsa_fused import FusedSaLSa
from salsa_fused.integrations.accelerate import check_distributed_type
from salsa_fused.integrations.transformers import SaLSaTrainer, SaLSaTrainerMixin

EXAMPLES = Path(__file__).parent.parent.parent / "examples"
STEPS = 12


@pytest.fixture(autouse=True)
def no_warnings():
    """Of ours: all are of this category, and none is expected."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings("ignore", "'pin_memory' argument")
        yield


def make_data(n=64):
    random = torch.Generator().manual_seed(0)
    rows = torch.randint(0, 20, (n, 10), generator=random).sort(dim=1).values
    return [{"input_ids": row, "labels": row} for row in rows]


def make_model(dropout=0.0):
    torch.manual_seed(0)
    rates = dict.fromkeys(["resid_pdrop", "embd_pdrop", "attn_pdrop"], dropout)
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    config = GPT2Config(
        vocab_size=20, n_positions=16, n_embd=16, n_layer=1, n_head=2, **rates, **ends
    )
    return GPT2LMHeadModel(config)


def trainer_of(folder, kind=SaLSaTrainer, *, model=None, dropout=0.0, given=None, **arguments):
    defaults = {
        "max_steps": STEPS,
        "per_device_train_batch_size": 8,
        "use_cpu": True,
        "logging_steps": 4,
        "report_to": [],
        "save_strategy": "no",
        "disable_tqdm": True,
        "lr_scheduler_type": "constant",
    }
    return kind(
        model=model or make_model(dropout),
        args=TrainingArguments(output_dir=str(folder), **{**defaults, **arguments}),
        train_dataset=make_data(),
        eval_dataset=make_data(8),
        **(given or {}),
    )


def ours(trainer) -> FusedSaLSa:
    optimizer = trainer.optimizer
    return optimizer if type(optimizer) is FusedSaLSa else optimizer.optimizer


def weights(trainer):
    return [p.detach().clone() for p in trainer.model.parameters()]


def assert_close(model, other):
    others = dict(other.named_parameters())
    for name, weight in model.named_parameters():
        if not name.endswith("c_attn.bias"):  # of the keys the gradient is 0, but for rounding
            assert torch.allclose(weight, others[name], atol=1e-5)


class Recorder(SaLSaTrainerMixin, Trainer):
    """Notes each micro-batch with the random streams before it, and every evaluation."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.batches, self.evaluations, self.found = [], [], []

    def training_step(self, model, inputs, num_items_in_batch=None):
        self.batches.append((torch.get_rng_state(), copy.copy(inputs)))
        return super().training_step(model, inputs, num_items_in_batch)

    def compute_loss(self, model, inputs, *args, **kwargs):
        self.evaluations.append(torch.is_grad_enabled())
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        inputs.clear()  # as some do
        return loss

    def log(self, logs, *args, **kwargs):
        self.found.append(ours(self).metrics())
        super().log(logs, *args, **kwargs)


def test_the_same_as_a_loop_with_a_closure(tmp_path):
    """With dropout, clipping and weight decay; one forward more for each trial."""
    trainer = trainer_of(
        tmp_path, Recorder, dropout=0.1, max_grad_norm=0.5, weight_decay=0.1, logging_steps=1
    )
    trainer.train()
    metrics = ours(trainer).metrics()
    assert trainer.evaluations.count(True) == STEPS == metrics["steps"]
    checks = 2  # of check_replay, on the first search
    assert trainer.evaluations.count(False) == metrics["total_trials"] + checks

    model = make_model(0.1)
    decays = trainer.get_decay_parameter_names(model)
    groups = [
        {"params": [p for n, p in model.named_parameters() if n in decays], "weight_decay": 0.1},
        {"params": [p for n, p in model.named_parameters() if n not in decays]},
    ]
    optimizer = FusedSaLSa(groups, module=model, max_grad_norm=0.5)
    for (streams, batch), found in zip(trainer.batches, trainer.found):
        torch.set_rng_state(streams)
        batch |= {"num_items_in_batch": torch.tensor(80)}  # as the Trainer
        model.train()
        optimizer.step(lambda batch=batch: model(**batch).loss)
        assert optimizer.metrics() == pytest.approx(found, nan_ok=True)
    assert_close(trainer.model, model)


def test_accumulation(tmp_path):
    found = []
    for size, micro in ((8, 1), (2, 4)):
        trainer = trainer_of(
            tmp_path, per_device_train_batch_size=size, gradient_accumulation_steps=micro
        )
        trainer.train()
        metrics = ours(trainer).metrics()
        losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
        found.append((metrics["step_size"], metrics["total_trials"], metrics["steps"], losses))
    (size, trials, steps, losses), other = found
    assert other[:3] == (size, trials, steps)
    assert other[3] == pytest.approx(losses, rel=1e-4)


def test_clipping_does_not_mislead_the_search(tmp_path):
    """Adam's first direction does not depend on the gradient's size, and the slope is the true one.

    (But for eps.) With a slope that was clipped, too, far longer steps would be accepted.
    """
    found = []
    for bound in (0.0, 1e-3):
        trainer = trainer_of(tmp_path, max_grad_norm=bound, max_steps=1)
        trainer.train()
        result = ours(trainer).last_search
        found.append((result.step_size, result.trials, result.slope))
    assert found[0] == pytest.approx(found[1], rel=5e-3)


def test_resume_bit_for_bit_with_evaluation_in_between(tmp_path):
    arguments = {
        "dropout": 0.1,
        "gradient_accumulation_steps": 2,
        "per_device_train_batch_size": 4,
        "eval_strategy": "steps",
        "eval_steps": 4,
        "save_strategy": "steps",
        "save_steps": 6,
        "lr_scheduler_type": "linear",
    }
    whole = trainer_of(tmp_path, **arguments)
    whole.train()
    assert [row["eval_loss"] for row in whole.state.log_history if "eval_loss" in row]
    resumed = trainer_of(tmp_path, **arguments)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    assert resumed.state.global_step == STEPS == ours(resumed).metrics()["steps"]
    assert all(map(torch.equal, weights(whole), weights(resumed)))
    assert ours(whole).state_dict()["param_groups"] == ours(resumed).state_dict()["param_groups"]


def test_numbers_reach_the_logs(tmp_path):
    trainer = trainer_of(tmp_path)
    trainer.train()
    rows = [row for row in trainer.state.log_history if "loss" in row]
    assert [row["salsa/steps"] for row in rows] == [4, 8, 12]
    for row in rows:
        assert row["salsa/step_size"] > 0.0 and row["salsa/applied_step_size"] > 0.0
        assert all(isinstance(v, (int, float)) and math.isfinite(v) for v in row.values())
    json.loads(json.dumps(rows, allow_nan=False))
    assert rows[-1]["loss"] < rows[0]["loss"]


def factors(folder, **arguments):
    """Return the factor of each step, and ``total_steps``."""
    seen = []

    class See(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, optimizer, **keywords):
            seen.append(optimizer.param_groups[0]["lr"])

    trainer = trainer_of(folder, max_steps=8, given={"callbacks": [See()]}, **arguments)
    trainer.train()
    return seen, ours(trainer).param_groups[0]["total_steps"], trainer


def test_schedules_are_factors_and_linear_is_the_optimizers_own(tmp_path):
    seen, total, trainer = factors(tmp_path, lr_scheduler_type="linear", learning_rate=5e-5)
    assert seen == [1.0] * 8 and total == 8
    assert trainer.args.lr_scheduler_type == "linear"
    assert ours(trainer).applied_step_size < 0.3 * max(
        row.get("salsa/applied_step_size", 0.0) for row in trainer.state.log_history
    )
    trainer.train()  # goes on from there
    assert ours(trainer).param_groups[0]["total_steps"] == 16 == ours(trainer).metrics()["steps"]
    seen, total, _ = factors(tmp_path, lr_scheduler_type="linear", warmup_steps=4)
    assert seen == [0.0, 0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0] and total == 8
    seen, total, _ = factors(tmp_path, lr_scheduler_type="cosine")
    assert seen[0] == 1.0 and seen[4] == pytest.approx(0.5) and total is None


def test_an_optimizer_of_ones_own(tmp_path):
    model = make_model()
    optimizer = FusedSaLSa(model.parameters(), module=model, total_steps=100)
    given = {"optimizers": (optimizer, None)}
    trainer = trainer_of(tmp_path, model=model, given=given, lr_scheduler_type="linear")
    trainer.train()
    assert ours(trainer) is optimizer and optimizer.metrics()["steps"] == STEPS
    assert optimizer.param_groups[0]["total_steps"] == 100


def test_class_and_settings_of_ones_own(tmp_path):
    given = {"optimizer_cls_and_kwargs": (FusedSaLSa, {"direction": "lion"})}
    trainer = trainer_of(tmp_path, given=given, max_steps=3)
    trainer.train()
    assert ours(trainer).param_groups[0]["direction"] == "lion"


@pytest.mark.parametrize(
    "arguments",
    [
        {"bf16": True, "label_smoothing_factor": 0.1},
        {"gradient_checkpointing": True, "gradient_accumulation_steps": 2},
    ],
    ids=lambda arguments: next(iter(arguments)),
)
def test_with(tmp_path, arguments):
    """With dropout: check_replay would warn if a trial were another function."""
    trainer = trainer_of(tmp_path, dropout=0.1, **arguments)
    trainer.train()
    rows = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert rows[-1] < rows[0] and ours(trainer).metrics()["searches"] >= 10


def test_lora(tmp_path):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, target_modules=["c_attn"], fan_in_fan_out=True, lora_dropout=0.1)
    model = peft.get_peft_model(make_model(), config)
    frozen = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    trainer = trainer_of(tmp_path, model=model, gradient_accumulation_steps=2)
    trainer.train()
    rows = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert rows[-1] < rows[0] and ours(trainer).metrics()["searches"] >= 10
    now = dict(model.named_parameters())
    assert len(frozen) > 10 and all(torch.equal(now[n], p) for n, p in frozen.items())


def test_without_a_search(tmp_path):
    """It is AdamW, with the schedule as it is."""
    settings = {"search_period": None, "lr": 1e-2}
    given = {"optimizer_cls_and_kwargs": (FusedSaLSa, settings)}
    trainer = trainer_of(tmp_path, given=given, lr_scheduler_type="linear")
    trainer.train()
    assert trainer.state.log_history[-2]["learning_rate"] == pytest.approx(1e-2 / STEPS)
    plain = trainer_of(
        tmp_path, Trainer, lr_scheduler_type="linear", learning_rate=1e-2, optim="adamw_torch"
    )
    plain.train()
    assert_close(trainer.model, plain.model)


def test_the_readmes(tmp_path):
    names = {"model": make_model(), "dataset": make_data()}
    names["arguments"] = trainer_of(tmp_path, max_steps=2).args
    exec(block_with("SaLSaTrainer("), names)
    assert ours(names["trainer"]).metrics()["steps"] == 2


def test_the_example(tmp_path):
    arguments = {"use_cpu": True, "disable_tqdm": True, "lr_scheduler_type": "constant"}
    main = runpy.run_path(str(EXAMPLES / "transformers_trainer.py"))["main"]
    assert main(epochs=1, folder=str(tmp_path), **arguments) > 0.2  # by chance 0.1


def test_what_is_refused(tmp_path):
    model = make_model()
    adam = torch.optim.AdamW(model.parameters())
    trainer = trainer_of(tmp_path, model=model, given={"optimizers": (adam, None)})
    with pytest.raises(TypeError, match=r"must be a salsa_fused\.FusedSaLSa, got AdamW"):
        trainer.train()
    for kind, name in (
        (DistributedType.DEEPSPEED, "DeepSpeed"),
        (DistributedType.MEGATRON_LM, "M"),
    ):
        with pytest.raises(ValueError, match=f"does not run under {name}"):
            check_distributed_type(SimpleNamespace(distributed_type=kind))
