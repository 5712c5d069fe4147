"""Small networks; two of them, for 8x8 images, have the layers that a line search trips over.

BatchNorm changes its buffers in every forward and dropout draws random numbers in every forward;
an optimizer that evaluates the loss several times per step has to get both right.
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn


class DigitsCNN(nn.Module):
    """Three convolutions with BatchNorm for 8x8 grey images: (batch, 1, 8, 8) -> (batch, 10)."""

    def __init__(self, width: int = 32, classes: int = 10) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *_convolution(1, width),
            nn.MaxPool2d(2),
            *_convolution(width, 2 * width),
            *_convolution(2 * width, 2 * width),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(2 * width, classes),
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


def _convolution(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    # The bias would be undone by the mean that BatchNorm subtracts.
    convolution = nn.Conv2d(inputs, outputs, kernel_size=3, padding=1, bias=False)
    return convolution, nn.BatchNorm2d(outputs), nn.ReLU()


class DigitsMLP(nn.Module):
    """Two hidden layers with dropout for 8x8 grey images: (batch, 1, 8, 8) -> (batch, 10)."""

    def __init__(self, width: int = 256, classes: int = 10, dropout: float = 0.2) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(),
            *_hidden(64, width, dropout),
            *_hidden(width, width, dropout),
            nn.Linear(width, classes),
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


def _hidden(inputs: int, outputs: int, dropout: float) -> tuple[nn.Module, ...]:
    return nn.Linear(inputs, outputs), nn.ReLU(), nn.Dropout(dropout)


def mlp(*widths: int, activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """Layers of these widths, inputs first, with an activation between any two of them."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), activation()]
    return nn.Sequential(*layers[:-1])


class Autoencoder(nn.Module):
    """Images through a few numbers: (batch, 1, 8, 8) -> grey levels from 0 to 1, the same shape."""

    def __init__(self, width: int = 128, code: int = 8) -> None:
        super().__init__()
        self.encoder = mlp(64, width, width // 2, code)
        self.decoder = mlp(code, width // 2, width, 64)

    def forward(self, images: Tensor) -> Tensor:
        return self.decoder(self.encoder(images.flatten(1))).sigmoid().view_as(images)
