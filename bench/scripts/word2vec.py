"""Skip-gram with negative sampling: dense tables, the second one zero at first, Adam."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.models import parameter_count
from bench.scripts.loop import Training, at_least_one
from bench.scripts.script import Run, Script, Way
from bench.sets.words import Words, words

CASE = "word2vec"
STEPS = 1000
BATCH, NEGATIVES, WINDOW, WIDTH = 512, 5, 5, 64
LARGEST = 10.0  # score that counts, as in many scripts: the loss of a pair is at most this


class Pairs(NamedTuple):
    centers: Tensor  # (batch,)
    contexts: Tensor  # (batch,)
    negatives: Tensor  # (batch, NEGATIVES)


class SkipGram(nn.Module):
    """Scores a word's neighbours against words that were drawn by chance."""

    def __init__(self, vocabulary: int, width: int = WIDTH) -> None:
        super().__init__()
        self.centers = nn.Embedding(vocabulary, width)
        self.contexts = nn.Embedding(vocabulary, width)
        nn.init.uniform_(self.centers.weight, -0.5 / width, 0.5 / width)
        nn.init.zeros_(self.contexts.weight)

    def forward(self, pairs: Pairs) -> Tensor:
        center = self.centers(pairs.centers)
        near = (center * self.contexts(pairs.contexts)).sum(1).clamp(-LARGEST, LARGEST)
        far = torch.einsum("bw,bnw->bn", center, self.contexts(pairs.negatives))
        far = far.clamp(-LARGEST, LARGEST)
        return -(F.logsigmoid(near) + F.logsigmoid(-far).sum(1)).mean()


def script(work: float = 1.0, width: int = WIDTH, text: Callable[[], Words] = words) -> Script:
    steps, corpus = at_least_one(work * STEPS), text()
    model = partial(SkipGram, len(corpus.vocabulary), width)
    frequencies = torch.bincount(corpus.train, minlength=len(corpus.vocabulary)).double() ** 0.75

    def train(way: Way, seed: int) -> Run:
        torch.manual_seed(seed)
        network = model()
        training = Training(way, network.parameters(), network, steps)
        generator = torch.Generator().manual_seed(seed)
        batches = _pairs(corpus.train, frequencies, generator)
        for _ in training.steps():
            training.step(partial(network, next(batches)))
        return training.run(CASE, seed)

    return Script(
        case=CASE,
        title="word2vec",
        description=(
            f"skip-gram, {len(corpus.vocabulary):,} words, {parameter_count(model()):,} "
            f"parameters, the output table zero at first, {NEGATIVES} negatives, batch {BATCH}"
        ),
        own=(Way("Adam", "lr=1e-3", adam),),
        train=train,
    )


def adam(params: Any, module: nn.Module, *, max_grad_norm: float | None = None) -> Any:
    return torch.optim.Adam(params, lr=1e-3)


def _pairs(tokens: Tensor, frequencies: Tensor, generator: torch.Generator) -> Iterator[Pairs]:
    """Words at random places, each with one of its neighbours, and negatives by frequency."""
    edges = frequencies.cumsum(0) / frequencies.sum()
    while True:
        places = torch.randint(WINDOW, len(tokens) - WINDOW, (BATCH,), generator=generator)
        away = torch.randint(1, 1 + WINDOW, (BATCH,), generator=generator)
        sides = 2 * torch.randint(2, (BATCH,), generator=generator) - 1
        chance = torch.rand(BATCH, NEGATIVES, generator=generator, dtype=torch.float64)
        negatives = torch.searchsorted(edges, chance).clamp(max=len(edges) - 1)
        yield Pairs(tokens[places], tokens[places + sides * away], negatives)
