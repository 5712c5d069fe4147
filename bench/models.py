"""Small networks, among them those with the layers that a line search trips over.

BatchNorm changes its buffers in every forward and dropout draws random numbers in every forward;
an optimizer that evaluates the loss several times per step has to get both right.
"""

from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn


def mlp(*widths: int, activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """Layers of these widths, inputs first, with an activation between any two of them."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), activation()]
    return nn.Sequential(*layers[:-1])


def digits_mlp(width: int = 256, dropout: float = 0.2) -> nn.Sequential:
    """Two hidden layers with dropout for 8x8 grey images: (batch, 1, 8, 8) -> (batch, 10)."""
    return nn.Sequential(
        nn.Flatten(),
        *(nn.Linear(64, width), nn.ReLU(), nn.Dropout(dropout)),
        *(nn.Linear(width, width), nn.ReLU(), nn.Dropout(dropout)),
        nn.Linear(width, 10),
    )


def digits_cnn() -> nn.Sequential:
    """Three convolutions with BatchNorm for 8x8 grey images: (batch, 1, 8, 8) -> (batch, 10)."""

    def convolution(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
        return *_convolution(inputs, outputs), nn.ReLU()

    layers = [*convolution(1, 32), nn.MaxPool2d(2), *convolution(32, 64), *convolution(64, 64)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def autoencoder() -> nn.Sequential:
    """Images through eight numbers: (batch, 1, 8, 8) -> grey levels from 0 to 1, the same shape."""
    layers = nn.Flatten(), mlp(64, 128, 64, 8), mlp(8, 64, 128, 64), nn.Sigmoid()
    return nn.Sequential(*layers, nn.Unflatten(1, (1, 8, 8)))


class PlainResNet(nn.Module):
    """Residual network without any norm: (batch, 1, 8, 8) -> (batch, 10).

    Nothing forgives a step that is too long. Every branch is scaled by 1 / sqrt(blocks), so that
    the sum of all of them keeps its size.
    """

    def __init__(self, blocks: int = 4, width: int = 24) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1)

        def half() -> tuple[nn.Module, nn.Module]:
            return nn.ReLU(), nn.Conv2d(width, width, 3, padding=1)

        self.branches = nn.ModuleList(nn.Sequential(*half(), *half()) for _ in range(blocks))
        self.head = nn.Linear(width, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        for index, branch in enumerate(self.branches):
            x = x + len(self.branches) ** -0.5 * branch(x)
            if index % 2:
                x = nn.functional.max_pool2d(x, 2)
        return self.head(x.relu().mean((2, 3)))


class ResNet(nn.Module):
    """Residual network with BatchNorm (He et al. 2015): images -> (batch, classes).

    The stem and the sizes are those for small images: 3x3 convolutions, each stage but the first
    halves height and width and doubles the channels.
    """

    def __init__(
        self, channels: int = 1, width: int = 16, blocks: tuple[int, ...] = (1, 1, 1),
        classes: int = 10,
    ) -> None:  # fmt: skip
        super().__init__()
        layers: list[nn.Module] = [*_convolution(channels, width), nn.ReLU()]
        inputs = width
        for stage, count in enumerate(blocks):
            outputs = width << stage
            for index in range(count):
                layers.append(_Block(inputs, outputs, 2 if stage and not index else 1))
                inputs = outputs
        layers += nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes)
        self.layers = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        first, second = _convolution(inputs, outputs, stride), _convolution(outputs, outputs)
        self.branch = nn.Sequential(*first, nn.ReLU(), *second)
        same = inputs == outputs
        shortcut = () if same else _convolution(inputs, outputs, stride, size=1)
        self.shortcut = nn.Sequential(*shortcut)

    def forward(self, x: Tensor) -> Tensor:
        return (self.branch(x) + self.shortcut(x)).relu()


def _convolution(
    inputs: int, outputs: int, stride: int = 1, size: int = 3
) -> tuple[nn.Module, nn.Module]:
    # The bias would be undone by the mean that BatchNorm subtracts.
    layer = nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)
    return layer, nn.BatchNorm2d(outputs)


class ViT(nn.Module):
    """Small vision transformer (arXiv 2010.11929), pre-norm, no dropout; the mean of all patches.

    Grey images (batch, 1, 8, 8) -> logits (batch, classes).
    """

    def __init__(self, classes: int = 10, patch: int = 2, layers: int = 3, width: int = 32) -> None:
        super().__init__()
        self.embed = nn.Conv2d(1, width, patch, stride=patch)
        self.positions = nn.Parameter(0.02 * torch.randn((8 // patch) ** 2, width))
        how: dict[str, Any] = {"batch_first": True, "norm_first": True, "activation": "gelu"}
        layer = partial(nn.TransformerEncoderLayer, width, 4, 4 * width, dropout=0.0, **how)
        self.layers = nn.ModuleList(layer() for _ in range(layers))  # units are formed of them
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.embed(images).flatten(2).transpose(1, 2) + self.positions
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x).mean(1))


class CharLSTM(nn.Module):
    """Tokens (batch, time) -> logits (batch, time, vocabulary); every row begins with zeros."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, 32)
        self.lstm = nn.LSTM(32, 96, batch_first=True)
        self.head = nn.Linear(96, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        states, _ = self.lstm(self.tokens(tokens))
        return self.head(states)


class BurgersNet(nn.Module):
    """Physics-informed network (Raissi et al. 2019) for Burgers' equation u_t + u u_x = nu u_xx.

    Rows (x, t, inside) -> the equation's residual where `inside` is 1, and u where it is 0. So one
    mean square of outputs and targets is the loss of both: the equation inside of the domain, where
    the target is 0, and the values on its edge.
    """

    def __init__(self, viscosity: float, width: int = 32, layers: int = 3) -> None:
        super().__init__()
        self.viscosity = viscosity
        self.layers = mlp(2, *[width] * layers, 1, activation=nn.Tanh)

    def forward(self, rows: Tensor) -> Tensor:
        points, inside = rows.split((2, 1), dim=1)
        wanted = torch.is_grad_enabled()  # not in a line search's trial, nor in an evaluation
        with torch.enable_grad():  # but the equation's own derivatives are needed in both
            points = points.detach().requires_grad_()
            u = self.layers(points)
            u_x, u_t = _derivative(u, points, keep=True).unbind(1)
            u_xx = _derivative(u_x, points, keep=wanted)[:, 0]
            residual = u_t + u[:, 0] * u_x - self.viscosity * u_xx
            outputs = torch.where(inside > 0, residual[:, None], u)
        return outputs if wanted else outputs.detach()


def _derivative(values: Tensor, points: Tensor, keep: bool) -> Tensor:
    """Of each row's value by its point; `keep`: it can be differentiated again."""
    (found,) = torch.autograd.grad(values.sum(), points, create_graph=keep, retain_graph=True)
    return found
