"""A character GPT: AdamW with a warm-up and a cosine to a tenth, clipped, matrices decay."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn
from torch.optim import AdamW

from bench.methods import warm_up_and_cosine
from bench.networks import gpt, parameter_count
from bench.scripts.script import Script, one_batch_a_step, own
from bench.sets.batches import random_windows, spread_windows
from bench.sets.text import Text, plays
from bench.training import cross_entropy

BATCH, CONTEXT = 12, 64
CLIP, DECAY = 1.0, 0.1
SCHEDULE = partial(warm_up_and_cosine, lowest=0.1)
OWN = "lr=1e-3, betas 0.9 and 0.99, warm-up, cosine to a tenth"


def script(width: int = 128, text: Callable[[], Text] = plays) -> Script:
    characters = text()
    model = partial(gpt, len(characters.vocabulary), CONTEXT, width=width, dropout=0.0)
    batches = partial(random_windows, characters.train, CONTEXT, BATCH)
    fixed = spread_windows(characters.validation, CONTEXT, 128)

    def scores(model: nn.Module) -> dict[str, float]:
        return {"validation_loss": float(_loss(model, *fixed))}

    return Script(
        case="nano-gpt",
        title="nanoGPT's loop",
        description=(
            f"a character GPT, {parameter_count(model()):,} parameters, batch {BATCH} x {CONTEXT}, "
            f"clip {CLIP:g}, decay {DECAY:g} on matrices"
        ),
        own=(own("AdamW", OWN, AdamW, SCHEDULE, lr=1e-3, betas=(0.9, 0.99)),),
        steps=300,
        train=one_batch_a_step(model, batches, _loss, scores, CLIP, DECAY),
        schedules={", scheduled": SCHEDULE, "": None},
        score="validation loss",
        shown=("validation_loss",),
    )


def _loss(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    return cross_entropy(model(inputs), targets)
