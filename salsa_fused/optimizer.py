"""``FusedSaLSa``: Adam's direction, and a step size found by a smoothed Armijo line search."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from . import turns
from ._torch import hooked_where_watched, not_compiled, ranks_are_set_up, set_grad_mode
from .checkpoint import Checkpoints
from .conventions import Habits
from .decided import PLAIN, Decided
from .evaluation import Closure, Evaluation, check_call, mark_gradients
from .factors import has_factors
from .given_loss import NOT_CLIPPED
from .groups import defaults_of
from .interrupts import Interrupts, Undo, take_back
from .kernels import Kernels
from .kernels.directions import direction_of
from .kernels.parameters import check_no_shared_memory
from .kernels.storage import Formats
from .line_search import LineSearch
from .pending import flag_of
from .ranks import Ranks
from .replay import Replay
from .searching import Searching
from .trouble import NO_GRADIENT, Trouble, largest_lr
from .wrappers import end_forward, refuse_join, refuse_searches


class FusedSaLSa(Checkpoints, Searching):
    r"""Adam with SaLSa, a line search that finds the step size (arXiv 2407.20650).

    ::

        optimizer = FusedSaLSa(model.parameters(), module=model)

        def closure():
            return loss_function(model(inputs), targets)

        loss = optimizer.step(closure)

    A step without a search is a plain AdamW step.  A search evaluates the loss :math:`f` of the
    *same* mini-batch at trial points :math:`w + \eta d` along the momentum-free direction
    :math:`d = -g / (\sqrt{\hat v} + \epsilon)`.  It accepts :math:`\eta` when

    .. math::
        h' \ge c\,\eta\,s', \quad
        h' = \beta_3 h + (1 - \beta_3)\,(f(w) - f(w + \eta d)), \quad
        s' = \beta_3 s + (1 - \beta_3)\,\langle g, -d\rangle,

    and else multiplies it by ``backtrack``.  The weights are then written from :math:`w` with
    Adam's momentum direction, :math:`w - lr\,a\,(\hat m / (\sqrt{\hat v} + \epsilon) + \lambda
    w)`.  The applied step size :math:`a` starts as :math:`\eta` and then follows how far steps have
    come (:mod:`salsa_fused.look_back`); with ``look_back=False`` it is :math:`\eta`.

    Args:
        params: parameters, named parameters or parameter groups, as for ``torch.optim.AdamW``:
            dense, of a real floating dtype, any shape and device.
        lr: a *factor* on the applied step size, not a learning rate: leave it at 1.  Schedulers and
            per-group factors change it (looking back makes up for a constant factor in time).  The
            search tries each group's factor relative to the largest.
        betas: Adam's :math:`\beta_1, \beta_2`, and :math:`\beta_3` of the search.
        eps: added to :math:`\sqrt{\hat v}`, outside the root.
        weight_decay: decoupled, :math:`\lambda` above.
        c: the sufficient-decrease constant, in (0, 1).
        backtrack: factor on the step size after a rejected trial, in (0, 1).
        growth: factor on the step size before the first trial of a search.
        growth_per: ``"search"``, or ``"step"``: ``growth`` to the power of the steps since.
        init_step_size: where the first search starts; it finds the order of magnitude itself.
        schedule: how the period between searches follows them: ``"doubling"`` while they are
            accepted at once, or the ``"rate"`` of change of the step size (equations 8 to 11).
        search_period: steps from one search to the next, ``(L_min, L_max)`` or one integer; the
            first ten steps always search.  ``None``: never search and never need a closure; this
            is fused AdamW with the learning rate ``lr * init_step_size``.
        max_trials: rejections after which a search is exhausted: the step is skipped, and the next
            search begins below everything that was rejected.
        direction: ``"adam"``, or one of these.  ``"sgd"``: :math:`d = -g`, and the step subtracts
            :math:`lr\,\eta\,(g + \lambda w)`; ``betas[:2]`` and ``eps`` have no effect.
            ``"lamb"``: Adam's, scaled for each tensor by :math:`r = \min(\|w\| / \|u\|,
            \text{trust\_clip})` with the step's :math:`u = \hat m / (\sqrt{\hat v} + \epsilon) +
            \lambda w`; 1 where either norm is 0.  ``"lion"``: :math:`d = -\operatorname{sign} g`,
            and the step takes the sign of a mean of gradients (arXiv 2302.06675).  ``"ademamix"``:
            Adam with a second, slow mean of gradients (arXiv 2409.03137).
        units: ``"all"`` parameters have one step size, or each parameter group is a unit with a
            step size of its own (``"groups"``, PLASLS, arXiv 2403.18506).  The first search that
            is accepted is one for all units; after that every search moves one unit, in turn.
        trust_clip: the largest ratio of ``direction="lamb"`` (LAMBC, arXiv 2011.13584; 1 was best
            there, with ``eps=1e-6``); ``None`` is LAMB, without a bound.
        module: the model that the closure calls, with its wrapper: after the trials its buffers
            (BatchNorm's running statistics) are as the first evaluation left them.
        process_group: the ranks that train the model together; ``None``: all there are.  (Each for
            itself: ``torch.distributed.new_subgroups(1)[0]``.)  Copies and pickles have ``None``.
        loss_reduction: what gradients are of: the ``"mean"`` of all ranks' losses (DDP's, FSDP2's),
            or their ``"sum"`` (FSDP2's with ``set_gradient_divide_factor(1)``).
        backend: ``"triton"``, ``"native"`` or ``"reference"`` to force one; ``None`` chooses by
            device and dtype.
        maximize: maximize the closure's value instead.
        check_replay: on the first search, and on one more after the first ten steps, evaluate the
            closure twice more: at the same weights, and after a hundredth of the accepted step.
            Warn when the loss differs, when a forward changes what trials do not put back, and
            when the loss does not fall as the gradients promise.
        check_finite: look at the gradients of plain steps, too, and skip those steps on which one
            is not finite (a search always does).  It reads every gradient once more.
        max_grad_norm: clip the gradients of each step to this total norm, as
            ``torch.nn.utils.clip_grad_norm_`` does; the search still tests the true slope.
            ``None``: do not clip.  In a loop of your own call :meth:`clip_grad_norm_`.
        look_back: let the applied step size follow how far steps have come in a window that grows
            with the run (:mod:`salsa_fused.look_back`), for one more tensor beside the moments.
            ``False``: apply the step size that was found, as the paper does.  ``None``: look back,
            except with ``direction="sgd"``, ``units="groups"`` or ``search_period=None``.
        total_steps: the number of steps of the whole run, if it is known: the applied step size
            then falls linearly over the last half, to almost 0 in the last step, and looking back
            shortens no step.  No scheduler is needed; steps beyond it are as short, with a warning.
        master_weights: keep an fp32 copy of every bf16 and fp16 weight and step that; the weight is
            the copy, rounded.  Without it a step smaller than half a 16-bit step is lost.  A search
            then saves no weights.  fp32 and fp64 weights need none and have none.
        exp_avg_dtype: ``torch.bfloat16`` stores all moments but ``exp_avg_sq`` in half the memory.
        exp_avg_sq_dtype: the same of ``exp_avg_sq``.  bf16 moments are rounded at random, by a hash
            of step, parameter and element: to nearest, ``exp_avg_sq`` would never decay.
        **numbers: the direction's own: ``alpha=5.0`` and ``slow_beta=0.9999`` of ``"ademamix"``.
            A group may have its own, as with ``lr``, ``betas`` (two), ``eps``, ``weight_decay``.

    The state of the search is plain numbers in every parameter group, so that checkpoints carry
    it: ``step_size``, ``smoothed_decrease`` (:math:`h`), ``smoothed_slope`` (:math:`s`),
    ``period`` and counters; equal in all groups, except what is a unit's own.  Per parameter the
    state is Adam's, ``step`` (int), ``exp_avg`` and ``exp_avg_sq`` (fp32, or as asked for;
    float64 for float64 weights), or the direction's (``"sgd"`` has none); ``master_param`` where
    there is one; and ``window_start`` like the weight, or its master, where steps look back.

    Raises:
        TypeError, ValueError: an argument or a parameter that cannot be used; the message names
            it and says what to do.
    """

    line_search_class = LineSearch
    kernels_class = Kernels
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
        direction: str = "adam",
        units: turns.Units = "all",
        trust_clip: float | None = 1.0,
        module: nn.Module | None = None,
        process_group: Any = None,
        loss_reduction: str = "mean",
        backend: str | None = None,
        maximize: bool = False,
        check_replay: bool = True,
        check_finite: bool = False,
        max_grad_norm: float | None = None,
        look_back: bool | None = None,
        total_steps: int | None = None,
        master_weights: bool = False,
        exp_avg_dtype: torch.dtype | None = torch.float32,
        exp_avg_sq_dtype: torch.dtype | None = torch.float32,
        **numbers: float,
    ) -> None:
        self._formats = Formats.checked(locals())
        defaults = defaults_of(locals())
        super().__init__(params, defaults)
        self.module = module
        self.check_replay = check_replay
        self.check_finite = check_finite
        self.max_grad_norm = None if max_grad_norm is None else float(max_grad_norm)
        self.last_search = None
        self._backend = backend
        self._ranks = Ranks(process_group, loss_reduction)
        self._replay_checks = self._slope_checks = 0  # made so far
        self._habits = Habits()
        self._trouble = Trouble(self._habits.once)
        self._begin_afresh()
        check_no_shared_memory(self.param_groups)
        self._habits.marked = True  # gradients from before are nobody's accumulation
        mark_gradients(self._parameters())
        self._trouble.look_at_first_lr(self.param_groups)

    # -- one step -----------------------------------------------------------------------------

    @not_compiled
    def step(  # type: ignore[override]
        self, closure: Closure | None = None, *, loss: Tensor | None = None
    ) -> Tensor | None:
        """Take one step.

        ``step(closure)``: the closure computes the loss and returns it; zeroing the gradients and
        ``backward`` are done here.  ``step(closure, loss=loss)``: the gradients of ``loss`` are
        there already (accumulation, clipping); the closure is called for trials only.  ``step()``:
        after :meth:`evaluate`, or while no search is due (:attr:`search_due`).

        A step whose loss is not finite is skipped and counted in :attr:`skipped_steps`; so is one
        whose search accepts no trial, or whose gradients a search finds not finite (on other steps
        only ``check_finite=True`` inspects them).
        After an exception weights, moments, search state, random streams and (with ``module=``)
        buffers are as before the step, unless it was a warning that is turned into an error.

        Returns:
            The loss at the weights before the step, detached, on several ranks that of all of
            them; ``None`` where there is none.

        Raises:
            RuntimeError: a search is due and there is no closure; the loss has no graph; a
                gradient is sparse or complex; CUDA-graph capture; another rank has failed.
            TypeError, ValueError: the closure returned something other than a loss.
        """
        if self._stepping:
            self._refuse_in_a_step("step()")
        if self._parts:
            closure, loss = self._given(closure, loss)
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
        groups, kernels, ranks = self.param_groups, self._kernels, self._ranks
        if closure is None and loss is None and self._nothing_to_apply:
            return None
        searching = self.search_due
        self._check_call(closure, loss, searching)
        outer, clipped = self._outer_replay, self._clipped

        def note_again() -> None:
            self._outer_replay = outer  # the same loss may be given again
            if loss is None:
                self._clipped = clipped

        changes: list[Undo] = [note_again]  # how to undo what the step has begun
        ranks.are_set_up = ranks_are_set_up()
        ranks.several = ranks.are_set_up and ranks.begin(groups)
        try:
            self._stepping = True
            f0, evaluation = self._evaluate(closure, loss, searching, changes, interrupts)
            if ranks.several and isinstance(f0, Tensor):
                changes.append(ranks.tell_of_failure)
                ranks.begin_to_listen()
            if self.max_grad_norm is not None and not self._clipped.by_the_step:
                self.clip_grad_norm_(self.max_grad_norm)
                self._clipped = self._clipped._replace(by_the_step=True)
            changes.append(kernels.forget)
            has_gradient = kernels.refresh(groups, self.state)
            if ranks.several and isinstance(f0, Tensor):
                search = evaluation if searching else None
                f0, has_gradient = self._of_all_ranks(f0, has_gradient, search)
            if not has_gradient:  # no parameter has one
                if evaluation is not None and evaluation.loss_has_graph:
                    self._habits.once.say("gradient", NO_GRADIENT)
                return f0
            if searching and evaluation is not None:
                decided = self._search(f0, evaluation, changes)
            else:
                decided = self._without_search(f0)
            if not decided.skipped:
                self._write(decided)
            else:
                kernels.restore()
                if evaluation is not None:
                    evaluation.replay.rewind()
        except BaseException as error:
            take_back(changes, error, interrupts)
            raise
        finally:
            self._stepping = self._in_trial = False
            kernels.release()
        self._remember(f0, decided, evaluation)
        return f0

    def _evaluate(
        self,
        closure: Closure | None,
        loss: Any,
        searching: bool,
        changes: list[Undo],
        interrupts: Interrupts,
    ) -> tuple[Any, Evaluation | None]:
        """Return the loss at the weights, and its evaluation; the gradients are there then."""
        evaluation, replay, self._outer_replay = None, self._outer_replay, None
        if closure is not None:
            given = loss is not None
            parameters = self._parameters()
            if replay is None or not given:
                replay = Replay(
                    parameters, self.module, trials_follow=searching, knows_first=not given,
                    known=self._known_buffers,
                )  # fmt: skip
            sign = -1.0 if self.param_groups[0]["maximize"] else 1.0
            evaluation = Evaluation(closure, parameters, replay, interrupts, self._habits, sign)
            if not given:
                changes.append(evaluation.undo)
                if self._ranks.are_set_up:
                    changes.append(partial(end_forward, self.module))
                self._clipped = NOT_CLIPPED  # other gradients
                loss = evaluation.first(searching)
                if not evaluation.calls_backward:
                    self._clipped = NOT_CLIPPED  # they came later than what the closure clipped
        # cloned: a compiled model may overwrite its output in the next evaluation
        return loss.detach().clone() if isinstance(loss, Tensor) else loss, evaluation

    def _without_search(self, f0: Any) -> Decided:
        """Look back on the window where it is time, and skip a loss that is not finite."""
        look = self._look() if turns.look_is_due(self.param_groups[0]) else []
        skipped, flag = False, None
        if self.check_finite or isinstance(f0, Tensor):
            skipped, flag = self._unless_finite(f0)
        if look or skipped or flag is not None:
            return Decided(skipped, look=look, flag=flag)
        return PLAIN

    def _write(self, decided: Decided) -> None:
        """Write weights and moments, and note the weights where a window begins."""
        groups, kernels, window = self.param_groups, self._kernels, decided.window
        begins = window is not None and window.window_begin == groups[0]["steps"] + 1
        if begins:
            kernels.prepare_window(self.state)
        elif turns.looks_back(groups[0]):
            begins = kernels.prepare_window(self.state, newcomers_only=True)
        sizes = turns.applied(groups, decided.search, window)
        kernels.final_write(groups, sizes, decided.flag)
        kernels.commit(self.state)
        if begins:
            kernels.begin_window(self.state)
        if decided.flag is not None:
            self._pending.count_skip(decided.flag)

    def _remember(self, f0: Any, decided: Decided, evaluation: Evaluation | None) -> None:
        """Count the step, and when it is complete, say what keeps training from working."""
        groups, first, search = self.param_groups, self.param_groups[0], decided.search
        self._clipped = NOT_CLIPPED
        self._parts.clear()
        self._habits.marked = evaluation is not None
        if evaluation is not None:
            mark_gradients(evaluation.parameters)
        if search is not None and decided.window is not None and evaluation is not None:
            turns.remember(groups, search, decided.window)
            self._pending.skips = None
            if not search.skipped:
                self._pending.looks = []
            self.last_search = evaluation.as_returned(search.result)
            self._trouble.searched(groups, search, replayed=evaluation.replay.knows_first)
        elif decided.skipped:
            lost = f0.item() if isinstance(f0, Tensor) else math.nan
            self.last_search = turns.count_skipped_step(groups, lost)
            self._trouble.step_skipped(groups, lost)
        else:
            self._pending.looks += decided.look
            turns.count_plain_step(groups, looked=bool(decided.look))
            if decided.flag is None:
                self._trouble.skipped = 0
        if first["total_steps"] is not None and first["steps"] > first["total_steps"]:
            self._trouble.beyond_horizon(first)

    # -- parts of a step ----------------------------------------------------------------------

    def _check_call(self, closure: Any, loss: Any, searching: bool) -> None:
        """Refuse a call that cannot be carried out, before anything changes."""
        if not self._trouble.lr_is_plausible and not has_factors(self):
            self._trouble.look_at_lr(self.param_groups)
        if (searching or closure is not None) and ranks_are_set_up():
            refuse_join(self.module)
            if searching:
                refuse_searches(self._parameters(), self.module, self._ranks.size)
        plain = closure is None or callable(closure)
        if searching or loss is not None or not plain or torch.cuda.is_initialized():
            check_call(closure, loss, searching)

    def _unless_finite(self, f0: Any) -> tuple[bool, Tensor | None]:
        """Return whether a plain step is skipped, or on a device a flag that will tell the kernels.

        For a device the host would have to wait.  On several ranks ``f0`` is the loss of all.
        """
        if not self.check_finite and f0.is_cpu:
            return not math.isfinite(f0.item()), None
        numbers = [f0] if isinstance(f0, Tensor) else []
        if self.check_finite:
            numbers += self._kernels.largest_gradients()
        flag = flag_of(numbers) if numbers else torch.zeros(())
        if self.check_finite and self._ranks.several:
            flag = self._ranks.mean_on_device("its gradients", flag)
        return (flag.item() != 0.0, None) if flag.device.type == "cpu" else (False, flag)

    @property
    def search_due(self) -> bool:
        """Whether the next step searches, and so needs a closure."""
        return turns.is_due(self.param_groups) and largest_lr(self.param_groups) > 0.0

    @property
    def _nothing_to_apply(self) -> bool:
        """Whether a step changes nothing, as the one that torch's distributed checkpoints take."""
        kept = direction_of(self.param_groups[0]).moments or self._formats.master_weights
        return not kept and not largest_lr(self.param_groups) > 0.0

    def _parameters(self) -> list[Tensor]:
        return [parameter for group in self.param_groups for parameter in group["params"]]
