"""torch.distributed.checkpoint: saved on 2 ranks, continued on 2, 4 and 1 without a difference."""

from __future__ import annotations

import pickle
import sys
import warnings
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from cases import assert_equal_on_all_ranks, assert_same_run, build, rank, train, weights_of, world
from checks_equal import fsdp
from launch import check
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
    set_state_dict,
)

from salsa_fused import FusedSaLSa

BEFORE, AFTER = 14, 12
FORMS = {
    "sharded": {},
    "flat": {"flatten_optimizer_state_dict": True},
    "full": {"full_state_dict": True, "cpu_offload": True},
}


def folder() -> Path:
    return Path(sys.argv[1])


def setup(*, sharded: bool, seed: int = 0) -> tuple[nn.Module, FusedSaLSa]:
    model: nn.Module = build(torch.float64, seed)
    if sharded:
        model = fsdp(model)
    vectors = [p for p in model.parameters() if p.ndim == 1]
    others = [p for p in model.parameters() if p.ndim != 1]
    groups = [{"params": others}, {"params": vectors, "lr": 0.5}]
    return model, FusedSaLSa(groups, module=model)


def save(form: str) -> None:
    model, optimizer = setup(sharded=True)
    train(model, optimizer, BEFORE, parts=world(), part=rank())
    of_model, of_optimizer = get_state_dict(
        model, optimizer, options=StateDictOptions(**FORMS[form])
    )
    path = folder() / form
    if form == "full":
        if rank() == 0:
            torch.save((of_model, of_optimizer), path)
    else:
        dcp.save({"model": of_model, "optimizer": of_optimizer}, checkpoint_id=path)
    rows = train(model, optimizer, AFTER, parts=world(), part=rank(), begin=BEFORE)
    weights = weights_of(model)
    if rank() == 0:
        torch.save((rows, weights), folder() / f"{form}.continued")


def continue_with(form: str) -> None:
    model, optimizer = setup(sharded=True, seed=1)
    options = StateDictOptions(**FORMS[form])
    path = folder() / form
    if form == "full":
        of_model, of_optimizer = torch.load(path, weights_only=True)
    else:
        of_model, of_optimizer = get_state_dict(model, optimizer, options=options)
        loaded = {"model": of_model, "optimizer": of_optimizer}
        dcp.load(loaded, checkpoint_id=path)
        of_model, of_optimizer = loaded["model"], loaded["optimizer"]
    set_state_dict(
        model,
        optimizer,
        model_state_dict=of_model,
        optim_state_dict=of_optimizer,
        options=options,
    )
    continues(model, optimizer, form)


def continues(model: nn.Module, optimizer: FusedSaLSa, form: str) -> None:
    assert all(type(entry["step"]) is int for entry in optimizer.state.values())
    for group in optimizer.param_groups:
        assert type(group["betas"]) is tuple and type(group["search_period"]) is tuple
    more = {"params": [nn.Parameter(torch.ones(2))], "search_period": [1, 10]}
    optimizer.add_param_group(more)  # compares what is one for all groups
    optimizer.param_groups.pop()
    rows = train(model, optimizer, AFTER, parts=world(), part=rank(), begin=BEFORE)
    assert_equal_on_all_ranks(rows)
    expected, weights = torch.load(folder() / f"{form}.continued", weights_only=True)
    expected = [tuple(row) for row in expected]
    assert_same_run(rows, expected, losses=1e-10, sizes=1e-12)
    assert torch.allclose(weights_of(model), weights, rtol=0, atol=1e-10)


def on_any_number_of_ranks() -> None:
    for form in FORMS:
        if (folder() / f"{form}.continued").exists():
            continue_with(form)


@check(2)
def dcp_saved_and_continued_on_2():
    for form in FORMS:
        save(form)
        continue_with(form)


@check(4)
def dcp_continued_on_4():
    on_any_number_of_ranks()


@check(1)
def dcp_continued_on_1():
    on_any_number_of_ranks()
    if not (folder() / "full.continued").exists():
        return
    of_model, of_optimizer = torch.load(folder() / "full", weights_only=True)
    model, optimizer = setup(sharded=False, seed=1)  # no DTensor at all
    set_state_dict(model, optimizer, model_state_dict=of_model, optim_state_dict=of_optimizer)
    continues(model, optimizer, "full")


@check(2)
def dcp_from_rank_0():
    """Rank 0 has it all, and the others nothing."""
    model, optimizer = setup(sharded=True)
    train(model, optimizer, BEFORE, parts=world(), part=rank())
    whole = StateDictOptions(full_state_dict=True, cpu_offload=True)
    of_model, of_optimizer = get_state_dict(model, optimizer, options=whole)
    rows = train(model, optimizer, AFTER, parts=world(), part=rank(), begin=BEFORE)
    other, resumed = setup(sharded=True, seed=1)
    spread = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_model_state_dict(other, of_model if rank() == 0 else {}, options=spread)
    set_optimizer_state_dict(other, resumed, of_optimizer if rank() == 0 else {}, options=spread)
    again = train(other, resumed, AFTER, parts=world(), part=rank(), begin=BEFORE)
    assert_same_run(again, rows, losses=1e-12, sizes=1e-12)


@check(2)
def copies_and_pickles():
    """A process group is no data: they have none."""
    group = dist.new_group([0, 1])
    model = nn.parallel.DistributedDataParallel(build(torch.float64))
    settings = {"loss_reduction": "sum", "check_replay": False}
    optimizer = FusedSaLSa(model.parameters(), process_group=group, **settings)
    train(model, optimizer, 2, parts=world(), part=rank())
    for copy in (deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        assert copy.metrics()["steps"] == 2 and copy._ranks.group is None
        assert copy._ranks.loss_reduction == "sum"


@check(2)
def state_dicts_of_dtensors():
    """Without torch's help: this optimizer's own, and one of plain tensors."""
    model, optimizer = setup(sharded=True)
    train(model, optimizer, BEFORE, parts=world(), part=rank())
    state, weights = optimizer.state_dict(), [p.detach().clone() for p in model.parameters()]
    wholes = {
        **state,
        "state": {
            key: {n: v.full_tensor() if hasattr(v, "full_tensor") else v for n, v in entry.items()}
            for key, entry in state["state"].items()
        },
    }
    copies = []
    for loaded in (state, wholes):
        other, resumed = setup(sharded=True, seed=1)
        with torch.no_grad():
            for parameter, weight in zip(other.parameters(), weights):
                parameter.copy_(weight)
        resumed.load_state_dict(loaded)
        copies.append((other, resumed))
    rows = train(model, optimizer, AFTER, parts=world(), part=rank(), begin=BEFORE)
    for other, resumed in copies:
        assert train(other, resumed, AFTER, parts=world(), part=rank(), begin=BEFORE) == rows
    spoiled: Any = {
        **wholes,
        "param_groups": [{**g, "betas": list(g["betas"])} for g in wholes["param_groups"]],
    }
    resumed.load_state_dict(spoiled)
    assert resumed.param_groups[0]["betas"] == (0.9, 0.999)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.state_dict()
    with pytest.raises(ValueError, match="number of parameter groups"):
        resumed.load_state_dict({**state, "param_groups": state["param_groups"][:1]})
    dist.barrier()


@check(2)
def masters_of_shards():
    """bf16 shards with masters and bf16 moments, one of them empty: trained, saved, continued."""
    halves = {"exp_avg_dtype": torch.bfloat16, "exp_avg_sq_dtype": torch.bfloat16}

    def make(seed: int) -> tuple[nn.Module, FusedSaLSa]:
        model = fsdp(build(torch.bfloat16, seed))
        parameters = model.parameters()
        return model, FusedSaLSa(parameters, module=model, master_weights=True, **halves)

    model, optimizer = make(0)
    rows = train(model, optimizer, BEFORE, parts=world(), part=rank())
    assert_equal_on_all_ranks(rows)
    assert rows[-1][0] < rows[0][0] and optimizer.backends == ("native",)
    weights_of(model)  # sharded again
    for parameter in model.parameters():
        entry: Any = optimizer.state[parameter]
        master = entry["master_param"].full_tensor()
        assert master.dtype == torch.float32
        assert torch.equal(master.bfloat16(), parameter.full_tensor())
        dtypes = {"exp_avg": torch.bfloat16, "exp_avg_sq": torch.bfloat16}
        dtypes["window_start"] = torch.float32
        assert all(entry[name].dtype == dtype for name, dtype in dtypes.items())
    of_model, of_optimizer = get_state_dict(model, optimizer)
    path = folder() / "masters"
    dcp.save({"model": of_model, "optimizer": of_optimizer}, checkpoint_id=path)
    expected = train(model, optimizer, AFTER, parts=world(), part=rank(), begin=BEFORE)

    other, resumed = make(1)
    of_model, of_optimizer = get_state_dict(other, resumed)
    loaded = {"model": of_model, "optimizer": of_optimizer}
    dcp.load(loaded, checkpoint_id=path)
    set_state_dict(
        other, resumed, model_state_dict=loaded["model"], optim_state_dict=loaded["optimizer"]
    )
    found = train(other, resumed, AFTER, parts=world(), part=rank(), begin=BEFORE)
    assert found == expected
    assert torch.equal(weights_of(other), weights_of(model))
