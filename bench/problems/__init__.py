"""What is trained: data, model, loss, batch size and budget, the same for every optimizer.

To add a problem, write a function that returns its `Problem`, and name it in `PROBLEMS`.
"""

from __future__ import annotations

from collections.abc import Callable

from bench.problems.digits import (
    DIGITS_STEPS,
    digits_autoencoder,
    digits_cnn,
    digits_mlp,
    digits_noisy,
    digits_resnet,
    digits_vit,
    digits_vit_few,
)
from bench.problems.plays import GPT_STEPS, plays_continued, plays_gpt, plays_long, plays_lstm
from bench.problems.regressions import burgers_pinn, tails_regression
from bench.problems.reviews import reviews_minilm, reviews_minilm_b8
from bench.training import Problem

__all__ = ["DIGITS_STEPS", "GPT_STEPS", "PROBLEMS", "digits_cnn", "plays_gpt"]

PROBLEMS: dict[str, Callable[..., Problem]] = {
    "digits-cnn": digits_cnn,
    "digits-mlp": digits_mlp,
    "plays-gpt": plays_gpt,
    "reviews-minilm": reviews_minilm,
    "digits-vit": digits_vit,
    "digits-vit-few": digits_vit_few,
    "digits-resnet": digits_resnet,
    "digits-noisy": digits_noisy,
    "digits-autoencoder": digits_autoencoder,
    "plays-lstm": plays_lstm,
    "plays-continued": plays_continued,
    "plays-long": plays_long,
    "reviews-minilm-b8": reviews_minilm_b8,
    "tails-regression": tails_regression,
    "burgers-pinn": burgers_pinn,
}
