"""Check the numbers that a user gives, and make them Python's own."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

from torch import Tensor


def number(name: str, value: Any) -> float:
    """Return the value as a float; raise ValueError where it is no number."""
    if not is_number(value):
        raise ValueError(f"{name} must be a number, got {value!r}")
    return float(value)


def is_number(value: Any) -> bool:
    """Return whether the value is one real number, and no truth value."""
    if isinstance(value, Tensor):
        return value.numel() == 1
    return isinstance(value, Real) and not isinstance(value, bool)


def is_integer(value: Any) -> bool:
    """Return whether the value is an integer, of Python's or NumPy's, and no truth value."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def check_integer(name: str, value: Any) -> None:
    """Raise ValueError unless the value is an integer and positive."""
    if not is_integer(value) or value < 1:
        raise ValueError(f"{name} must be an integer >= 1, got {value!r}")


def check_bound(name: str, value: Any, without: str) -> None:
    """Raise ValueError unless the value is positive, or None; ``without``: what None means."""
    if value is not None and not number(name, value) > 0.0:
        raise ValueError(f"{name} must be positive, or None for {without}, got {value!r}")


def check_choice(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    """Raise ValueError unless the value is one of the names that are allowed."""
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")


def as_plain_numbers(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values as Python's own numbers: ``torch.load(weights_only=True)`` reads them."""

    def plain(value: Any) -> Any:
        if isinstance(value, (tuple, list)):
            return tuple(plain(item) for item in value)
        if value is None or isinstance(value, (str, bool)):
            return value
        return int(value) if isinstance(value, Integral) else float(value)

    return {name: plain(value) for name, value in values.items()}


def foreign_numbers(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return those values that are NumPy's numbers, or tuples with such a number."""

    def is_foreign(value: Any) -> bool:
        items = value if isinstance(value, tuple) else (value,)
        plain = all(type(item) in (int, float, bool) for item in items)
        return not plain and all(isinstance(item, Real) for item in items)

    return {name: value for name, value in values.items() if is_foreign(value)}
