"""A word-level LSTM language model: hidden states carried over, clipped at 0.25, SGD with lr=20."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.networks import parameter_count
from bench.scripts.script import Script, Training, blew_up, own
from bench.sets.text import Text, words
from bench.training import cross_entropy

BATCH, TOKENS = 20, 35
CLIP = 0.25
EVALUATED = 40  # windows

Hidden = tuple[Tensor, Tensor]


class WordModel(nn.Module):
    """Embedding, two layers of LSTM, and a layer to the vocabulary; dropout between them."""

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.lstm = nn.LSTM(width, width, 2, dropout=0.2)
        self.decoder = nn.Linear(width, vocabulary)
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        nn.init.uniform_(self.decoder.weight, -0.1, 0.1)
        nn.init.zeros_(self.decoder.bias)

    def forward(self, tokens: Tensor, hidden: Hidden | None) -> tuple[Tensor, Hidden]:
        """Tokens (time, batch) -> logits (time, batch, vocabulary), and the state after them."""
        embedded = F.dropout(self.embedding(tokens), 0.2, self.training)
        outputs, hidden = self.lstm(embedded, hidden)
        return self.decoder(F.dropout(outputs, 0.2, self.training)), hidden


def script(width: int = 128, text: Callable[[], Text] = words) -> Script:
    corpus = text()
    columns, validation = _columns(corpus.train), _columns(corpus.validation)
    model = partial(WordModel, len(corpus.vocabulary), width)

    def train(training: Training) -> bool:
        network = model()
        loop = training.loop(network.parameters(), network, CLIP)
        hidden = None
        for step in loop.steps():
            kept: list[Hidden] = []  # of the first evaluation: trials come after it
            start = step * TOKENS % (len(columns) - TOKENS - 1)
            loop.step(partial(_loss, network, columns[start : start + TOKENS + 1], hidden, kept))
            hidden = kept[0]
        training.run.scores["validation_loss"] = _validation_loss(network, validation)
        return blew_up(training.run)

    return Script(
        case="word-lm",
        title="Word-level LSTM",
        description=(
            f"{len(corpus.vocabulary):,} words, {parameter_count(model()):,} parameters, "
            f"batch {BATCH} x {TOKENS}, dropout, clip {CLIP:g}, hidden states carried over"
        ),
        own=(
            own("SGD", "lr=20", torch.optim.SGD, lr=20.0),
            own("AdamW", "lr=1e-3", torch.optim.AdamW, lr=1e-3),
        ),
        steps=200,
        train=train,
        score="validation loss",
        shown=("validation_loss",),
    )


def _loss(model: nn.Module, window: Tensor, hidden: Hidden | None, kept: list[Hidden]) -> Tensor:
    logits, (h, c) = model(window[:-1], hidden)
    kept.append((h.detach(), c.detach()))
    return cross_entropy(logits, window[1:])


@torch.no_grad()
def _validation_loss(model: nn.Module, columns: Tensor) -> float:
    model.eval()
    kept: list[Any] = [None]
    starts = range(0, min(len(columns) - 1, EVALUATED * TOKENS), TOKENS)
    return fmean(
        float(_loss(model, columns[at : at + TOKENS + 1], kept[-1], kept)) for at in starts
    )


def _columns(tokens: Tensor) -> Tensor:
    """(time, BATCH): every column is a piece of the text that goes on from batch to batch."""
    length = len(tokens) // BATCH
    return tokens[: length * BATCH].view(BATCH, length).t().contiguous()
