"""ResNets (He et al. 2015, arXiv 1512.03385): the published depths, for ImageNet and for CIFAR."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

Blocks = tuple[int, int, int, int]


class ResNet(nn.Module):
    """Images (batch, 3, height, width) -> (batch, classes)."""

    def __init__(
        self, block: type[Basic | Bottleneck], blocks: Blocks, classes: int, *, cifar: bool = False
    ) -> None:
        super().__init__()
        if cifar:  # small images: no stride and no pooling at the start
            convolution = nn.Conv2d(3, 64, 3, padding=1, bias=False)
            self.stem = nn.Sequential(convolution, nn.BatchNorm2d(64), nn.ReLU())
        else:
            self.stem = nn.Sequential(
                nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False), nn.BatchNorm2d(64),
                nn.ReLU(), nn.MaxPool2d(3, stride=2, padding=1),
            )  # fmt: skip
        layers: list[nn.Module] = []
        inputs = 64
        for stage, count in enumerate(blocks):
            for index in range(count):
                stride = 2 if stage > 0 and index == 0 else 1
                layers.append(block(inputs, 64 << stage, stride))
                inputs = block.expansion * (64 << stage)
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(inputs, classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.layers(self.stem(images)).mean((2, 3)))


class Basic(nn.Module):
    """Two 3x3 convolutions beside the identity."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            *_convolution(inputs, width, 3, stride), nn.ReLU(), *_convolution(width, width, 3)
        )
        self.shortcut = _shortcut(inputs, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.branch(x) + self.shortcut(x))


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 beside the identity; the stride is the 3x3's, as in torchvision."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            *_convolution(inputs, width, 1), nn.ReLU(), *_convolution(width, width, 3, stride),
            nn.ReLU(), *_convolution(width, 4 * width, 1),
        )  # fmt: skip
        self.shortcut = _shortcut(inputs, 4 * width, stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.branch(x) + self.shortcut(x))


def _convolution(inputs: int, outputs: int, size: int, stride: int = 1) -> tuple[nn.Module, ...]:
    convolution = nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return convolution, nn.BatchNorm2d(outputs)


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Module:
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    return nn.Sequential(*_convolution(inputs, outputs, 1, stride))


def resnet18(classes: int = 1000, *, cifar: bool = False) -> ResNet:
    return ResNet(Basic, (2, 2, 2, 2), classes, cifar=cifar)


def resnet34(classes: int = 1000, *, cifar: bool = False) -> ResNet:
    return ResNet(Basic, (3, 4, 6, 3), classes, cifar=cifar)


def resnet50(classes: int = 1000) -> ResNet:
    return ResNet(Bottleneck, (3, 4, 6, 3), classes)
