"""`python -m bench.dtensors` measures."""

from __future__ import annotations

import pytest
import torch

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available(), reason="torch has no distributed package"
)


def test_it_measures(capsys):
    from bench import dtensors

    dtensors.main(rounds=3)
    printed = capsys.readouterr().out
    assert printed.count("FusedSaLSa") == 2 and "200 DTensors" in printed
    assert not torch.distributed.is_initialized()
