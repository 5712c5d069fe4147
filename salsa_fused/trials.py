"""The trials of a search: the closure again, at other weights, and everything else as at first."""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn

from ._torch import forget_cached_weights, is_dtensor, local_of
from .evaluation import Evaluation, check_loss, clear, put_back, refused
from .kernels.memory import has_memory
from .ranks import Ranks
from .wrappers import reshard, sharded_modules

# What a closure raises that looks at a graph where there is none, and what torch says of it.
LACKS_A_GRAPH = (RuntimeError, AssertionError, AttributeError, TypeError, ValueError)
NEEDS_GRAPH = r"requires?[ _]grad"


class Trials:
    """All evaluations after the first one: :meth:`begin`, :meth:`loss` repeatedly, :meth:`end`.

    In between, the gradients are off the parameters, so that a closure that clears or frees
    gradients cannot touch those that the kernels read.
    """

    def __init__(self, evaluation: Evaluation, ranks: Ranks, module: nn.Module | None) -> None:
        self.evaluation = evaluation
        self.ranks = ranks
        self._sharded = sharded_modules(module)
        self.habits = evaluation.habits
        # whether a trial can repeat the first evaluation's random numbers and buffers
        self.repeat_first = evaluation.replay.knows_first
        self._gradients: list[tuple[Tensor, Tensor]] | None = None
        # a forward of DTensors waits for the other ranks, and hears no message of a failure
        self._talk_inside = any(map(is_dtensor, evaluation.parameters))

    @property
    def with_graph(self) -> bool:
        """Whether trials run with gradients enabled."""
        return self.evaluation.calls_backward or self.habits.needs_graph

    def begin(self) -> None:
        """Take the gradients off; the random streams stand where the first evaluation left them."""
        if self.repeat_first:
            self.evaluation.replay.end_first()
        parameters = self.evaluation.parameters
        self._gradients = [(p, p.grad) for p in parameters if p.grad is not None]
        clear(parameters)

    def loss(self) -> float:
        """Return the loss at the weights as they stand now, to be lowered: that of all ranks."""
        if self.with_graph:
            return self.loss_with_graph()
        try:
            loss = self._evaluate(with_graph=False)
        except LACKS_A_GRAPH as error:
            loss = self._retried(error)
            self.habits.needs_graph = True
        return self._of_all_ranks(loss)

    def loss_with_graph(self) -> float:
        """Return the loss with gradients enabled, as the first evaluation had them."""
        return self._of_all_ranks(self._evaluate(with_graph=True))

    def _of_all_ranks(self, loss: float) -> float:
        """Return the loss of all ranks; if one needs a graph, all have one from now on."""
        if self.ranks.several:
            loss, needs_graph = self.ranks.mean_loss("a trial", loss, self.habits.needs_graph)
            self.habits.needs_graph = needs_graph > 0.0
        return loss

    def end(self) -> None:
        """Put gradients back, random streams and buffers as after the first evaluation."""
        gradients, self._gradients = self._gradients, None
        if gradients is None:
            return
        try:
            for parameter, gradient in gradients:
                put_back(parameter, gradient)
        finally:
            reshard(self._sharded)  # else the next forward would be at the last trial's weights
            self.evaluation.replay.resume()

    def _retried(self, error: Exception) -> float:
        """Evaluate the trial with a graph: the closure may look at it, as a gradient penalty does.

        Raises:
            Exception: ``error`` itself, where it was not the graph that was missing.
        """
        if isinstance(error, RuntimeError):
            if re.search(NEEDS_GRAPH, str(error)):
                return self._evaluate(with_graph=True)
            raise error
        if not all(has_memory(local_of(p)) for p in self.evaluation.parameters if p.requires_grad):
            raise error  # a forward would read what the closure has freed
        try:
            loss = self._evaluate(with_graph=True)
        except Exception:
            raise error from None
        try:
            self._evaluate(with_graph=False)
        except Exception:
            return loss
        raise error  # without a graph it works, too: the failure was one of that moment

    def _evaluate(self, with_graph: bool) -> float:
        evaluation = self.evaluation
        evaluation.replay.rewind()
        forget_cached_weights()
        reshard(self._sharded)
        self.ranks.deaf = self._talk_inside
        with torch.set_grad_enabled(with_graph), refused(), evaluation.interrupts.heard():
            loss = check_loss(evaluation.closure(), "closure() at a trial point")
        self.ranks.deaf = False
        if with_graph:
            left = any(parameter.grad is not None for parameter in evaluation.parameters)
            clear(evaluation.parameters)
            if left and not evaluation.called:
                raise RuntimeError(
                    "the closure called backward() at a trial point, but not at first. With "
                    "step(closure, loss=loss) the closure only computes and returns the loss: "
                    "leave zero_grad() and backward() outside it"
                )
        return evaluation.sign * loss.item()
