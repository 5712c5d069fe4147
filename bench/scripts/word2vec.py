"""Skip-gram with negative sampling: dense tables, the second one zero at first, Adam."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.networks import parameter_count
from bench.scripts.script import Script, one_batch_a_step, own
from bench.sets.text import Text, words

BATCH, NEGATIVES, WINDOW = 512, 5, 5
LARGEST = 10.0  # score that counts, as in many scripts: the loss of a pair is at most this


class SkipGram(nn.Module):
    """Scores a word's neighbours against words that were drawn by chance."""

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.centers = nn.Embedding(vocabulary, width)
        self.contexts = nn.Embedding(vocabulary, width)
        nn.init.uniform_(self.centers.weight, -0.5 / width, 0.5 / width)
        nn.init.zeros_(self.contexts.weight)

    def forward(self, centers: Tensor, contexts: Tensor, negatives: Tensor) -> Tensor:
        """Words (batch,), neighbours (batch,) and others (batch, NEGATIVES) -> the loss."""
        center = self.centers(centers)
        near = (center * self.contexts(contexts)).sum(1).clamp(-LARGEST, LARGEST)
        far = torch.einsum("bw,bnw->bn", center, self.contexts(negatives))
        far = far.clamp(-LARGEST, LARGEST)
        return -(F.logsigmoid(near) + F.logsigmoid(-far).sum(1)).mean()


def script(width: int = 64, text: Callable[[], Text] = words) -> Script:
    corpus = text()
    model = partial(SkipGram, len(corpus.vocabulary), width)
    frequencies = torch.bincount(corpus.train, minlength=len(corpus.vocabulary)).double() ** 0.75
    batches = partial(pairs, corpus.train, frequencies)
    return Script(
        case="word2vec",
        title="word2vec",
        description=(
            f"skip-gram, {len(corpus.vocabulary):,} words, {parameter_count(model()):,} "
            f"parameters, the output table zero at first, {NEGATIVES} negatives, batch {BATCH}"
        ),
        own=(own("Adam", "lr=1e-3", torch.optim.Adam, lr=1e-3),),
        steps=1000,
        train=one_batch_a_step(model, batches, nn.Module.__call__),
    )


def pairs(
    tokens: Tensor, frequencies: Tensor, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Words at random places, each with one of its neighbours, and negatives by frequency."""
    edges = frequencies.cumsum(0) / frequencies.sum()
    while True:
        places = torch.randint(WINDOW, len(tokens) - WINDOW, (BATCH,), generator=generator)
        away = torch.randint(1, 1 + WINDOW, (BATCH,), generator=generator)
        sides = 2 * torch.randint(2, (BATCH,), generator=generator) - 1
        chance = torch.rand(BATCH, NEGATIVES, generator=generator, dtype=torch.float64)
        negatives = torch.searchsorted(edges, chance).clamp(max=len(edges) - 1)
        yield tokens[places], tokens[places + sides * away], negatives
