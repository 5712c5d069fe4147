"""Training loops in the shape of public scripts, to put FusedSaLSa in the place of their optimizer.

Each is what a line search without a learning rate can lose in its first steps.
"""

from collections.abc import Callable

from bench.scripts import actor_critic, nano_gpt, tiny_vit, wgan_gp, word2vec, word_lm
from bench.scripts.script import Script

SCRIPTS: dict[str, Callable[..., Script]] = {
    "nano-gpt": nano_gpt.script,
    "word-lm": word_lm.script,
    "word2vec": word2vec.script,
    "wgan-gp": wgan_gp.script,
    "actor-critic": actor_critic.script,
    "tiny-vit": tiny_vit.script,
}
