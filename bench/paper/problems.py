"""What the papers trained, at a size that two cores can train, and the same as published.

The budget of each is a number of steps, as papers count epochs: a search costs time and no steps.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from bench import models
from bench.networks import PADDING
from bench.paper.fine_tuning import FineTuning
from bench.paper.hub import HUB
from bench.problems import (
    PROBLEMS,
    SECOND,
    Make,
    continued,
    of_digits,
    of_plays,
    of_reviews,
    sampled_digits,
    small_gpt,
    small_vit,
)
from bench.sets.batches import Batch, in_parts, on
from bench.sets.reviews import reviews, trimmed
from bench.sets.small import digits, of_classes
from bench.training import Checkpoint, Problem, Run, cross_entropy

SHORT = 16  # tokens: a step on longer snippets takes a CPU too long
TESTED = 512  # snippets
DIGITS_SAMPLES = 40 * 1437  # as many as forty epochs have


def short(train: Batch, validation: Batch, count: int) -> tuple[Batch, Batch]:
    """The first `count` short training snippets, and all short ones for validation."""
    return _rows(_short(train), slice(count)), _short(validation)


def _short(part: Batch) -> Batch:
    return _rows(part, part.inputs.ne(PADDING).sum(1) <= SHORT)


def _rows(part: Batch, chosen: Any) -> Batch:
    return Batch(part.inputs[chosen], part.targets[chosen])


# Five epochs in batches of 16, as with BERT on GLUE.
of_short_reviews = partial(of_reviews, every=1, what=f"snippets of up to {SHORT} tokens")


def short_reviews(
    count: int, title: str, case: str, device: torch.device, *, batch: int = 16, epochs: float = 5,
    steps: int = 0,
) -> Problem:  # fmt: skip
    return of_short_reviews(
        steps or round(epochs * count / batch), title, case, device, batch=batch,
        sampled=min(128, count), change_parts=partial(short, count=count), checkpoints=5,
    )  # fmt: skip


@dataclass(frozen=True, eq=False, kw_only=True)
class Forgetting(Problem):
    """The loss on what the network was trained on before is measured, too; nothing follows it."""

    before_sample: Sequence[Batch]

    @torch.no_grad()
    def _evaluate(self, model: nn.Module, optimizer: Optimizer, run: Run) -> Checkpoint:
        point = super()._evaluate(model, optimizer, run)
        model.eval()
        run.scores["before_loss"], _ = self.measured(model, self.before_sample)
        model.train()
        return point


def forgotten(case: str, device: torch.device) -> Problem:
    """A GPT that was trained on the comedies goes on to the histories."""
    problem = PROBLEMS["plays-continued"](case, device)
    before = of_plays(1, "", "", small_gpt, "", device, kind="comedies").validation_sample
    return Forgetting(**{**vars(problem), "before_sample": before})


def in_double(logits: Tensor, targets: Tensor) -> Tensor:
    """The loss of a model in fp32, in a dtype whose rounding hides fp32's."""
    return cross_entropy(logits, targets).double()


def reviews_until_done(count: int, case: str, device: torch.device) -> Problem:
    """Fine-tuning on `count` snippets; it is tested on others."""
    problem = short_reviews(count, f"MiniLM on {count} reviews", case, device, batch=8)
    others = _rows(_short(reviews()[0]), slice(-TESTED, None))
    tested = [on(device, trimmed(part)) for part in in_parts(others, 128)]
    return _fine_tuned(problem, count // 8, tested)


def images_until_done(each: int, case: str, device: torch.device) -> Problem:
    """A ViT that knows other digits; half of the validation images are left to test it."""
    train, rest = of_classes(digits()[0], SECOND, each), of_classes(digits()[1], SECOND)
    problem = of_digits(
        5, f"ViT on {each * len(SECOND)} digits", "pretrained on other digits",
        partial(continued, "digits-vit-few", small_vit), case, device, batch=10,
        parts=lambda: (train, _rows(rest, slice(0, None, 2))),
    )  # fmt: skip
    return _fine_tuned(
        problem, each * len(SECOND) // 10, [on(device, _rows(rest, slice(1, None, 2)))]
    )


def _fine_tuned(problem: Problem, epoch: int, tested: Sequence[Batch]) -> Problem:
    return FineTuning(**vars(problem), epoch=epoch, test_sample=tested)


def resnet(steps: int, title: str, case: str, device: torch.device, **more: Any) -> Problem:
    return sampled_digits(steps, title, "BatchNorm", models.ResNet, case, device, **more)


def of_batch(batch: int, name: str, case: str, device: torch.device) -> Problem:
    """Another size of the batch, for as many steps."""
    if name == "reviews":
        return short_reviews(1024, f"MiniLM, batch {batch}", case, device, batch=batch, steps=60)
    if name == "plays":
        model = partial(continued, "plays-continued", small_gpt)
        title = f"GPT, batch {batch}"
        return of_plays(150, title, "pretrained, dropout", model, case, device, kind="histories",
                        batch=batch)  # fmt: skip
    return resnet(300, f"ResNet, batch {batch}", case, device, batch=batch)


def cnn_of_batch(batch: int, case: str, device: torch.device) -> Problem:
    """Another size of the batch, for as many epochs."""
    return sampled_digits(
        DIGITS_SAMPLES // batch, f"CNN, batch {batch}", "BatchNorm", models.digits_cnn, case,
        device, batch=batch, checkpoints=10,
    )  # fmt: skip


BATCHES = {"reviews": (4, 8, 16, 32), "plays": (4, 8, 16, 32), "digits": (8, 32, 128, 512)}
LARGE = (64, 256, 1024)
PAPER_PROBLEMS: dict[str, Make] = {
    **HUB,
    **{name: PROBLEMS[name] for name in ("plays-continued", "plays-long", "digits-resnet")},
    "reviews-few": partial(short_reviews, 128, "MiniLM on 128 reviews"),
    "reviews-once": partial(short_reviews, 256, "MiniLM, one epoch", epochs=1),
    "digits-resnet-norm": partial(resnet, 660, "ResNet on digits, BatchNorm"),
    "digits-rounded": partial(
        of_digits, 20000, "MLP on digits, loss in fp64", "no dropout",
        partial(models.digits_mlp, width=128, dropout=0.0), loss=in_double, batch=128,
    ),
    "digits-exact": partial(
        of_digits, 8000, "MLP on digits", "no dropout",
        partial(models.digits_mlp, width=128, dropout=0.0), batch=128,
    ),
    "plays-forgotten": forgotten,
    **{f"{name}-b{batch}": partial(of_batch, batch, name)
       for name, batches in BATCHES.items() for batch in batches},
    **{f"digits-cnn-b{batch}": partial(cnn_of_batch, batch) for batch in LARGE},
    **{f"reviews-until-{count}": partial(reviews_until_done, count) for count in (32, 64)},
    **{f"digits-until-{5 * each}": partial(images_until_done, each) for each in (4, 20, 80)},
}  # fmt: skip


def paper_problem(name: str, device: torch.device, work: float = 1) -> Problem:
    return replace(PAPER_PROBLEMS[name](name, device).scaled(work), in_steps=True)
