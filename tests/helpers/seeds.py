"""Seeds for torch's random streams, at little cost."""

from __future__ import annotations

import torch

GPU = torch.cuda.is_available()


def seed_torch(number: int) -> None:
    """Seed the CPU's random stream, and those of GPUs where there are some.

    Without a GPU, torch.manual_seed formats and keeps a traceback at every call for each kind of
    device: milliseconds within pytest.
    """
    if GPU:
        torch.manual_seed(number)
    else:
        torch.default_generator.manual_seed(number)
