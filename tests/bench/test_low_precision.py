"""The demo's GPT in bf16: with masters it trains as in fp32, and without them it does not."""

from __future__ import annotations

import pytest
import torch

from bench.problems import PROBLEMS
from bench.sets.fetch import DataError
from bench.training import CPU
from salsa_fused import FusedSaLSa

STEPS = 40
BF16 = torch.bfloat16
MASTERS = {"master_weights": True, "exp_avg_dtype": BF16, "exp_avg_sq_dtype": BF16}


def loss_after_training(problem, seed, dtype, **settings):
    """The loss of the fixed training sample, in evaluation mode."""
    torch.manual_seed(seed)
    model = problem.model().to(dtype).train()
    settings = {"look_back": False, "check_replay": False, **settings}
    optimizer = FusedSaLSa(model.parameters(), module=model, **settings)
    batches = problem.batches(torch.Generator().manual_seed(seed))

    def loss_of(inputs, targets):
        outputs = model(inputs).float().flatten(0, 1)
        return torch.nn.functional.cross_entropy(outputs, targets.flatten())

    for _, batch in zip(range(STEPS), batches):
        optimizer.step(lambda batch=batch: loss_of(*batch))
    model.eval()
    with torch.no_grad():
        losses = [loss_of(*batch).item() for batch in problem.train_sample]
    return sum(losses) / len(losses)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_masters_train_as_fp32_does(seed):
    """Within 0.1 %, and without masters visibly outside of it.

    At 40 of the demo's steps, and with `look_back=False`, for there the test can fail: the step
    sizes are the same in all three runs, masters differ by 0.01 %, and none by 0.4 % and more
    (after 233 steps 1.2 to 1.4 %). Looking back, the default, makes up for a part of what is lost
    by longer steps, and drifts apart with any rounding: after 233 steps masters differ by 0.1 %
    there, and none by 0.2 to 0.45 %, which no threshold tells apart.
    """
    try:
        problem = PROBLEMS["plays-gpt"]("plays-gpt", CPU)
    except DataError as error:
        pytest.skip(str(error))
    expected = loss_after_training(problem, seed, torch.float32)
    masters = loss_after_training(problem, seed, BF16, **MASTERS)
    none = loss_after_training(problem, seed, BF16)
    assert abs(masters / expected - 1.0) < 1e-3
    assert none / expected - 1.0 > 2e-3
