"""BERT (Devlin et al. 2018, arXiv 1810.04805), under the names that published checkpoints have."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

PADDING = 0  # the token that fills rows up; it is not attended to


@dataclass(frozen=True)
class BertSize:
    vocabulary: int = 30522
    width: int = 768
    layers: int = 12
    heads: int = 12
    inner: int = 3072
    positions: int = 512
    dropout: float = 0.1


BASE = BertSize()
SMALL = BertSize(width=512, layers=4, heads=8, inner=2048)  # Turc et al. 2019, "BERT-Small"
MINILM_L6 = BertSize(width=384, layers=6, heads=12, inner=1536)


class Bert(nn.Module):
    """Tokens (batch, time) -> hidden states (batch, time, width)."""

    def __init__(self, size: BertSize) -> None:
        super().__init__()
        self.size = size
        self.embeddings = Embeddings(size)
        self.encoder = Encoder(size)
        self.pooler = Pooler(size)
        self.apply(_init_bert)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.encoder(self.embeddings(tokens), (tokens != PADDING)[:, None, None])


class BertClassifier(nn.Module):
    """Tokens (batch, time) -> logits (batch, classes).

    From the first token through BERT's pooler, or (`mean`) from the mean of all states, for which
    sentence embeddings are trained; the pooler then has no part in it and is left out.
    """

    def __init__(self, bert: Bert, classes: int, *, mean: bool = False) -> None:
        super().__init__()
        self.bert = bert
        self.mean = mean
        if mean:
            del bert.pooler
        self.dropout = nn.Dropout(bert.size.dropout)
        self.classifier = nn.Linear(bert.size.width, classes)
        _init_bert(self.classifier)

    def forward(self, tokens: Tensor) -> Tensor:
        states = self.bert(tokens)
        if self.mean:
            shown = (tokens != PADDING).unsqueeze(-1).to(states.dtype)
            pooled = (states * shown).sum(1) / shown.sum(1)
        else:
            pooled = self.bert.pooler(states)
        return self.classifier(self.dropout(pooled))


class BertForMaskedTokens(nn.Module):
    """Tokens (batch, time) -> logits (batch, time, vocabulary): what BERT is pre-trained for.

    The decoder is tied to the embeddings.
    """

    def __init__(self, bert: Bert) -> None:
        super().__init__()
        del bert.pooler
        self.bert = bert
        self.transform = nn.Linear(bert.size.width, bert.size.width)
        self.norm = nn.LayerNorm(bert.size.width, eps=1e-12)
        self.bias = nn.Parameter(torch.zeros(bert.size.vocabulary))
        _init_bert(self.transform)

    def forward(self, tokens: Tensor) -> Tensor:
        states = self.norm(F.gelu(self.transform(self.bert(tokens))))
        return F.linear(states, self.bert.embeddings.word_embeddings.weight, self.bias)


class Embeddings(nn.Module):
    def __init__(self, size: BertSize) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(size.vocabulary, size.width, padding_idx=PADDING)
        self.position_embeddings = nn.Embedding(size.positions, size.width)
        self.token_type_embeddings = nn.Embedding(2, size.width)
        self.LayerNorm = nn.LayerNorm(size.width, eps=1e-12)
        self.dropout = nn.Dropout(size.dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.word_embeddings(tokens) + self.position_embeddings(positions)
        x = x + self.token_type_embeddings.weight[0]  # one sentence: all tokens are of type 0
        return self.dropout(self.LayerNorm(x))


class Encoder(nn.Module):
    def __init__(self, size: BertSize) -> None:
        super().__init__()
        self.layer = nn.ModuleList(Layer(size) for _ in range(size.layers))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        for layer in self.layer:
            x = layer(x, mask)
        return x


class Layer(nn.Module):
    """norm(x + attention(x)), then norm(x + mlp(x))."""

    def __init__(self, size: BertSize) -> None:
        super().__init__()
        self.attention = Attention(size)
        self.intermediate = Dense(size.width, size.inner)
        self.output = Residual(size.inner, size)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = self.attention(x, mask)
        return self.output(F.gelu(self.intermediate.dense(x)), x)


class Attention(nn.Module):
    def __init__(self, size: BertSize) -> None:
        super().__init__()
        self.self = SelfAttention(size)
        self.output = Residual(size.width, size)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.output(self.self(x, mask), x)


class SelfAttention(nn.Module):
    def __init__(self, size: BertSize) -> None:
        super().__init__()
        self.heads, self.dropout = size.heads, size.dropout
        self.query = nn.Linear(size.width, size.width)
        self.key = nn.Linear(size.width, size.width)
        self.value = nn.Linear(size.width, size.width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        query, key, value = (
            part(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in (self.query, self.key, self.value)
        )
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(query, key, value, mask, dropout_p=dropout)
        return mixed.transpose(1, 2).flatten(2)


class Dense(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.dense = nn.Linear(inputs, outputs)


class Residual(nn.Module):
    """norm(x + dropout(dense(branch)))."""

    def __init__(self, inputs: int, size: BertSize) -> None:
        super().__init__()
        self.dense = nn.Linear(inputs, size.width)
        self.LayerNorm = nn.LayerNorm(size.width, eps=1e-12)
        self.dropout = nn.Dropout(size.dropout)

    def forward(self, branch: Tensor, x: Tensor) -> Tensor:
        return self.LayerNorm(x + self.dropout(self.dense(branch)))


class Pooler(nn.Module):
    def __init__(self, size: BertSize) -> None:
        super().__init__()
        self.dense = nn.Linear(size.width, size.width)

    def forward(self, states: Tensor) -> Tensor:
        return torch.tanh(self.dense(states[:, 0]))


def _init_bert(module: nn.Module) -> None:
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
