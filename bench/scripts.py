"""Training loops in the shape of public scripts, to put FusedSaLSa in the place of their optimizer.

Each is what a line search without a learning rate can lose in its first steps: nanoGPT's loop, a
small ViT, word2vec, a word-level LSTM.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.methods import Factor, Method, adamw, of_torch, warm_up_and_cosine
from bench.models import ViT
from bench.networks import gpt, parameter_count
from bench.sets.batches import Batch, random_windows, shuffled, spread_windows
from bench.sets.small import digits
from bench.sets.text import Text, plays, words
from bench.training import Case, Loop, Run, cross_entropy

# Trains with a loop that is made for (model, params=..., clip=...), with a run to record and with
# random numbers; returns whether training died.
Train = Callable[[Callable[..., Loop], Run, torch.Generator], bool]


@dataclass(frozen=True, eq=False, kw_only=True)
class Script(Case):
    """A training script: its own optimizers, and how it trains with any."""

    own: tuple[Method, ...]
    train: Train
    schedules: tuple[Factor | None, ...] = (None,)  # of swapped runs
    score: str = ""  # in words: what `Run.scores` has

    def run(self, method: Method, seed: int, device: torch.device) -> Run:
        """Train, and record the time and whether it died."""
        recorded = Run()

        def loop(model: nn.Module, params: Any = None, clip: float | None = None) -> Loop:
            return Loop(method.build(model, params, clip), method, recorded, self.budget)

        torch.manual_seed(seed)
        start = time.perf_counter()
        # A softmax that is saturated is full of denormals: a step then takes five times as long.
        torch.set_flush_denormal(True)
        recorded.died = self.train(loop, recorded, torch.Generator().manual_seed(seed))
        torch.set_flush_denormal(False)
        recorded.seconds = time.perf_counter() - start
        return recorded


def one_batch_a_step(
    model: Callable[[], nn.Module], batches: Callable[[torch.Generator], Iterator[Any]],
    loss: Callable[..., Tensor], scores: Callable[[nn.Module], dict[str, float]] = lambda model: {},
    clip: float | None = None, decay: float | None = None,
) -> Train:  # fmt: skip
    """What most scripts do; with `decay` matrices decay, and vectors do not."""

    def train(loop_of: Callable[..., Loop], run: Run, chance: torch.Generator) -> bool:
        network = model()
        groups: list[Any] = list(network.parameters())
        if decay is not None:
            groups = [
                {"params": [w for w in groups if w.dim() >= 2], "weight_decay": decay},
                {"params": [w for w in groups if w.dim() < 2], "weight_decay": 0.0},
            ]
        loop, drawn = loop_of(network, groups, clip), batches(chance)
        for _ in loop.steps():
            loop.step(partial(loss, network, *next(drawn)))
        with torch.no_grad():
            run.scores.update(scores(network))
        return blew_up(run)

    return train


def blew_up(run: Run) -> bool:
    """Whether the last losses are not finite, or above the first one."""
    return not run.final_loss <= run.losses[0]


def _loss(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    return cross_entropy(model(inputs), targets)


def nano_gpt(width: int = 128, text: Callable[[], Text] = plays) -> Script:
    """NanoGPT's loop: AdamW with a warm-up and a cosine to a tenth, clipped, matrices decay."""
    batch, context, clip, decay = 12, 64, 1.0, 0.1
    to_a_tenth = partial(warm_up_and_cosine, lowest=0.1)
    characters = text()
    model = partial(gpt, len(characters.vocabulary), context, width=width, dropout=0.0)
    batches = partial(random_windows, characters.train, context, batch)
    fixed = spread_windows(characters.validation, context, 128)

    def scores(model: nn.Module) -> dict[str, float]:
        return {"validation_loss": float(_loss(model, *fixed))}

    said = "lr=1e-3, betas 0.9 and 0.99, warm-up, cosine to a tenth"
    return Script(
        case="nano-gpt", title="nanoGPT's loop",
        description=(
            f"a character GPT, {parameter_count(model()):,} parameters, batch {batch} x {context}, "
            f"clip {clip:g}, decay {decay:g} on matrices"
        ),
        own=(adamw("AdamW", said, factor=to_a_tenth, betas=(0.9, 0.99)),), plain_steps=300,
        train=one_batch_a_step(model, batches, _loss, scores, clip, decay),
        schedules=(to_a_tenth, None), score="validation loss",
    )  # fmt: skip


SMOOTHING, MIXUP = 0.1, 0.8


def tiny_vit(width: int = 64) -> Script:
    """A small ViT: mixup, label smoothing, clipped, AdamW with warm-up and cosine."""
    size, patch, clip, decay = 64, 2, 1.0, 0.05
    data, validation = digits()
    model = partial(ViT, layers=4, width=width, patch=patch)

    def batches(generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        shares = np.random.default_rng(generator.initial_seed())
        for batch in shuffled(data, size, generator):
            yield mixed(batch, shares.beta(MIXUP, MIXUP))

    def scores(model: nn.Module) -> dict[str, float]:
        correct = model.eval()(validation.inputs).argmax(1) == validation.targets
        return {"validation_accuracy": float(correct.float().mean())}

    return Script(
        case="tiny-vit", title="Small ViT",
        description=(
            f"digits in {(8 // patch) ** 2} patches, {parameter_count(model()):,} parameters, "
            f"batch {size}, mixup, label smoothing {SMOOTHING:g}, clip {clip:g}"
        ),
        own=(adamw("AdamW", "lr=1e-3, warm-up and cosine", factor=warm_up_and_cosine),),
        plain_steps=400, train=one_batch_a_step(model, batches, _soft_loss, scores, clip, decay),
        schedules=(warm_up_and_cosine,), score="validation accuracy",
    )  # fmt: skip


def mixed(batch: Batch, share: float) -> tuple[Tensor, Tensor]:
    """Mixup with the batch in reverse order, on smoothed labels."""
    labels = F.one_hot(batch.targets, 10).float() * (1 - SMOOTHING) + SMOOTHING / 10
    inputs = share * batch.inputs + (1 - share) * batch.inputs.flip(0)
    return inputs, share * labels + (1 - share) * labels.flip(0)


def _soft_loss(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(model(inputs), targets)


PAIRS, NEGATIVES, WINDOW = 512, 5, 5
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


def word2vec(width: int = 64, text: Callable[[], Text] = words) -> Script:
    """Skip-gram with negative sampling: dense tables, the second one zero at first, Adam."""
    corpus = text()
    model = partial(SkipGram, len(corpus.vocabulary), width)
    return Script(
        case="word2vec", title="word2vec",
        description=(
            f"skip-gram, {len(corpus.vocabulary):,} words, {parameter_count(model()):,} "
            f"parameters, the output table zero at first, {NEGATIVES} negatives, batch {PAIRS}"
        ),
        own=(of_torch("Adam", "lr=1e-3", torch.optim.Adam, lr=1e-3),), plain_steps=1000,
        train=one_batch_a_step(model, partial(pairs, corpus), nn.Module.__call__),
    )  # fmt: skip


def pairs(corpus: Text, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Words at random places, each with one of its neighbours, and negatives by frequency."""
    tokens = corpus.train
    frequencies = torch.bincount(tokens, minlength=len(corpus.vocabulary)).double() ** 0.75
    edges = frequencies.cumsum(0) / frequencies.sum()
    while True:
        places = torch.randint(WINDOW, len(tokens) - WINDOW, (PAIRS,), generator=generator)
        away = torch.randint(1, 1 + WINDOW, (PAIRS,), generator=generator)
        sides = 2 * torch.randint(2, (PAIRS,), generator=generator) - 1
        chance = torch.rand(PAIRS, NEGATIVES, generator=generator, dtype=torch.float64)
        negatives = torch.searchsorted(edges, chance).clamp(max=len(edges) - 1)
        yield tokens[places], tokens[places + sides * away], negatives


COLUMNS, TOKENS = 20, 35
LM_CLIP = 0.25
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


def word_lm(width: int = 128, text: Callable[[], Text] = words) -> Script:
    """A word-level LSTM: hidden states carried over, clipped at 0.25, SGD with lr=20."""
    corpus = text()
    columns, validation = _columns(corpus.train), _columns(corpus.validation)
    model = partial(WordModel, len(corpus.vocabulary), width)

    def train(loop_of: Callable[..., Loop], run: Run, chance: torch.Generator) -> bool:
        network, hidden = model(), None
        loop = loop_of(network, clip=LM_CLIP)
        for step in loop.steps():
            kept: list[Hidden] = []  # of the first evaluation: trials come after it
            start = step * TOKENS % (len(columns) - TOKENS - 1)
            loop.step(partial(_lm_loss, network, columns[start : start + TOKENS + 1], hidden, kept))
            hidden = kept[0]
        run.scores["validation_loss"] = _validation_loss(network, validation)
        return blew_up(run)

    return Script(
        case="word-lm", title="Word-level LSTM",
        description=(
            f"{len(corpus.vocabulary):,} words, {parameter_count(model()):,} parameters, "
            f"batch {COLUMNS} x {TOKENS}, dropout, clip {LM_CLIP:g}, hidden states carried over"
        ),
        own=(of_torch("SGD", "lr=20", torch.optim.SGD, lr=20.0), adamw("AdamW", "lr=1e-3")),
        plain_steps=200, train=train, score="validation loss",
    )  # fmt: skip


def _lm_loss(model: nn.Module, window: Tensor, hidden: Hidden | None, kept: list[Hidden]) -> Tensor:
    logits, (h, c) = model(window[:-1], hidden)
    kept.append((h.detach(), c.detach()))
    return cross_entropy(logits, window[1:])


@torch.no_grad()
def _validation_loss(model: nn.Module, columns: Tensor) -> float:
    model.eval()
    kept: list[Any] = [None]
    starts = range(0, min(len(columns) - 1, EVALUATED * TOKENS), TOKENS)
    return fmean(
        float(_lm_loss(model, columns[at : at + TOKENS + 1], kept[-1], kept)) for at in starts
    )


def _columns(tokens: Tensor) -> Tensor:
    """(time, COLUMNS): every column is a piece of the text that goes on from batch to batch."""
    length = len(tokens) // COLUMNS
    return tokens[: length * COLUMNS].view(COLUMNS, length).t().contiguous()


SCRIPTS: dict[str, Callable[..., Script]] = {
    "nano-gpt": nano_gpt, "word-lm": word_lm, "word2vec": word2vec, "tiny-vit": tiny_vit,
}  # fmt: skip
