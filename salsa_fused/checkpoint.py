"""Checkpoints: state dicts, this optimizer's own or that of ``torch.optim.Adam``, and pickles."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from . import turns
from ._torch import load_hooks, not_compiled, spread_like
from .conventions import Habits
from .given_loss import NOT_CLIPPED, GivenLoss
from .groups import SHARED_SETTINGS, Groups
from .kernels import Kernels
from .kernels.directions import DIRECTIONS, Direction, direction_of
from .kernels.parameters import parameter_label
from .kernels.storage import MASTER, Formats, Storage, tensor_beside
from .kernels.window import WINDOW_START, empty_like
from .loss_parts import Parts
from .pending import Pending
from .plain_numbers import as_plain_numbers, foreign_numbers
from .ranks import Ranks
from .readings import Readings
from .replay import KnownBuffers
from .search_settings import SearchSettings
from .trouble import LOWEST_PLAUSIBLE_LR, Trouble, largest_lr
from .warning import warn

ALL_MOMENTS = {name for direction in DIRECTIONS.values() for name in direction.moments}

TUPLES = ("betas", "search_period")  # in a group

State = defaultdict[Any, dict[str, Any]]
ListOfGroups = Sequence[Mapping[str, Any]]

MASTERS_DROPPED = (
    "the loaded state holds master_param, fp32 copies of 16-bit weights, which this optimizer does "
    "not keep: dropped. With 16-bit weights build it with master_weights=True; to go on with fp32 "
    "weights, take them from there: parameter.copy_(entry['master_param'])"
)

PICKLED = (  # attributes that copies and pickles carry beside torch's
    *("module", "check_replay", "check_finite", "max_grad_norm", "last_search"),
    *("_backend", "_formats", "_replay_checks", "_slope_checks", "_habits", "_trouble"),
)
NOT_PICKLED = {  # by version 0.1.0
    **{"max_grad_norm": None, "_replay_checks": 2, "_slope_checks": 2},
    "_formats": Formats(),
}


class Checkpoints(GivenLoss, Groups, Readings):
    """State dicts, copies and pickles."""

    kernels_class: type[Kernels]
    _backend: str | None
    _formats: Formats
    _ranks: Ranks
    _trouble: Trouble

    @not_compiled
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what :meth:`state_dict` returned, or the state of ``torch.optim.Adam``/``AdamW``.

        Of Adam's, moments and counts are taken over (but by ``direction="sgd"``, which has none);
        hyper-parameters stay as they are here, and the search starts afresh.  Moments are copied,
        take their weight's strides and are stored as the constructor says.  A weight that has a
        master here, and none there, is its master.

        Raises:
            ValueError: groups or shapes do not match, or a moment is missing; nothing is changed
                then.
        """
        self._refuse_in_a_step("load_state_dict()")
        state_dict = state_dict.copy()
        for pre_hook in load_hooks(self, "pre"):
            state_dict = pre_hook(self, state_dict) or state_dict
        state, groups = read(state_dict, self.param_groups, self._formats)
        self.__setstate__({"state": state, "param_groups": groups})
        self._trouble.loaded_a_small_lr = largest_lr(self.param_groups) < LOWEST_PLAUSIBLE_LR
        for post_hook in load_hooks(self, "post"):
            post_hook(self)

    def state_dict(self) -> dict[str, Any]:
        """Return the state, as ``torch.optim.Optimizer`` has it: plain numbers and tensors."""
        self._collect()
        for group in self.param_groups:  # schedulers write into them
            group.update(as_plain_numbers(foreign_numbers(group)))
        return super().state_dict()

    def __getstate__(self) -> dict[str, Any]:
        self._collect()
        own = {name: self.__dict__[name] for name in PICKLED}
        return {**super().__getstate__(), **own, "loss_reduction": self._ranks.loss_reduction}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            group.update(completed(group))
        for name, value in NOT_PICKLED.items():
            self.__dict__.setdefault(name, value)
        # gradients that are there already may be anybody's; those that come later are accumulated
        none = all(p.grad is None for group in self.param_groups for p in group["params"])
        self._habits = replace(self.__dict__.get("_habits", Habits()), marked=none)
        reduction = self.__dict__.pop("loss_reduction", "mean")  # a process group is no data
        self.__dict__.setdefault("_ranks", Ranks(None, reduction))
        self._trouble = self.__dict__.get("_trouble", Trouble(self._habits.once))
        self._begin_afresh()

    def _begin_afresh(self) -> None:
        """Set what neither a checkpoint nor a pickle holds."""
        self._outer_replay, self._clipped = None, NOT_CLIPPED
        self._parts, self._pending, self._known_buffers = Parts(), Pending(), KnownBuffers()
        self._constructing = self._stepping = self._in_trial = False
        self._kernels = self.kernels_class(self._backend, self._ranks.mean_of_each, self._formats)

    def _collect(self) -> None:
        """Enter into the groups what devices have counted and looked at since the last search."""
        self._collect_skips()
        turns.add_looks(self.param_groups, self._pending.collect_looks())


def read(
    state_dict: Mapping[str, Any], groups: ListOfGroups, formats: Formats
) -> tuple[State, list[dict[str, Any]]]:
    """Return the state and the groups that an optimizer with ``groups`` has after loading."""
    saved_groups = state_dict["param_groups"]
    if len(groups) != len(saved_groups):
        raise ValueError(
            "loaded state dict has a different number of parameter groups: "
            f"{len(saved_groups)}, and the optimizer has {len(groups)}"
        )
    for index, (group, saved) in enumerate(zip(groups, saved_groups)):
        if len(group["params"]) != len(saved["params"]):
            raise ValueError(
                "loaded state dict contains a parameter group that doesn't match the size of "
                f"optimizer's group: group {index} has {len(saved['params'])} parameters there "
                f"and {len(group['params'])} here"
            )
    own = all("step_size" in saved for saved in saved_groups)
    if own:
        new_groups = [_loaded_group(group, saved) for group, saved in zip(groups, saved_groups)]
        _warn_of_replaced_settings(groups[0], new_groups[0])
    else:  # as they are here: other hyper-parameters mean other things
        new_groups = [{**group, **turns.fresh(SearchSettings.read_from(group))} for group in groups]
    return _read_state(state_dict, groups, direction_of(new_groups[0]), formats), new_groups


def completed(group: Mapping[str, Any]) -> dict[str, Any]:
    """Return a saved group with what an earlier version did not save."""
    group = {"direction": "adam", "units": "all", "trust_clip": 1.0, **group}
    settings = SearchSettings()
    state = turns.fresh(settings._replace(init_step_size=group["step_size"]))
    return {**direction_of(group).constants, **settings._asdict(), **state, **group}


def _loaded_group(group: Mapping[str, Any], saved: Mapping[str, Any]) -> dict[str, Any]:
    """Return a group with the loaded hyper-parameters and search state, which win as in torch."""
    loaded = {name: value for name, value in saved.items() if name != "params"}
    loaded |= {name: _as_tuple(loaded[name]) for name in TUPLES if name in loaded}
    others = direction_of(group).constants  # the loaded direction may have none of these
    kept = {name: value for name, value in group.items() if name not in others}
    return {**kept, **completed(deepcopy(loaded))}


def _warn_of_replaced_settings(given: Mapping[str, Any], loaded: Mapping[str, Any]) -> None:
    """Warn of settings that the loaded ones replace.

    Adam's own numbers are replaced silently, as in torch: schedulers change them anyway.
    """
    replaced = [
        f"{name}={given[name]!r} by {loaded[name]!r}"
        for name in SHARED_SETTINGS
        if _as_tuple(given[name]) != _as_tuple(loaded[name])
    ]
    if replaced:
        warn(
            "the loaded state replaces settings that this optimizer was built with: "
            f"{', '.join(replaced)}. To keep one, set it in the state dict's param_groups before, "
            "or load the moments alone, {'state': loaded['state'], 'param_groups': "
            "optimizer.state_dict()['param_groups']}"
        )


def _as_tuple(value: Any) -> Any:
    """Return a tuple for a list: torch.distributed.checkpoint and JSON make lists of tuples."""
    return tuple(value) if isinstance(value, list) else value


def _read_state(
    state_dict: Mapping[str, Any], groups: ListOfGroups, direction: Direction, formats: Formats
) -> State:
    saved_state, saved_groups = state_dict["state"], state_dict["param_groups"]
    state: State = defaultdict(dict)
    dropped: set[str] = set()
    known = {key for saved in saved_groups for key in saved["params"]}
    for group, saved in zip(groups, saved_groups):
        for index, (parameter, key) in enumerate(zip(group["params"], saved["params"])):
            if not (entry := saved_state.get(key)):
                continue
            storage = formats.of(parameter.dtype, direction)
            used = {"step", *storage.names} if storage.names else set()
            dropped |= set(entry) - {WINDOW_START} - used
            label = parameter_label(group, index)
            if used:
                state[parameter] = _read_entry(parameter, entry, label, direction, storage)
            if WINDOW_START in entry:
                start = _of_its_shape(parameter, entry, WINDOW_START, label)
                dtype = torch.float32 if storage.masters else None
                state[parameter][WINDOW_START] = empty_like(parameter, dtype).copy_(start)
    # what is no parameter's torch keeps, too
    state |= {key: value for key, value in saved_state.items() if key not in known}
    if MASTER in dropped:
        dropped -= {MASTER} if direction.moments else {MASTER, "step"}
        warn(MASTERS_DROPPED)
    if dropped:
        why = "(amsgrad's maximum?)"
        if not direction.moments or dropped & ALL_MOMENTS:
            why = f'with direction="{direction.name}"'
        warn(
            f"the loaded state holds {', '.join(sorted(map(str, dropped)))}, which FusedSaLSa does "
            f"not use {why}: dropped"
        )
    return state


def _of_its_shape(parameter: Tensor, entry: Mapping[str, Any], name: str, label: str) -> Tensor:
    value: Tensor = entry[name]
    if value.shape != parameter.shape:
        raise ValueError(
            f"the loaded {name} of {label} has shape {tuple(value.shape)}: is this the "
            "checkpoint of another model?"
        )
    return spread_like(parameter, value)


def _read_entry(
    parameter: Tensor, entry: Mapping[str, Any], label: str, direction: Direction, storage: Storage
) -> dict[str, Any]:
    """Return the count, the moments and, where there is one, the master."""
    if missing := {"step", *direction.moments} - set(entry):
        source = "FusedSaLSa, Adam or AdamW"
        if not missing <= {"step", *DIRECTIONS["adam"].moments}:
            source = f'FusedSaLSa with direction="{direction.name}"'
        raise ValueError(
            f"the loaded state of {label} lacks {', '.join(sorted(missing))}: it is not the state "
            f"of {source}"
        )
    kept = {}
    dtypes = dict(zip(storage.names, storage.dtypes))
    in_order = [name for name in entry if name in dtypes]  # of the entry
    for name in in_order:
        value = _of_its_shape(parameter, entry, name, label)
        tensor = tensor_beside(parameter, name, dtypes[name], value)
        kept[name] = tensor.clone() if tensor is value else tensor
    return {"step": int(entry["step"]), **kept}
