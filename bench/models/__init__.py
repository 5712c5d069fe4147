"""The networks of the benchmarks, in plain torch: no other library has to be there to run them.

Their sizes are the published ones (`tests/test_bench_models.py`), and BERT computes what the one in
`transformers` computes.
"""

from torch import nn


def parameter_count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
