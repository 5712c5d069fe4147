"""Chunks that begin beyond 2^31, 2^32 and 2^33 elements: no offset may be cut to 32 bits.

Nobody here has a tensor of that size.  So every address in the table lies that far before its
tensor, and every chunk begins that far behind its row's address.
"""

from __future__ import annotations

from array import array

import pytest
from kernel_cases import (
    DTYPES,
    GROUP,
    alignment_of,
    along,
    assert_same_run,
    make_state,
    make_weights,
    make_window,
)

from salsa_fused.kernels import backends
from salsa_fused.kernels.chunks import CHUNK_FIELDS, Chunks
from salsa_fused.kernels.rows import GRADIENT, MOMENTS, ROW_FIELDS, SAVED_AT, WEIGHT

from .conftest import ONE

pytestmark = pytest.mark.parametrize("backend", ONE, indirect=True)
FAR = [0, 2**31 + 16, 2**32 + 32, 2**33 + 48]
KERNELS = ("first_trial", "next_trial", "step", "trust_ratios", "alignment")


def moved(work, far, length):
    """The same work, `far` elements behind addresses that lie as far before."""
    rows = array("q", work.rows)
    size = work.dtype.itemsize
    for start in range(0, len(rows), ROW_FIELDS):
        for k in range(SAVED_AT):
            bytes_each = size if k in (WEIGHT, GRADIENT) else 4
            if rows[start + k]:
                rows[start + k] -= far * bytes_each
        rows[start + SAVED_AT] -= far
    assert MOMENTS == 2  # what comes before are weight and gradient
    window = work.window
    if window.addresses is not None and len(window.addresses):
        window = _Window(array("q", (a and a - far * size for a in window.addresses)))
    chunks = [_moved(part, far, length) for part in (work.chunks, work.all_chunks)]
    return work._replace(rows=rows, chunks=chunks[0], all_chunks=chunks[1], window=window, kept={})


class _Window:
    version = 0

    def __init__(self, addresses):
        self.addresses = addresses


def _moved(chunks, far, length):
    raw = array("q", chunks.raw)
    for i in range(0, len(raw), CHUNK_FIELDS):
        by = far // length if i < chunks.n_vector * CHUNK_FIELDS else far
        raw[i + 1] += by
        raw[i + 2] += by
    return Chunks(raw, chunks.n_vector)


@pytest.fixture(params=FAR, ids=["0", "2^31", "2^32", "2^33"])
def far_backend(request, backend, monkeypatch):
    """The backend, with tables that are moved."""
    served = backends.BACKENDS[-1]
    for name in KERNELS:
        kernel = getattr(served, name)

        def launch(work, *arguments, kernel=kernel):
            length = served.vector_bytes // work.dtype.itemsize
            return kernel(moved(work, request.param, length), *arguments)

        monkeypatch.setattr(served, name, launch)
    return backend


@pytest.mark.parametrize("direction", ["adam", "lamb", "ademamix"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_far_chunks(dtype, direction, far_backend):
    def make():
        weights = make_weights([2047, 9, 5003], dtype)
        return weights, None, make_state(weights)

    assert_same_run(along(direction, make), (far_backend, "native"))


@pytest.mark.parametrize("dtype", DTYPES)
def test_far_windows(dtype, far_backend):
    weights = make_weights([2047, 9, 5003], dtype)
    groups = [{**GROUP, "params": weights}]
    state = make_window(weights, make_state(weights))
    ours, theirs = (alignment_of(name, weights, groups, state) for name in (far_backend, "native"))
    assert ours == pytest.approx(theirs, rel=1e-12)
