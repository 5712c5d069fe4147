"""A word-level LSTM language model: hidden states carried over, clipped at 0.25, SGD with lr=20."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.losses import cross_entropy
from bench.models import parameter_count
from bench.scripts.loop import Training, at_least_one
from bench.scripts.script import Run, Script, Way
from bench.sets.words import Words, words

CASE = "word-lm"
STEPS = 200
BATCH, TOKENS, WIDTH = 20, 35, 128
CLIP = 0.25
EVALUATED = 40  # windows

Hidden = tuple[Tensor, Tensor]


class WordModel(nn.Module):
    """Embedding, two layers of LSTM, and a layer to the vocabulary; dropout between them."""

    def __init__(self, vocabulary: int, width: int = WIDTH, layers: int = 2) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.lstm = nn.LSTM(width, width, layers, dropout=0.2)
        self.decoder = nn.Linear(width, vocabulary)
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        nn.init.uniform_(self.decoder.weight, -0.1, 0.1)
        nn.init.zeros_(self.decoder.bias)

    def forward(self, tokens: Tensor, hidden: Hidden) -> tuple[Tensor, Hidden]:
        """Tokens (time, batch) -> logits (time, batch, vocabulary), and the state after them."""
        embedded = F.dropout(self.embedding(tokens), 0.2, self.training)
        outputs, hidden = self.lstm(embedded, hidden)
        return self.decoder(F.dropout(outputs, 0.2, self.training)), hidden

    def start(self, batch: int) -> Hidden:
        zeros = torch.zeros(self.lstm.num_layers, batch, self.lstm.hidden_size)
        return zeros, zeros


def script(work: float = 1.0, width: int = WIDTH, text: Callable[[], Words] = words) -> Script:
    steps, corpus = at_least_one(work * STEPS), text()
    columns = _columns(corpus.train)
    model = partial(WordModel, len(corpus.vocabulary), width)

    def train(way: Way, seed: int) -> Run:
        torch.manual_seed(seed)
        network = model()
        training = Training(way, network.parameters(), network, steps, max_grad_norm=CLIP)
        hidden = network.start(BATCH)
        for step in training.steps():
            kept: list[Hidden] = []  # of the first evaluation: trials come after it
            start = step * TOKENS % (len(columns) - TOKENS - 1)
            window = columns[start : start + TOKENS + 1]
            training.step(partial(_loss, network, window, hidden, kept))
            hidden = kept[0]
        run = training.run(CASE, seed)
        run.scores["validation_loss"] = _validation_loss(network, _columns(corpus.validation))
        return run

    return Script(
        case=CASE,
        title="Word-level LSTM",
        description=(
            f"{len(corpus.vocabulary):,} words, {parameter_count(model()):,} parameters, "
            f"batch {BATCH} x {TOKENS}, dropout, clip {CLIP:g}, hidden states carried over"
        ),
        own=(Way("SGD", "lr=20", sgd), Way("AdamW", "lr=1e-3", adamw)),
        train=train,
        score="validation loss",
        shown=("validation_loss",),
    )


def sgd(params: Any, module: nn.Module, *, max_grad_norm: float | None = None) -> Any:
    return torch.optim.SGD(params, lr=20.0)


def adamw(params: Any, module: nn.Module, *, max_grad_norm: float | None = None) -> Any:
    return torch.optim.AdamW(params, lr=1e-3)


def _loss(model: WordModel, window: Tensor, hidden: Hidden, kept: list[Hidden]) -> Tensor:
    logits, (h, c) = model(window[:-1], hidden)
    kept.append((h.detach(), c.detach()))
    return cross_entropy(logits, window[1:])


@torch.no_grad()
def _validation_loss(model: WordModel, columns: Tensor) -> float:
    model.eval()
    hidden, losses = model.start(BATCH), []
    for start in range(0, min(len(columns) - 1, EVALUATED * TOKENS), TOKENS):
        window = columns[start : start + TOKENS + 1]
        logits, hidden = model(window[:-1], hidden)
        losses.append(float(cross_entropy(logits, window[1:])))
    return sum(losses) / len(losses)


def _columns(tokens: Tensor) -> Tensor:
    """(time, BATCH): every column is a piece of the text that goes on from batch to batch."""
    length = len(tokens) // BATCH
    return tokens[: length * BATCH].view(BATCH, length).t().contiguous()
