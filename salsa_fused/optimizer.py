"""``FusedSaLSa``: Adam's direction, and a step size found by a smoothed Armijo line search."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from . import arguments, clipping, cycle, loading
from ._torch import hooked_where_watched, load_hooks, not_compiled, set_grad_mode
from .arguments import SHARED_SETTINGS
from .clipping import Clipped
from .consistency import Consistency
from .conventions import Habits, mark_gradients
from .cycle import Units
from .device_skips import DeviceSkips
from .evaluation import Closure, Evaluations
from .factors import has_factors
from .interrupts import Interrupts, is_running
from .kernels import Direction, Table
from .kernels.choice import forced_backend
from .kernels.parameters import check_gradients_have_memory, check_no_shared_memory
from .kernels.table import parameters_of
from .line_search import (
    STATE_NAMES,
    WARM_START_STEPS,
    LineSearch,
    SearchResult,
    SearchSettings,
    SearchState,
)
from .look_back import FIRST_MOVE, Window, share_of_horizon
from .looks import Looks
from .replay import Replay
from .trouble import Trouble

PLAIN = ("betas", "eps", "weight_decay")  # numbers that a checkpoint has to carry
EXACT = (torch.float32, torch.float64)
COUNTERS = ("steps", "searches", "total_trials", "skipped_steps", "period")
NEW_ATTRIBUTES = {"max_grad_norm": None, "_replay_checks": 2, "_slope_checks": 2}
OWN_ATTRIBUTES = (  # that deepcopy and pickle carry beside torch's
    "module",
    "check_replay",
    "check_finite",
    "max_grad_norm",
    "last_search",
    "_backend",
    "_replay_checks",
    "_slope_checks",
    "_habits",
    "_trouble",
)


class FusedSaLSa(Optimizer):
    r"""Adam with SaLSa, a line search that finds the step size (arXiv 2407.20650).

    ::

        optimizer = FusedSaLSa(model.parameters(), module=model)

        def closure():
            return loss_function(model(inputs), targets)

        loss = optimizer.step(closure)

    A step without a search is a plain AdamW step.  In a
    search the loss :math:`f` of the *same* mini-batch is evaluated at trial points
    :math:`w + \eta d` along the momentum-free direction :math:`d = -g / (\sqrt{\hat v} +
    \epsilon)`, and :math:`\eta` is accepted when

    .. math::
        h' \ge c\,\eta\,s', \quad
        h' = \beta_3 h + (1 - \beta_3)\,(f(w) - f(w + \eta d)), \quad
        s' = \beta_3 s + (1 - \beta_3)\,\langle g, -d\rangle,

    and shrunk by ``backtrack`` when not.  The weights are then written from :math:`w` with Adam's
    momentum direction, :math:`w - lr\,a\,(\hat m / (\sqrt{\hat v} + \epsilon) + \lambda w)`, where
    the applied step size :math:`a` starts as :math:`\eta` and then follows how far steps have come
    (:mod:`salsa_fused.look_back`; with ``look_back=False`` it is :math:`\eta`).

    Args:
        params: parameters, named parameters or parameter groups, as for ``torch.optim.AdamW``:
            dense, of a real floating dtype, any shape and device.
        lr: a *factor* on the step size that is applied, not a learning rate: leave it at 1.
            LR schedulers and per-group factors act on it (looking back sees the way that they
            give, and makes up for a constant factor in time).  Of several groups' factors, what the
            search tries is relative to the largest.
        betas: Adam's :math:`\beta_1, \beta_2`, and :math:`\beta_3` of the search.
        eps: added to :math:`\sqrt{\hat v}`, outside the root.
        weight_decay: decoupled, :math:`\lambda` above.
        c: the sufficient-decrease constant, in (0, 1).
        backtrack: factor on the step size after a rejected trial, in (0, 1).
        growth: factor on the step size before the first trial of a search.
        growth_per: ``"search"``, or ``"step"``: ``growth`` to the power of the steps since.
        init_step_size: where the first search starts; it finds the order of magnitude itself.
        schedule: how the period between searches follows their outcome: ``"doubling"`` while they
            are accepted at once, or the ``"rate"`` of change of the step size (the paper's
            equations 8 to 11).
        search_period: steps from one search to the next, ``(L_min, L_max)`` or one integer; the
            first ten steps always search.  ``None``: never search and never need a closure, that
            is fused AdamW with the learning rate ``lr * init_step_size``.
        max_trials: rejections after which a search is exhausted: the step is skipped, and the next
            search begins below everything that was rejected.
        direction: ``"adam"``, or ``"sgd"``: :math:`d = -g`, and the weights are written with
            :math:`w - lr\,\eta\,(g + \lambda w)`; neither momentum nor any other state of a
            parameter, and :math:`\beta_1, \beta_2` and ``eps`` count for nothing.  Where no group
            decays and the largest ``lr`` is 1, the accepted trial is the step.  ``"lamb"``:
            Adam's, scaled for each tensor by :math:`r = \min(\|w\| / \|u\|, \text{trust\_clip})`
            of the step's :math:`u = \hat m / (\sqrt{\hat v} + \epsilon) + \lambda w` (1 where
            either norm is 0), so that a trial goes along :math:`-r g / (\sqrt{\hat v} +
            \epsilon)`, and the weights are written with :math:`w - lr\,\eta\,r u`.
        units: ``"all"`` parameters have one step size, or each parameter group is a unit with a
            step size of its own (``"groups"``, PLASLS, arXiv 2403.18506).  The first search that
            is accepted is one for all and gives each unit its step size; after that every search
            moves one unit, in turn.
        trust_clip: the largest ratio of ``direction="lamb"`` (LAMBC, arXiv 2011.13584; 1 was best
            there, with ``eps=1e-6``); ``None``: no bound, that is LAMB.
        module: the model: its buffers (BatchNorm's running statistics) are then left by trials as
            the first evaluation left them.
        backend: ``"triton"``, ``"native"`` or ``"reference"`` to force one; ``None`` chooses by
            device and dtype.
        maximize: maximize the closure's value instead: loss and gradients change sign.
        check_replay: on the first search, and on one more after the first ten steps, evaluate the
            closure twice more: at the same weights, and after a hundredth of the accepted step.
            Warn when the loss differs, when a forward changes what trials do not put back, and
            when the loss does not fall as the gradients promise.
        check_finite: look at the gradients of plain steps, too, and skip those steps on which one
            is not finite (a search always does).  It reads every gradient once more.
        max_grad_norm: clip the gradients of each step to this total norm, as
            ``torch.nn.utils.clip_grad_norm_`` does; the search still tests the true slope.
            ``None``: do not clip.  In a loop of your own call :meth:`clip_grad_norm_`.
        look_back: apply a step size that starts as the one that is found and then follows how far
            steps have come in a window that grows with the run (:mod:`salsa_fused.look_back`),
            for a third tensor beside Adam's two; ``False``: apply what is found, as the paper
            does.  ``None``: look back, but with ``direction="sgd"``, ``units="groups"`` and
            without a search, where it cannot be had.
        total_steps: the number of steps of the whole run, where it is known: what is applied then
            falls linearly over the last half, to almost 0 in the last step, and looking back
            shortens no step.  No scheduler is needed.  Later steps are as short as that one, and a
            warning says so.

    The state of the search is plain numbers in every parameter group, so that checkpoints carry
    it: ``step_size``, ``smoothed_decrease`` (:math:`h`), ``smoothed_slope`` (:math:`s`),
    ``period`` and counters; equal in all groups but for what is a unit's own.  Per parameter the
    state is Adam's: ``step`` (int), ``exp_avg`` and ``exp_avg_sq`` (fp32; float64 for float64
    weights), and ``window_start`` like the weight unless ``look_back=False``; with
    ``direction="sgd"`` there is none.

    Raises:
        TypeError, ValueError: an argument or a parameter that cannot be used; the message names
            it and says what to do.
    """

    line_search_class = LineSearch
    table_class = Table
    _constructing = True  # then memory is looked at once, when all groups are there
    profile_hook_step = staticmethod(hooked_where_watched)  # torch wraps `step` with it

    @not_compiled  # what torch.compile follows of it would lack its attributes
    def __init__(
        self,
        params: Any,
        *,
        lr: float | Tensor = 1.0,
        betas: tuple[float, float, float] = (0.9, 0.999, 0.99),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        c: float = 0.5,
        backtrack: float = 0.7,
        growth: float = 2 ** (1 / 20),
        growth_per: str = "search",
        init_step_size: float = 1.0,
        schedule: str = "doubling",
        search_period: tuple[int, int] | int | None = (1, 10),
        max_trials: int = 10,
        direction: Direction = "adam",
        units: Units = "all",
        trust_clip: float | None = 1.0,
        module: nn.Module | None = None,
        backend: str | None = None,
        maximize: bool = False,
        check_replay: bool = True,
        check_finite: bool = False,
        max_grad_norm: float | None = None,
        look_back: bool | None = None,
        total_steps: int | None = None,
    ) -> None:
        beta1, beta2, beta3 = arguments.three_betas(betas)
        period = arguments.period_bounds(search_period)
        settings = {
            "c": c,
            "beta3": beta3,
            "backtrack": backtrack,
            "growth": growth,
            "growth_per": growth_per,
            "init_step_size": init_step_size,
            "schedule": schedule,
            "search_period": period,
            "max_trials": max_trials,
            "look_back": look_back,
            "total_steps": total_steps,
        }
        arguments.check_search_settings(settings)
        settings = arguments.as_plain_numbers(settings)
        arguments.check_direction(direction)
        arguments.check_units(units)
        arguments.check_look_back(look_back, direction, units, period)
        arguments.check_trust_clip(trust_clip)
        arguments.check_max_grad_norm(max_grad_norm)
        if module is not None and not isinstance(module, nn.Module):
            raise TypeError(f"module must be an nn.Module or None, got {type(module).__name__}")
        defaults = {
            "lr": lr,
            "betas": (beta1, beta2),
            "eps": eps,
            "weight_decay": weight_decay,
            "maximize": bool(maximize),
            "direction": direction,
            "units": units,
            **arguments.as_plain_numbers({"trust_clip": trust_clip}),
            **settings,
        }
        table = self.table_class(forced_backend(backend))
        arguments.check_numbers(defaults)
        super().__init__(params, defaults)
        self.module = module
        self.check_replay = check_replay
        self.check_finite = check_finite
        self.max_grad_norm = None if max_grad_norm is None else float(max_grad_norm)
        self.last_search: SearchResult | None = None
        self._backend = backend
        self._table = table
        self._replay_checks = self._slope_checks = 0  # made so far
        self._habits = Habits()
        self._trouble = Trouble(self._habits.once)
        self._outer_replay: Replay | None = None  # of first_evaluation()
        self._clipped = Clipped()  # the gradients that are there
        self._in_trial = False
        self._stepping = False
        self._device_skips, self._looks = DeviceSkips(), Looks()
        self._constructing = False
        check_no_shared_memory(self.param_groups)
        self._habits.marked = True  # gradients from before are nobody's accumulation
        mark_gradients(parameters_of(self.param_groups))
        if arguments.warn_of_learning_rate(self.param_groups):
            self._trouble.lr_is_plausible = True  # said; not once more in a step

    # -- one step -----------------------------------------------------------------------------

    @not_compiled
    def step(  # type: ignore[override]
        self, closure: Closure | None = None, *, loss: Tensor | None = None
    ) -> Tensor | None:
        """Take one step.

        ``step(closure)``: the closure computes the loss and returns it; zeroing the gradients and
        ``backward`` are done here.  ``step(closure, loss=loss)``: the gradients of ``loss`` are
        there already (accumulation, clipping); the closure is called for trials only.  ``step()``:
        only while no search is due (:attr:`search_due`).

        A step whose loss is not finite is skipped and counted in :attr:`skipped_steps`; so is one
        whose search accepts no trial, or whose gradients a search finds not finite (on other steps
        only ``check_finite=True`` inspects them).
        Whatever leaves this method by an exception leaves weights, moments, search state, random
        streams and (with ``module=``) buffers as they were.  Only a warning that is turned into an
        error may come when the step is complete.

        Returns:
            The loss at the weights before the step, detached; ``None`` without a closure.

        Raises:
            RuntimeError: a search is due and there is no closure; the loss has no graph; a
                gradient is sparse or complex; CUDA-graph capture; several ranks.
            TypeError, ValueError: the closure returned something other than a loss.
        """
        if self._stepping:
            self._refuse_in_a_step("step()")
        with Interrupts() as interrupts:
            recording = torch.is_grad_enabled()
            set_grad_mode(False)
            try:
                return self._step(closure, loss, interrupts)
            finally:
                set_grad_mode(recording)

    def _step(
        self, closure: Closure | None, loss: Tensor | None, interrupts: Interrupts
    ) -> Tensor | None:
        if closure is None and loss is None and self._nothing_to_apply:
            return None
        if not self._trouble.lr_is_plausible and not has_factors(self):
            self._trouble.look_at_lr(self.param_groups, arguments.largest_lr(self.param_groups))
        searching = self.search_due
        arguments.check_call(closure, loss, searching)
        outer, clipped, given = self._outer_replay, self._clipped, loss is not None
        replay = self._replay(closure, loss, searching)
        parameters = parameters_of(self.param_groups) if closure is not None else []
        calls = Evaluations(closure, parameters, replay, interrupts, self._habits)
        try:
            self._stepping = True
            if loss is None and closure is not None:
                self._clipped = Clipped()  # other gradients
                loss = calls.first(searching)
                if not calls.calls_backward:
                    self._clipped = Clipped()  # they came later than what the closure clipped
            # cloned: a compiled model may overwrite its output in the next evaluation
            f0 = loss.detach().clone() if isinstance(loss, Tensor) else loss
            if self.max_grad_norm is not None and not self._clipped.by_the_step:
                self.clip_grad_norm_(self.max_grad_norm)
                self._clipped.by_the_step = True
            if not self._table.refresh(self.param_groups, self.state):
                if calls.has_loss:
                    self._trouble.no_gradient()
                return f0  # nothing has a gradient: nothing to do
            search = skip = None
            look: list[Tensor] = []
            if searching:
                assert f0 is not None
                search = self._search(calls, f0)
            else:
                if cycle.look_is_due(self.param_groups):
                    look = Looks.one(self._table.alignment())
                if isinstance(f0, Tensor) or self.check_finite:
                    search, skip = self._unless_finite(f0)
            if search is not None and search.skipped:
                self._table.restore()
                calls.undo()
            else:
                self._write(search, skip)
        except BaseException as error:
            try:
                interrupts.hold()  # an interrupt on the way out of the closure has not done so
            finally:  # and another may come just now
                self._outer_replay = outer  # the same loss may be given again
                if not given:
                    self._clipped = clipped
                self._undo(calls, error)
            raise
        finally:
            self._stepping = self._in_trial = False
            self._table.release()
        self._clipped = Clipped()
        if closure is None:
            self._habits.marked = False
        else:
            calls.mark_gradients()
        if search is None:
            self._looks.unread += look
            cycle.count_plain_step(self.param_groups, self.line_search_class, looked=bool(look))
        else:
            self._remember(search)
        if searching:
            self._device_skips.heard()
        # at last: where warnings are errors, the step is complete
        self._trouble.look_at_horizon(self.param_groups[0])
        if search is not None:
            self._trouble.searched(self.param_groups, search, replayed=calls.knows_first)
        elif skip is None:
            self._trouble.skipped = 0
        return f0

    def _write(self, search: LineSearch | None, skip: Tensor | None) -> None:
        """The step itself: weights, moments, and where a window begins."""
        begins = search is not None and search.begins_window
        if begins:
            self._table.prepare_window(self.state)
        elif cycle.looks_back(self.param_groups[0]):
            begins = self._table.prepare_newcomers(self.state)
        self._table.final_write(self.param_groups, cycle.applied(self.param_groups, search), skip)
        self._table.commit(self.state)
        if begins:
            self._table.begin_window(self.state)
        if skip is not None:
            self._device_skips.count(skip)

    def _undo(self, calls: Evaluations, error: BaseException) -> None:
        """Put back all that a step has changed, whatever fails on the way.

        Raises:
            RuntimeError: user code has freed or replaced what was to be put back; ``error`` is its
                cause. One that is to end the process (Ctrl-C) is raised itself, with a note.
        """
        lost = None
        for undo in (self._table.restore, self._table.forget, calls.abandon):
            try:
                undo()
            except Exception as failed:
                lost = lost or failed
        if lost is not None and isinstance(error, Exception):
            raise lost from error
        if lost is not None and hasattr(error, "add_note"):  # from Python 3.11 on
            error.add_note(str(lost))

    def _search(self, calls: Evaluations, f0: Tensor) -> LineSearch:
        """Try step sizes until one is accepted; the weights are left at the last trial point."""
        search = cycle.begin(self.param_groups, self.line_search_class)
        calls.begin_trials()
        self._in_trial = True
        checks = None
        if self._checks_are_due(self._replay_checks):
            checks = self._consistency(calls)
            self._replay_checks += checks.evaluate_again(f0)
        looks = [*self._looks.unread]
        if search.settings.look_back:
            if search.state.window_begin > 0:
                looks += Looks.one(self._table.alignment())
            if search.state.first_move == 0.0 and search.state.window_begin == 0:
                search.hear_of_first_move(self._first_move())
        slopes = self._table.first_trial(self.param_groups, search.first_trial(), search.unit)
        loss, slope, skipped, looked = _to_host(
            f0, slopes, self._device_skips.unheard, self._clipped.factor, looks
        )
        sign = self._sign
        search.hear_of_skipped(skipped)
        search.looks = [sign * look for look in looked]
        eps = torch.finfo(f0.dtype).eps
        search.start_from(sign * loss, slope, eps)
        while search.trying:
            search.report(sign * calls.trial())
            if checks is not None:
                checks.look_at_side_effects()
            if search.trying:
                self._table.next_trial(self.param_groups, search.step_size)
        if self._trouble.goes_on(search) and not calls.with_graph:
            self._consistency(calls).look_for_a_missing_graph(eps)
        if search.trials > 0 and self._checks_are_due(self._slope_checks):
            self._compare_slope(calls, search, eps)
        calls.end_trials()
        self._in_trial = False
        return search

    def _first_move(self) -> float:
        """The largest step size before the first window; -1 where weights of 0 give no bound."""
        if self.param_groups[0]["direction"] == "lamb":  # its ratios know the weights' size
            return FIRST_MOVE
        return FIRST_MOVE * self._table.root_mean_square() or -1.0

    def _checks_are_due(self, made: int) -> bool:
        """On the first search, and once more when the first steps are over."""
        warm = self.param_groups[0]["steps"] >= WARM_START_STEPS
        return self.check_replay and made < 1 + warm

    def _consistency(self, calls: Evaluations) -> Consistency:
        trained = {id(parameter) for parameter in parameters_of(self.param_groups)}
        return Consistency(calls, self.module, trained)

    def _compare_slope(self, calls: Evaluations, search: LineSearch, eps: float) -> None:
        """Hold the slope against the decrease that a small step brings."""
        if any(launch.dtype not in EXACT for launch in self._table.launches):
            return  # small steps are lost in the weights' rounding

        def decrease_at(step_size: float) -> float:
            self._table.next_trial(self.param_groups, step_size)
            return search.loss - self._sign * calls.trial()

        checks = self._consistency(calls)
        self._slope_checks += checks.compare_slope(search, eps, decrease_at)

    @contextmanager
    def first_evaluation(self) -> Iterator[None]:
        """Put this around the forward pass of ``loss`` before ``step(closure, loss=loss)``.

        It notes random streams and buffers, so that trials repeat this evaluation exactly, and
        puts them back where the forward raises.  It counts for the next step that is taken.
        Without it all trials of a step share one dropout mask, but not the mask of ``loss``.
        Only forward and backward passes belong inside, no data is drawn there.
        """
        self._outer_replay, self._clipped = None, Clipped()
        replay = self._new_replay(self.search_due)
        try:
            yield
        except BaseException:
            replay.rewind()
            raise
        self._outer_replay = replay

    def clip_grad_norm_(
        self, max_norm: float, norm_type: float = 2.0, error_if_nonfinite: bool = False
    ) -> Tensor:
        """Clip the gradients that are there, before ``step(closure, loss=loss)``.

        As ``torch.nn.utils.clip_grad_norm_`` for all parameters of this optimizer; but the next
        step knows the factor, and its search tests the slope of the gradients as they were. It may
        stand in a closure that calls ``backward`` itself, too.
        (torch's own shrinks that slope: the search then accepts steps that are too long.)

        Returns:
            The total norm before clipping.
        """
        arguments.check_max_grad_norm(max_norm, "max_norm")
        check_gradients_have_memory(self.param_groups)
        norm, factor = clipping.clip(
            parameters_of(self.param_groups), max_norm, norm_type, error_if_nonfinite
        )
        if not self._in_trial:  # then they are of no step
            self._clipped.multiply(factor)
        return norm

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients, as every optimizer of torch, and forget what was noted of them."""
        self._habits.zeroed = True
        if not self._stepping:
            self._outer_replay, self._clipped = None, Clipped()
        super().zero_grad(set_to_none)

    def _refuse_in_a_step(self, what: str) -> None:
        if self._stepping and is_running(FusedSaLSa._step.__code__, self):
            raise RuntimeError(f"{what} was called inside the closure of a step of this optimizer")

    # -- what a user reads --------------------------------------------------------------------

    @property
    def search_due(self) -> bool:
        """Whether the next step searches, and so needs a closure."""
        return cycle.is_due(self.param_groups, self.line_search_class) and self._search_allowed

    @property
    def in_trial(self) -> bool:
        """Whether the closure runs for a trial: outputs and logs are then another point's."""
        return self._in_trial

    @property
    def step_size(self) -> float:
        """The step size that the last search found: what one mini-batch accepts.

        With ``units="groups"`` the first group's; ``group["step_size"]`` is each group's own.
        """
        return self.param_groups[0]["step_size"]

    @property
    def applied_step_size(self) -> float:
        """What the last step applied to the weights, but for ``lr``: a learning rate of AdamW.

        With ``units="groups"`` the first group's.
        """
        first = self.param_groups[0]
        share = share_of_horizon(first["total_steps"], first["steps"])
        return share * cycle.last_applied(first)

    def suggested_lr(self) -> float:
        """The learning rate to give AdamW on the same problem, with a warm-up and a decay to 0.

        It is the longest step size that was applied after the first ten steps, so far, with ``lr``
        at 1 and without the horizon's share: ask when the run, or a tenth of it, is done.  Without
        looking back it is what the last search found.

        Raises:
            RuntimeError: no search has been accepted yet; or there is none, or another direction.
        """
        first = self.param_groups[0]
        if first["search_period"] is None or first["direction"] != "adam":
            raise RuntimeError(
                'suggested_lr() needs searches along direction="adam": this optimizer has '
                f"search_period={first['search_period']}, direction={first['direction']!r}"
            )
        if not first["accepted_once"]:
            raise RuntimeError("no search has been accepted yet: take some steps first")
        return first["longest"] if cycle.looks_back(first) else first["step_size"]

    @property
    def skipped_steps(self) -> int:
        """Steps not taken: the loss or the slope was not finite, or no trial was accepted.

        Those that a GPU skipped by itself, between two searches, are asked of it here.
        """
        self._hear_of_skips()
        return self.param_groups[0]["skipped_steps"]

    def metrics(self) -> dict[str, float | int | str]:
        """The last search and the counters as a flat dictionary, for loggers.

        Keys are the same on every call; before the first search ``outcome`` is ``"none"``.
        ``unit``: the group that was searched, -1 for all of them together.
        """
        self._hear_of_skips()
        group = self.param_groups[0]
        found: dict[str, Any] = {**dict.fromkeys(SearchResult._fields, math.nan)}
        found |= {"trials": 0, "outcome": "none"}
        if self.last_search is not None:
            found = self.last_search._asdict()
        if not isinstance(found["unit"], int):
            found["unit"] = -1
        return {
            **found,
            "step_size": group["step_size"],
            "applied_step_size": self.applied_step_size,
            "agreement": Window.read_from(group).agreement,
            **{name: group[name] for name in COUNTERS},
        }

    # -- groups and checkpoints ---------------------------------------------------------------

    @not_compiled
    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters, with their own ``lr``, ``betas`` (two), ``eps``, ``weight_decay``.

        The search is one for all groups: a new group takes over its settings and its state.  With
        ``units="groups"`` a new unit begins as after the search that was one for all, with the
        first group's step size, means and wait, and nothing smoothed; its turn comes last.

        Raises:
            TypeError, ValueError: as the constructor; the optimizer is then as it was.
        """
        if not self._constructing:
            self._refuse_in_a_step("add_param_group()")
        used = isinstance(param_group, dict) and param_group.keys() >= set(STATE_NAMES)
        if self.param_groups and isinstance(param_group, dict):
            first = self.param_groups[0]
            shared = {name: first[name] for name in SHARED_SETTINGS}
            for name, value in (shared | cycle.newcomer(first)).items():
                param_group.setdefault(name, value)
        with warnings.catch_warnings():  # duplicates are an error here
            warnings.filterwarnings("ignore", "optimizer contains a parameter group with duplicate")
            super().add_param_group(param_group)
        try:
            self._admit(self.param_groups[-1], used)
            if not self._constructing:
                check_no_shared_memory(self.param_groups)
        except BaseException:
            self.param_groups.pop()
            raise

    def _admit(self, group: dict[str, Any], used: bool) -> None:
        betas = group["betas"]
        if isinstance(betas, (tuple, list)) and len(betas) == 3:
            group["betas"], group["beta3"] = (betas[0], betas[1]), betas[2]
        group["search_period"] = arguments.period_bounds(group["search_period"])
        first = self.param_groups[0]
        shared = {name: self.defaults[name] for name in SHARED_SETTINGS}
        if group is not first:
            shared = {name: first[name] for name in SHARED_SETTINGS} | cycle.newcomer(first)
        else:
            shared |= SearchState.fresh(SearchSettings.read_from(shared))._asdict()
        for name, value in shared.items():
            if group.setdefault(name, value) != value:
                raise arguments.setting_of_one_group(
                    name, group[name], value, of_an_earlier_optimizer=used
                )
            group[name] = value  # a plain number, where an equal one of NumPy's was given
        arguments.check_group(group)
        plain = PLAIN if isinstance(group["lr"], Tensor) else ("lr", *PLAIN)
        group.update(arguments.as_plain_numbers({name: group[name] for name in plain}))

    @not_compiled
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what :meth:`state_dict` returned, or the state of ``torch.optim.Adam``/``AdamW``.

        Of Adam's, moments and counts are taken over (but by ``direction="sgd"``, which has none);
        hyper-parameters stay as they are here, and the search starts afresh.  Moments are copied,
        keep fp32 and take their weight's strides.

        Raises:
            ValueError: groups or shapes do not match; nothing is changed then.
        """
        self._refuse_in_a_step("load_state_dict()")
        state_dict = state_dict.copy()
        for pre_hook in load_hooks(self, "before"):
            state_dict = pre_hook(self, state_dict) or state_dict
        state, groups = loading.read(state_dict, self.param_groups)
        self.__setstate__({"state": state, "param_groups": groups})
        largest_lr = arguments.largest_lr(self.param_groups)
        self._trouble.loaded_a_small_lr = largest_lr < arguments.LOWEST_PLAUSIBLE_LR
        for post_hook in load_hooks(self, "after"):
            post_hook(self)

    def state_dict(self) -> dict[str, Any]:
        """The state, as ``torch.optim.Optimizer`` has it: plain numbers and tensors."""
        self._hear_of_skips()
        self._hear_of_looks()
        for group in self.param_groups:  # schedulers write into them
            group.update(arguments.as_plain_numbers(arguments.foreign_numbers(group)))
        return super().state_dict()

    def __getstate__(self) -> dict[str, Any]:
        self._hear_of_skips()
        self._hear_of_looks()
        own = {name: self.__dict__[name] for name in OWN_ATTRIBUTES}
        return {**super().__getstate__(), **own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            group.update(loading.completed(group))
        for name, value in NEW_ATTRIBUTES.items():  # that earlier versions did not pickle
            self.__dict__.setdefault(name, value)
        self._habits = replace(self.__dict__.get("_habits", Habits()), marked=False)
        self._trouble = self.__dict__.get("_trouble", Trouble(self._habits.once))
        self._outer_replay, self._clipped = None, Clipped()
        self._device_skips, self._looks = DeviceSkips(), Looks()
        self._constructing = self._stepping = self._in_trial = False
        self._table = self.table_class(forced_backend(self._backend))

    # -- inside a step ------------------------------------------------------------------------

    def _unless_finite(self, f0: Any) -> tuple[LineSearch | None, Tensor | None]:
        """Skip a plain step whose loss, or with ``check_finite`` a gradient, is not finite.

        It is then a search that is skipped before it begins.  On a device the host would have to
        wait for these numbers: there it is a flag for the kernels, not 0 where one is not finite.

        Several ranks have a loss each and the gradients in common: those decide, for all alike.
        """
        several = arguments.ranks() > 1
        flags = [DeviceSkips.flag(f0)] if isinstance(f0, Tensor) and not several else []
        if self.check_finite or several:
            flags += [DeviceSkips.flag(norm) for norm in self._table.largest_gradients()]
        flag = flags[0]
        for other in flags[1:]:
            flag = flag + other.to(flag.device)
        if flag.device.type != "cpu":
            return None, flag
        if flag.item() == 0.0:
            return None, None
        search = cycle.begin(self.param_groups, self.line_search_class)
        loss = self._sign * f0.item() if isinstance(f0, Tensor) else math.nan
        search.start_from(loss, math.nan, 0.0)
        return search, None

    def _hear_of_skips(self) -> None:
        count = self._device_skips.wait()
        for group in self.param_groups:
            group["skipped_steps"] += count

    def _hear_of_looks(self) -> None:
        sign = self._sign
        cycle.hear_of_looks(self.param_groups, [sign * look for look in self._looks.read()])

    @property
    def _search_allowed(self) -> bool:
        """While the largest ``lr`` is 0 nothing is applied, and so nothing is searched."""
        return arguments.largest_lr(self.param_groups) > 0.0

    @property
    def _nothing_to_apply(self) -> bool:
        """SGD's step with ``lr`` 0 has no moments to update: whoever takes one saves a checkpoint.

        (torch's distributed checkpoints do, wherever there is no state of a parameter.)
        """
        return self.param_groups[0]["direction"] == "sgd" and not self._search_allowed

    def _remember(self, search: LineSearch) -> None:
        cycle.remember(self.param_groups, search)
        if not search.skipped:
            self._looks.unread = []
        result, sign = search.result, self._sign
        self.last_search = result._replace(
            loss=sign * result.loss, trial_loss=sign * result.trial_loss
        )

    @property
    def _sign(self) -> float:
        """What turns the closure's value into a loss to be lowered."""
        return -1.0 if self.param_groups[0]["maximize"] else 1.0

    def _devices(self) -> set[torch.device]:
        devices = {parameter.device for parameter in parameters_of(self.param_groups)}
        return {device for device in devices if device.type != "meta"}  # of frozen parameters

    def _replay(
        self, closure: Closure | None, loss: Tensor | None, searching: bool
    ) -> Replay | None:
        """Random streams and buffers before this step's first evaluation."""
        outer, self._outer_replay = self._outer_replay, None
        if closure is None:
            return None
        if outer is not None and loss is not None:
            return outer
        return self._new_replay(searching, knows_first=loss is None)

    def _new_replay(self, searching: bool, *, knows_first: bool = True) -> Replay:
        moving: set[int] = set()
        if searching and self.module is not None:
            parameters = parameters_of(self.param_groups)
            moving = {p.untyped_storage().data_ptr() for p in parameters if p.requires_grad}
        return Replay(
            self._devices(),
            self.module,
            knows_first=knows_first,
            moving=moving,
            trials_follow=searching,
        )


def _to_host(
    f0: Tensor,
    slopes: list[Tensor],
    skipped: Tensor | None,
    clipped_by: Tensor | None,
    looks: list[Tensor],
) -> tuple[float, float, int, list[float]]:
    """Loss, slope, count and looks as numbers: one copy, one wait, where all is on one device.

    ``clipped_by``: the factor on the gradients, that the slope has, too: it is taken out.
    """
    more = [tensor for tensor in (clipped_by, skipped) if tensor is not None]
    tensors = [*looks, f0.reshape(()), *slopes, *more]
    if len({tensor.device for tensor in tensors}) == 1:
        widest = (slopes or [f0])[0].dtype
        numbers = torch.stack([tensor.to(widest) for tensor in tensors]).tolist()
    else:
        numbers = [tensor.item() for tensor in tensors]
    count = 0 if skipped is None else int(numbers.pop())
    factor = 1.0 if clipped_by is None else numbers.pop()
    looked, (loss, *parts) = numbers[: len(looks)], numbers[len(looks) :]
    known = factor > 0.0 and all(map(math.isfinite, parts))
    return loss, math.fsum(parts) / factor if known else math.nan, count, looked
