"""An LSTM for characters."""

from __future__ import annotations

from torch import Tensor, nn


class CharLSTM(nn.Module):
    """Tokens (batch, time) -> logits (batch, time, vocabulary); every row begins with zeros."""

    def __init__(self, vocabulary: int, embedding: int = 32, width: int = 96) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, embedding)
        self.lstm = nn.LSTM(embedding, width, batch_first=True)
        self.head = nn.Linear(width, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        states, _ = self.lstm(self.tokens(tokens))
        return self.head(states)
