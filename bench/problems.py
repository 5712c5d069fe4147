"""What is trained: data, model, loss, batch size and budget, the same for every optimizer.

To add a problem, name in `PROBLEMS` what makes it: `of_rows` or `of_plays` with what is its own, or
a function. It is called with the problem's name and the device.
"""

import hashlib
import inspect
import sys
from collections.abc import Callable, Iterable
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench import models
from bench.networks import MeanClassifier, bert, bert_config, gpt, parameter_count
from bench.sets import small
from bench.sets.batches import Batch, in_parts, on, random_windows, shuffled, spread_windows
from bench.sets.fetch import CACHE, shown, whole
from bench.sets.reviews import minilm_weights, reviews, trimmed
from bench.sets.small import digits, of_classes
from bench.sets.text import plays
from bench.training import CPU, Problem

Make = Callable[[str, torch.device], Problem]
Parts = Callable[[], Iterable[Batch]]  # rows to train on, and for validation
WRONG_LABELS = 0.3
FIRST, SECOND = range(5), range(5, 10)  # classes: to pre-train on, and to go on with
CONTEXT = 64
WINDOWS, WINDOWS_BATCH = 96, 32  # of a fixed sample, and of a batch of it
MINILM = "MiniLM-L6"
mean_square: dict[str, Any] = {"loss": nn.functional.mse_loss, "unit": "mean square"}


def of_rows(
    steps: int, title: str, has: str, model: Callable[[], nn.Module], case: str,
    device: torch.device, *, parts: Parts, batch: int, what: str = "images",
    sampled: int | None = None, size: int | None = None,
    change: Callable[[Batch], Batch] = lambda batch: batch, **more: Any,
) -> Problem:  # fmt: skip
    """A problem on rows of data, which are drawn in another order in every epoch.

    `sampled` training rows are evaluated (all), in batches of `size` (one, and all rows are on the
    device); `change` is made to every batch.
    """
    train, validation = parts()
    rows, checked = len(train.targets), len(validation.targets)
    if size is None:
        train, validation = on(device, train), on(device, validation)

    def fixed(part: Batch) -> list[Batch]:
        return [on(device, change(one)) for one in in_parts(part, size or len(part.targets))]

    count = parameter_count(model())
    return Problem(
        case=case, title=title,
        description=f"{count:,} parameters, {has}; {rows:,} {what}, batch {batch}",
        evaluated_on=f"{sampled or rows:,} training and {checked:,} validation {what}",
        model=model, batches=lambda generator: map(change, shuffled(train, batch, generator)),
        train_sample=fixed(Batch(train.inputs[:sampled], train.targets[:sampled])),
        validation_sample=fixed(validation), plain_steps=steps, **more,
    )  # fmt: skip


of_digits = partial(of_rows, parts=digits, batch=64, log_loss=True)
# Where all training images would take longer than the training.
sampled_digits = partial(of_digits, sampled=360)


def of_plays(
    steps: int, title: str, has: str, model: Callable[[int], nn.Module], case: str,
    device: torch.device, *, kind: str = "", context: int = CONTEXT, batch: int = 16,
) -> Problem:  # fmt: skip
    """A problem on windows of the plays; `model` is made for the number of their characters."""
    text = plays(kind)
    build = partial(model, len(text.vocabulary))
    count, characters = parameter_count(build()), len(text.train) / 1e6

    def fixed(part: Tensor) -> list[Batch]:
        return in_parts(on(device, spread_windows(part, context, WINDOWS)), WINDOWS_BATCH)

    return Problem(
        case=case, title=title,
        description=(
            f"{count:,} parameters, {has}; {characters:.1f} M characters, batch {batch} x {context}"
        ),
        evaluated_on=f"{WINDOWS} fixed windows", model=build,
        batches=partial(random_windows, text.train, context, batch),
        train_sample=fixed(text.train), validation_sample=fixed(text.validation),
        plain_steps=steps,
    )  # fmt: skip


def of_reviews(
    steps: int, title: str, case: str, device: torch.device, *, every: int,
    change_parts: Callable[[Batch, Batch], tuple[Batch, Batch]] = lambda *parts: parts,
    what: str = "snippets", **more: Any,
) -> Problem:  # fmt: skip
    """All weights are fine-tuned; one snippet of `every` is used for validation."""
    weights = minilm_weights()
    train, (tokens, labels) = change_parts(*reviews())
    by_length = tokens.ne(0).sum(1).argsort(stable=True)[::every]

    def model() -> nn.Module:
        network = bert(bert_config(MINILM))
        network.load_state_dict(weights)
        return MeanClassifier(network)

    return of_rows(
        steps, title, "pretrained, dropout", model, case, device, what=what, size=128,
        parts=lambda: (train, Batch(tokens[by_length], labels[by_length])), change=trimmed, **more,
    )  # fmt: skip


# --- weights that are trained here once, and kept -------------------------------------------------


def continued(case: str, build: Callable[..., nn.Module], *arguments: Any) -> nn.Module:
    """A network with the weights that a problem of `BEFORE` has given it; its head is a new one."""
    network = build(*arguments)
    own = network.state_dict().items()
    fresh = {name: weight for name, weight in own if name.startswith("head.")}
    network.load_state_dict({**weights_before(case), **fresh})
    return network


@cache
@torch.random.fork_rng(devices=[])
def weights_before(case: str, cache: Path = CACHE) -> dict[str, Tensor]:
    """The state dict, on the CPU; it is trained where there is no file of it.

    Its name has the digest of what decides the weights: on one machine they come out the same each
    time.
    """
    problem = BEFORE[case](case, CPU)
    with torch.device("meta"):
        network = sys.modules[type(problem.model()).__module__]
    said = f"{problem.description}, {problem.plain_steps} steps"
    said += inspect.getsource(network) + inspect.getsource(_trained)
    digest = hashlib.sha256(said.encode())
    for tensor in next(problem.batches(torch.Generator().manual_seed(0))):
        digest.update(tensor.numpy().tobytes())
    path = cache / f"{case}-{digest.hexdigest()[:12]}.pt"
    if not path.exists():
        print(f"Training {shown(path)}: {problem.plain_steps} steps, once.", flush=True)
        with whole(path) as unfinished:
            torch.save(_trained(problem), unfinished)
    return torch.load(path)


def _trained(problem: Problem) -> dict[str, Tensor]:
    """With AdamW, a warm-up and a cosine; one thread, since sums depend on how many there are."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        torch.manual_seed(0)
        model = problem.model()
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, 3e-3, problem.plain_steps, pct_start=0.1, cycle_momentum=False
        )
        batches = problem.batches(torch.Generator().manual_seed(0))
        for _, batch in zip(range(problem.plain_steps), batches):
            optimizer.zero_grad()
            problem.loss_of(model, *batch).backward()
            optimizer.step()
            scheduler.step()
    finally:
        torch.set_num_threads(threads)
    return model.state_dict()


# --- all of them ----------------------------------------------------------------------------------

small_vit = partial(models.ViT, classes=len(FIRST))
small_gpt = partial(gpt, context=CONTEXT, layers=2, heads=4, width=64)

PROBLEMS: dict[str, Make] = {
    "digits-cnn": partial(of_digits, 800, "CNN on digits", "BatchNorm", models.digits_cnn),
    "digits-mlp": partial(of_digits, 800, "MLP on digits", "dropout", models.digits_mlp),
    "plays-gpt": partial(
        of_plays, 250, "GPT on plays", "dropout", partial(gpt, context=CONTEXT, width=96)
    ),
    "reviews-minilm": partial(
        of_reviews, 160, "MiniLM on reviews", batch=16, sampled=256, every=2, checkpoints=6
    ),
    "digits-vit": partial(sampled_digits, 400, "ViT on digits", "LayerNorm", models.ViT),
    # A ViT that knows the digits 0 to 4 learns 5 to 9 from a hundred images.
    "digits-vit-few": partial(
        of_digits, 200, "ViT on few digits", "pretrained on other digits",
        partial(continued, "digits-vit-few", small_vit), batch=10,
        parts=lambda: (of_classes(digits()[0], SECOND, 20), of_classes(digits()[1], SECOND)),
    ),
    "digits-resnet": partial(
        sampled_digits, 600, "ResNet on digits", "no norm", models.PlainResNet, batch=32
    ),
    "digits-noisy": partial(
        of_digits, 2000, "MLP on digits, wrong labels",
        f"{WRONG_LABELS:.0%} of the training labels wrong",
        partial(models.digits_mlp, width=128, dropout=0.0), batch=8, log_loss=False,
        parts=lambda: (small.with_wrong_labels(digits()[0], WRONG_LABELS), digits()[1]),
    ),
    "digits-autoencoder": partial(
        of_digits, 1500, "autoencoder on digits", "no norm", models.autoencoder, **mean_square,
        parts=lambda: (Batch(part.inputs, part.inputs) for part in digits()),
    ),
    "plays-lstm": partial(of_plays, 400, "LSTM on plays", "no norm", models.CharLSTM),
    # A small GPT that was trained on the comedies goes on to the histories.
    "plays-continued": partial(
        of_plays, 200, "GPT, comedies to histories", "pretrained, dropout",
        partial(continued, "plays-continued", small_gpt), kind="histories",
    ),
    "plays-long": partial(
        of_plays, 3000, "tiny GPT, long", "no dropout",
        partial(gpt, context=32, layers=2, heads=2, width=32, dropout=0.0), context=32, batch=8,
    ),
    "reviews-minilm-b8": partial(
        of_reviews, 60, "MiniLM on reviews, batch 8", batch=8, sampled=64, every=16, checkpoints=5
    ),
    "tails-regression": partial(
        of_rows, 2000, "regression, heavy tails", "inputs as they are",
        partial(models.mlp, small.COLUMNS, 64, 64, 1), parts=small.heavy_tails, batch=32,
        what=f"rows of {small.COLUMNS}", log_loss=True, **mean_square,
    ),
    "burgers-pinn": partial(
        of_rows, 1500, "PINN for Burgers' equation", "tanh",
        partial(models.BurgersNet, small.VISCOSITY),
        parts=small.burgers, batch=128, what="points", log_loss=True, **mean_square,
    ),
}  # fmt: skip
# What gave the weights that a problem goes on from.
BEFORE: dict[str, Make] = {
    "digits-vit-few": partial(
        of_digits, 300, "ViT on other digits", "LayerNorm", small_vit,
        parts=lambda: (of_classes(part, FIRST) for part in digits()),
    ),
    "plays-continued": partial(
        of_plays, 1500, "GPT on comedies", "dropout", small_gpt, kind="comedies"
    ),
}  # fmt: skip
