"""Fine-tuning for a number of epochs, or until the validation loss ends it (arXiv 2202.02617)."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial

import torch

from bench.methods import Method
from bench.sets.batches import Batch
from bench.training import PLAIN_STEP, Loop, Problem, Run
from salsa_fused.schedules import AdaptiveFineTuning

LONGEST = 60  # epochs, where nothing else ends it


@dataclass(frozen=True)
class Epochs(Method):
    """How long a method trains: `epochs`, or None, until the validation loss ends it."""

    epochs: int | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class FineTuning(Problem):
    """It is tested at the end, on rows that neither training nor its end depend on."""

    epoch: int  # steps
    test_sample: Sequence[Batch]

    def run(self, method: Method, seed: int, device: torch.device) -> Run:
        """Train; "adaptive" goes back to the weights with the best validation loss."""
        assert isinstance(method, Epochs)
        torch.manual_seed(seed)
        model = self.model().to(device)
        optimizer = method.build(model)
        batches = self.batches(torch.Generator().manual_seed(seed))
        budget = PLAIN_STEP * self.epoch * (method.epochs or LONGEST)
        loop = Loop(optimizer, method, run := Run(), budget, device, in_steps=True)
        adaptive = None if method.epochs else AdaptiveFineTuning(optimizer, self.epoch)
        best = model.state_dict()
        for step in loop.steps():
            inputs, targets = (tensor.to(device) for tensor in next(batches))
            loop.step(partial(self.loss_of, model, inputs, targets))
            if adaptive:
                adaptive.step()
            if (step + 1) % self.epoch:
                continue
            run.checkpoints.append(self._evaluate(model, optimizer, run))
            if adaptive:
                adaptive.step(run.checkpoints[-1].validation_loss)
                best = deepcopy(model.state_dict()) if adaptive.improved else best
                if adaptive.finished:
                    break
        model.load_state_dict(best)
        model.eval()
        with torch.no_grad():
            loss, accuracy = self.measured(model, self.test_sample)
        run.scores = {"test_loss": loss, "test_accuracy": accuracy, "epochs": len(run.checkpoints)}
        return run
