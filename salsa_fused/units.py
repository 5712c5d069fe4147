"""Parameter groups that follow the depth of a network: the *units* of PLASLS (arXiv 2403.18506).

Plain dictionaries that any torch optimizer takes: for one step size per unit, for a distribution of
learning rates over the depth (:data:`~salsa_fused.settings.LR_DISTRIBUTION`), for weight decay.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.nn import Parameter

from .plain_numbers import is_integer

Named = tuple[str, Parameter]


def transformer_units(model: nn.Module, n: int = 10) -> list[dict[str, Any]]:
    """Form units of embeddings, n - 2 blocks of neighbouring layers, and the rest: the head.

    Twelve layers and ``n=10`` give the ten units of arXiv 2403.18506: embeddings; layers {0, 1},
    {2}, {3, 4}, {5}, {6, 7}, {8}, {9, 10}, {11}; head. In general layer ``i`` of ``L`` is in block
    ``i * (n - 2) // L``, and a model of fewer than n - 2 layers has one block per layer.

    The layers are the one ``nn.ModuleList`` of modules of one class that holds most parameters (of
    two stacks of similar size neither is taken). Embeddings are what lies outside the layers in an
    ``nn.Embedding`` or under a name with "embed" in it. Every parameter is in exactly one unit;
    a tied one counts where it is first registered, so a decoder tied to the word embeddings is in
    the embeddings. Frozen parameters are included: they may be unfrozen later.

    Args:
        model: a Hugging Face BERT-like encoder, or any other module built that way, wrapped or not.
        n: the number of units, at least 3.

    Returns:
        ``[{"params": [...], "name": "embeddings"}, {"params": [...], "name": "layers 0-1"}, ...]``
        in that order. A model without a head has no unit "head".

    Raises:
        TypeError: ``model`` is not an ``nn.Module``.
        ValueError: ``n`` is below 3, or the model has no layers or no embeddings that can be told.

    >>> FusedSaLSa(transformer_units(model), module=model)
    """
    _check_model(model)
    _check_count(n, 3, "embeddings, one block of layers, head")
    stack_name, stack = _stack_of_layers(model)
    blocks = min(n - 2, len(stack))
    block_of = {
        f"{stack_name}.{i}.": i * blocks // len(stack)  # a prefix of parameter names
        for i in range(len(stack))
    }
    units: list[list[Parameter]] = [[] for _ in range(blocks + 2)]
    embeddings = {
        name for name, module in model.named_modules() if isinstance(module, nn.Embedding)
    }
    for name, parameter in model.named_parameters():
        prefix = next((prefix for prefix in block_of if name.startswith(prefix)), None)
        if prefix is not None:
            units[1 + block_of[prefix]].append(parameter)
        elif "embed" in _beside(stack_name, name).lower() or name.rpartition(".")[0] in embeddings:
            units[0].append(parameter)
        else:
            units[-1].append(parameter)
    if not units[0]:
        raise ValueError(
            f"{type(model).__name__} has no embeddings outside its layers {stack_name!r} (no "
            'nn.Embedding, no name with "embed" in it); units of any model: '
            "units_by_depth(model, n)"
        )
    of_block = [[i for i, b in enumerate(block_of.values()) if b == k] for k in range(blocks)]
    names = ["embeddings", *map(_layer_name, of_block), "head"]
    return [{"params": unit, "name": name} for unit, name in zip(units, names) if unit]


def units_by_depth(model: nn.Module, n: int) -> list[dict[str, Any]]:
    """Form units of about equal numbers of parameter tensors, in the order of registration.

    Tensor ``i`` of ``T`` is in unit ``i * n // T``; shared parameters count once, where they are
    first registered, and frozen ones are included.

    Args:
        model: any module.
        n: the number of units, from 1 to the number of its parameter tensors.

    Returns:
        ``[{"params": [...], "name": "first.weight to last.bias"}, ...]``, no unit empty.

    Raises:
        TypeError: ``model`` is not an ``nn.Module``.
        ValueError: the model has no parameters, or ``n`` is below 1 or above their number.
    """
    _check_model(model)
    named = list(model.named_parameters())
    _check_count(n, 1, "a unit of everything")
    if n > len(named):
        raise ValueError(
            f"n must be at most {len(named)}, the number of parameter tensors of "
            f"{type(model).__name__}, got {n}: no unit may be empty"
        )
    units: list[list[Named]] = [[] for _ in range(n)]
    for i, entry in enumerate(named):
        units[i * n // len(named)].append(entry)
    return [
        {"params": [parameter for _, parameter in unit], "name": _span(unit[0][0], unit[-1][0])}
        for unit in units
    ]


def _stack_of_layers(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """Return name and modules of the encoder's layers."""
    stacks = sorted(_stacks(model), key=lambda stack: _size(stack[1]), reverse=True)
    if not stacks:
        raise ValueError(
            f"{type(model).__name__} has no recognisable layers (an nn.ModuleList of modules of "
            "one class, as encoder.layer of BERT); units of any model: units_by_depth(model, n)"
        )
    if len(stacks) > 1 and 2 * _size(stacks[1][1]) > _size(stacks[0][1]):
        raise ValueError(
            f"{type(model).__name__} has two stacks of layers, {stacks[0][0]!r} and "
            f"{stacks[1][0]!r}, and depth runs through one; units of any model: "
            "units_by_depth(model, n)"
        )
    return stacks[0]


def _stacks(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.ModuleList]]:
    """Find the outermost lists of modules of one class that have parameters."""
    for child_name, child in module.named_children():
        name = f"{prefix}{child_name}"
        alike = len({type(layer) for layer in child.children()}) == 1
        if isinstance(child, nn.ModuleList) and alike and _size(child) > 0:
            yield name, child
        else:
            yield from _stacks(child, f"{name}.")


def _beside(stack: str, name: str) -> str:
    """Return the parameter's name without the modules that hold the layers, too."""
    parts = name.split(".")
    for ancestor in stack.split("."):
        if parts[0] != ancestor:
            break
        parts = parts[1:]
    return ".".join(parts)


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _layer_name(layers: list[int]) -> str:
    return f"layer {layers[0]}" if len(layers) == 1 else f"layers {layers[0]}-{layers[-1]}"


def _span(first: str, last: str) -> str:
    return first if first == last else f"{first} to {last}"


def _check_model(model: Any) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"model must be an nn.Module, got {type(model).__name__}: units follow its structure"
        )
    if next(model.parameters(), None) is None:
        raise ValueError(f"model ({type(model).__name__}) has no parameters to form units of")


def _check_count(n: Any, lowest: int, what: str) -> None:
    if not is_integer(n) or n < lowest:
        raise ValueError(f"n must be an integer of at least {lowest} ({what}), got {n!r}")
