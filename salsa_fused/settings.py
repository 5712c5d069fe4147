"""Named settings of :class:`~salsa_fused.FusedSaLSa`: ``FusedSaLSa(params, **settings.PAPER)``."""

from __future__ import annotations

from typing import Any

PAPER: dict[str, Any] = {
    "c": 0.3,
    "betas": (0.9, 0.999, 0.99),
    "backtrack": 0.9,
    "growth": 2 ** (1 / 500),
    "growth_per": "step",
    "init_step_size": 0.1,
    "schedule": "rate",
    "search_period": (1, 10),
    "look_back": False,
}
"""The constants of arXiv 2407.20650, sections II to III-E; a search starts from 0.1."""

SGD_SALSA: dict[str, Any] = {**PAPER, "direction": "sgd"}
"""SGD with the paper's search: no momentum, no moments."""

ADAM_SLS: dict[str, Any] = {**PAPER, "betas": (0.9, 0.999, 0.0), "c": 0.1, "search_period": 1}
"""SLS (Vaswani et al. 2019, 2021), a baseline of the paper: nothing smoothed, always searching."""

SGD_SLS: dict[str, Any] = {**ADAM_SLS, "direction": "sgd"}
"""The same along the gradient."""

LR_DISTRIBUTION: tuple[float, ...] = tuple(
    factor / 3.0 for factor in (1.0, 1.0, 0.3, 0.7, 1.0, 1.0, 1.0, 1.0, 1.0, 3.0)
)
"""Factors of arXiv 2404.01317, rounded and divided by the largest, so that what is applied is what
was tried: ``lr`` of the ten units that :func:`~salsa_fused.units.transformer_units` forms of eight
layers and more (fewer layers give fewer units, and need factors of their own).

>>> units = transformer_units(model)
>>> for unit, factor in zip(units, LR_DISTRIBUTION, strict=True): unit["lr"] = factor
"""
