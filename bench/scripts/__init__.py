"""Training loops in the shape of public scripts, to put FusedSaLSa in the place of their optimizer.

Each is what a line search without a learning rate can lose in its first steps.
"""

from collections.abc import Callable

from bench.scripts.script import Script
from bench.scripts.supervised import nano_gpt, tiny_vit, word2vec, word_lm
from bench.scripts.wgan_gp import wgan_gp

SCRIPTS: dict[str, Callable[..., Script]] = {
    "nano-gpt": nano_gpt,
    "word-lm": word_lm,
    "word2vec": word2vec,
    "wgan-gp": wgan_gp,
    "tiny-vit": tiny_vit,
}
