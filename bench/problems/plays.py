"""Problems on the characters of Shakespeare's plays."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import nn

from bench.models import parameter_count
from bench.models.gpt import GPT
from bench.models.lstm import CharLSTM
from bench.problems.common import checkpoints
from bench.sets.batches import Batch, in_parts, on, random_windows, spread_windows
from bench.sets.fetch import CACHE
from bench.sets.plays import PLAYS, Text, plays
from bench.sets.pretrained import Recipe, pretrained
from bench.training import Problem

SAMPLE = (3, 32)  # batches, and windows in each, of a fixed sample
GPT_STEPS = 250
GPT_BATCH = 16
GPT_CONTEXT = 64
GPT_WIDTH = 96
LSTM_STEPS = 400
CONTINUED_STEPS = 200
LONG_STEPS = 3000
SMALL = {"layers": 2, "heads": 4, "width": 64}  # the decoder that goes on
TINY = {"layers": 2, "heads": 2, "width": 32}  # the one that is trained for long

Texts = Callable[[], Text]
COMEDIES, HISTORIES = partial(plays, kind="comedies"), partial(plays, kind="histories")


def plays_gpt(device: torch.device, plain_steps: int = GPT_STEPS, text: Texts = plays) -> Problem:
    """A GPT with dropout."""
    characters = text()
    model = partial(GPT, len(characters.alphabet), GPT_CONTEXT, width=GPT_WIDTH)
    return _plays(device, plain_steps, "gpt", "GPT on plays", "dropout", model, characters)


def plays_lstm(device: torch.device, plain_steps: int = LSTM_STEPS, text: Texts = plays) -> Problem:
    """An LSTM."""
    characters = text()
    model = partial(CharLSTM, len(characters.alphabet))
    return _plays(device, plain_steps, "lstm", "LSTM on plays", "no norm", model, characters)


def plays_long(device: torch.device, plain_steps: int = LONG_STEPS, text: Texts = plays) -> Problem:
    """A tiny GPT, for many steps."""
    characters, context = text(), 32
    model = partial(GPT, len(characters.alphabet), context, **TINY, dropout=0.0)
    return _plays(
        device, plain_steps, "long", "tiny GPT, long", "no dropout", model, characters,
        context=context, batch=8,
    )  # fmt: skip


def continued_recipe(text: Texts = COMEDIES, steps: int = 1500) -> Recipe:
    """The small GPT on the comedies."""
    characters = text()
    return Recipe(
        name="plays-gpt",
        data=f"the comedies of {PLAYS.sha256}",
        model=partial(GPT, len(characters.alphabet), GPT_CONTEXT, **SMALL),
        settings=f"{GPT_CONTEXT}, {SMALL}",
        batches=lambda generator: random_windows(
            characters.train, GPT_CONTEXT, GPT_BATCH, generator
        ),
        steps=steps,
    )


def plays_continued(
    device: torch.device,
    plain_steps: int = CONTINUED_STEPS,
    text: Texts = HISTORIES,
    recipe: Callable[[], Recipe] = continued_recipe,
    cache: Path = CACHE,
) -> Problem:
    """A small GPT that was trained on the comedies goes on to the histories."""
    characters, before = text(), recipe()
    weights = pretrained(before, cache)

    def model() -> nn.Module:
        gpt = before.model()
        gpt.load_state_dict(weights)
        return gpt

    title, has = "GPT, comedies to histories", "pretrained, dropout"
    return _plays(device, plain_steps, "continued", title, has, model, characters)


def _plays(
    device: torch.device,
    plain_steps: int,
    case: str,
    title: str,
    has: str,
    model: Callable[[], nn.Module],
    characters: Text,
    *,
    context: int = GPT_CONTEXT,
    batch: int = GPT_BATCH,
) -> Problem:
    def sample(part: torch.Tensor) -> list[Batch]:
        batches, size = SAMPLE
        return in_parts(on(device, spread_windows(part, context, batches * size)), size)

    return Problem(
        case=f"plays-{case}",
        title=title,
        description=(
            f"{parameter_count(model()):,} parameters, {has}; "
            f"{len(characters.train) / 1e6:.1f} M characters, batch {batch} x {context}"
        ),
        evaluated_on=f"{SAMPLE[0] * SAMPLE[1]} fixed windows",
        model=model,
        batches=lambda generator: random_windows(characters.train, context, batch, generator),
        train_sample=sample(characters.train),
        validation_sample=sample(characters.validation),
        plain_steps=plain_steps,
        checkpoints=checkpoints(plain_steps),
    )
