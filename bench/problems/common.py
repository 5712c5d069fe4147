"""What every problem needs."""

from __future__ import annotations


def checkpoints(plain_steps: int, most: int = 15) -> int:
    """Enough for a curve; fewer where evaluations would take longer than the training."""
    return max(1, min(most, plain_steps // 10))
