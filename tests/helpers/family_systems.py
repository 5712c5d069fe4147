"""The systems of the family beside Adam with SaLSa: the settings of each, by name."""

from __future__ import annotations

from salsa_fused import settings

SYSTEMS = {
    "SGD+SaLSa": settings.SGD_SALSA,
    "SGD, defaults": {"direction": "sgd"},
    "Adam+SLS": settings.ADAM_SLS,
    "SGD+SLS": settings.SGD_SLS,
    "PLASLS": {"units": "groups"},
    "PLASLS, the paper's constants": {**settings.PAPER, "units": "groups"},
    "PLASLS, SGD": {"units": "groups", "direction": "sgd"},
    "LAMB": {"direction": "lamb", "trust_clip": None},
    "LAMBC": {"direction": "lamb", "trust_clip": 0.3},
    "LAMBC, no look back": {"direction": "lamb", "trust_clip": 0.3, "look_back": False},
    "LAMBC, clipped": {"direction": "lamb", "max_grad_norm": 0.5},
    "LAMBC, total_steps": {"direction": "lamb", "total_steps": 90},
    "SGD, total_steps": {"direction": "sgd", "total_steps": 90},
    "PLASLS, total_steps": {"units": "groups", "total_steps": 90},
    "LAMBC, the paper's constants": {**settings.PAPER, "direction": "lamb"},
    "Lion": {"direction": "lion"},
    "Lion, no look back": {"direction": "lion", "look_back": False},
    "Lion, PLASLS": {"direction": "lion", "units": "groups"},
    "AdEMAMix": {"direction": "ademamix", "alpha": 2.0, "slow_beta": 0.99},
    "AdEMAMix, total_steps": {"direction": "ademamix", "total_steps": 200},
    "AdEMAMix, PLASLS": {"direction": "ademamix", "units": "groups"},
    "LAMBC, PLASLS": {"direction": "lamb", "units": "groups"},
}
