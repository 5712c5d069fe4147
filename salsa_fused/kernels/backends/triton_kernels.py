"""The kernels in Triton: each is one launch for the whole model, written for any direction.

A program works on one chunk.  Rows and chunks are those of ``csrc/rows.h``, in the device's memory;
the arithmetic stands in :mod:`.triton_directions`.

Chunks come in two kinds, told apart by their place in the list.  The first ``n_vector`` lie on 16
bytes in all of their tensors and are counted in vectors of ``VECTOR`` elements: with the bounds
multiplied here, and the hint on each pointer, the compiler makes 128-bit accesses of them.  The
rest (tails, unaligned views) is counted in elements and accessed one by one.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .. import chunks as chunk_layout
from .. import rows as row_layout
from .triton_directions import (
    SCALAR_FIELDS,
    SIZE,
    SLOPE_SCALE,
    STEP,
    decayed,
    n_kept,
    n_tried,
    tried,
    update,
)
from .triton_rounding import key_of, random_bits, store, store_at_random

WEIGHT = tl.constexpr(row_layout.WEIGHT)
GRADIENT = tl.constexpr(row_layout.GRADIENT)
MOMENTS = tl.constexpr(row_layout.MOMENTS)
SAVED_AT = tl.constexpr(row_layout.SAVED_AT)
SCALARS_AT = tl.constexpr(row_layout.SCALARS_AT)
MASTER_AT = tl.constexpr(row_layout.MASTER_AT)
NUMBER_AT = tl.constexpr(row_layout.NUMBER_AT)
ROW_FIELDS = tl.constexpr(row_layout.ROW_FIELDS)
CHUNK_FIELDS = tl.constexpr(chunk_layout.CHUNK_FIELDS)

SINGLES = tl.constexpr(2)  # elements a thread holds of an unaligned chunk: more cost registers

DTYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


@triton.jit
def probe(pointer):
    """The least that can be launched."""
    tl.store(pointer, 1)


# -- the table --------------------------------------------------------------------------------


@triton.jit
def pointer_to(tensor, start, DTYPE: tl.constexpr, UNIT: tl.constexpr):
    """Where a chunk begins in a tensor: on 16 bytes where it is counted in vectors."""
    pointer = tensor.to(tl.pointer_type(DTYPE)) + start
    if UNIT > 1:
        pointer = tl.multiple_of(pointer, 16)
    return pointer


@triton.constexpr_function
def moment_dtype(formats: int, k: int):
    return tl.bfloat16 if formats & (2 << k) else tl.float32


@triton.jit
def scalars_of(scalars, ratios, row, number):
    """A row's; its ratio (LAMB's) scales what is tried or applied, and so the slope."""
    at = scalars + tl.load(row + SCALARS_AT) * SCALAR_FIELDS
    c = ()
    for k in tl.static_range(SCALAR_FIELDS):
        x = tl.load(at + k)
        if ratios is not None and (k == SIZE or k == SLOPE_SCALE):  # noqa: SIM109
            x *= tl.load(ratios + number)
        c += (x,)
    return c


# -- going over the chunks --------------------------------------------------------------------


@triton.jit
def over_chunk(
    VISIT: tl.constexpr, N_MOMENTS: tl.constexpr, N_SUMS: tl.constexpr, rows, chunks, scalars,
    ratios, source, target, starts, skip, partials, DTYPE: tl.constexpr, UNIT: tl.constexpr,
    BLOCK: tl.constexpr, DIRECTION: tl.constexpr, FORMATS: tl.constexpr,
):  # fmt: skip
    """Call ``VISIT`` for every ``BLOCK`` elements of this program's chunk; store what it adds up.

    source, target: saved weights that are read in place of the weights, or written; starts: where
    the weights lie as the window began.  What a kernel does without is None, or 0 of them.
    FORMATS: ``Storage.code``; masters take the place of saved weights.
    """
    chunk = chunks + tl.program_id(0) * CHUNK_FIELDS
    number = tl.load(chunk)
    row = rows + number * ROW_FIELDS
    start = tl.load(chunk + 1)
    size = (tl.load(chunk + 2) - start).to(tl.int32) * UNIT
    start *= UNIT
    size = tl.where(tl.load(row + GRADIENT) == 0, 0, size)
    if skip is not None:
        size = tl.where(tl.load(skip) != 0.0, 0, size)  # so is what is not a number
    w_at = pointer_to(tl.load(row + WEIGHT), start, DTYPE, UNIT)
    g_at = pointer_to(tl.load(row + GRADIENT), start, DTYPE, UNIT)
    from_at, other_at = w_at, w_at
    if FORMATS & 1:
        from_at = pointer_to(tl.load(row + MASTER_AT), start, tl.float32, UNIT)
        other_at = from_at
    elif source is not None:
        from_at = pointer_to(source, tl.load(row + SAVED_AT) + start, DTYPE, UNIT)
    if target is not None:
        other_at = pointer_to(target, tl.load(row + SAVED_AT) + start, DTYPE, UNIT)
    if starts is not None:
        address = tl.load(starts + number)
        size = tl.where(address == 0, 0, size)
        other_at = pointer_to(address, start, tl.float32 if FORMATS & 1 else DTYPE, UNIT)
    moments_at = ()
    for k in tl.static_range(N_MOMENTS):
        moment = tl.load(row + MOMENTS + k)
        moments_at += (pointer_to(moment, start, moment_dtype(FORMATS, k), UNIT),)
    c = ()
    if scalars is not None:
        c = scalars_of(scalars, ratios, row, number)
    key = number  # which nothing reads where no moment is rounded at random
    if FORMATS > 1:
        key = key_of(tl.load(row + NUMBER_AT), c[STEP])
    sums = ()  # side by side, one for each thread: in the same order in every run
    for _ in tl.static_range(N_SUMS):
        sums += (tl.zeros([BLOCK // UNIT], tl.float64),)
    lanes = tl.arange(0, BLOCK)
    base = 0
    while base < size:
        i = base + lanes
        mask = i < size
        stored = tl.load(from_at + i, mask=mask)
        g = tl.load(g_at + i, mask=mask).to(tl.float32)
        m = ()
        for k in tl.static_range(N_MOMENTS):
            m += (tl.load(moments_at[k] + i, mask=mask).to(tl.float32),)
        at = (w_at, other_at, moments_at, i, mask, start, key)
        sums = VISIT(at, stored, g, m, c, sums, DTYPE, DIRECTION, FORMATS)
        base += BLOCK
    for k in tl.static_range(N_SUMS):
        total = tl.sum(sums[k], axis=0)
        if N_SUMS == 1 and scalars is not None:  # the slope
            total *= c[SLOPE_SCALE].to(tl.float64)
        tl.store(partials + N_SUMS * tl.program_id(0) + k, total)


@triton.jit
def over_chunks(
    VISIT: tl.constexpr, N_MOMENTS: tl.constexpr, N_SUMS: tl.constexpr, rows, chunks, scalars,
    ratios, source, target, starts, skip, partials, n_vector, DTYPE: tl.constexpr,
    VECTOR: tl.constexpr, THREADS: tl.constexpr, DIRECTION: tl.constexpr, FORMATS: tl.constexpr,
):  # fmt: skip
    if tl.program_id(0) < n_vector:
        over_chunk(
            VISIT, N_MOMENTS, N_SUMS, rows, chunks, scalars, ratios, source, target, starts, skip,
            partials, DTYPE, VECTOR, VECTOR * THREADS, DIRECTION, FORMATS,
        )  # fmt: skip
    else:
        over_chunk(
            VISIT, N_MOMENTS, N_SUMS, rows, chunks, scalars, ratios, source, target, starts, skip,
            partials, DTYPE, 1, SINGLES * THREADS, DIRECTION, FORMATS,
        )  # fmt: skip


@triton.jit
def added(sums, x, mask):
    """The sums, with these numbers as far as each thread holds them."""
    wide = tl.where(mask, x, 0.0).to(tl.float64)
    return sums + tl.sum(tl.reshape(wide, [sums.shape[0], x.shape[0] // sums.shape[0]]), axis=1)


# -- first_trial: reads w, g, moments; writes saved, w and a partial slope -----------------------


@triton.jit
def visit_first(
    at, stored, g, m, c, sums, DTYPE: tl.constexpr, DIRECTION: tl.constexpr, FORMATS: tl.constexpr,
):  # fmt: skip
    w_at, saved_at, _, i, mask, _, _ = at
    if not FORMATS & 1:
        tl.store(saved_at + i, stored, mask=mask)
    d = tried(g, m, c, DIRECTION)
    store(w_at + i, stored.to(tl.float32) - c[SIZE] * d, mask, DTYPE)
    return (added(sums[0], g * d, mask),)


@triton.jit(do_not_specialize=["n_vector"])
def first_trial(
    rows, chunks, scalars, saved, ratios, partials, n_vector, DTYPE: tl.constexpr,
    VECTOR: tl.constexpr, THREADS: tl.constexpr, DIRECTION: tl.constexpr, FORMATS: tl.constexpr,
):  # fmt: skip
    over_chunks(
        visit_first, n_tried(DIRECTION), 1, rows, chunks, scalars, ratios, None, saved, None,
        None, partials, n_vector, DTYPE, VECTOR, THREADS, DIRECTION, FORMATS,
    )  # fmt: skip


# -- next_trial: reads saved, g, moments; writes w -----------------------------------------------


@triton.jit
def visit_next(
    at, stored, g, m, c, sums, DTYPE: tl.constexpr, DIRECTION: tl.constexpr, FORMATS: tl.constexpr,
):  # fmt: skip
    w_at, _, _, i, mask, _, _ = at
    w = stored.to(tl.float32)
    store(w_at + i, w - c[SIZE] * tried(g, m, c, DIRECTION), mask, DTYPE)
    return sums


@triton.jit(do_not_specialize=["n_vector"])
def next_trial(
    rows, chunks, scalars, saved, ratios, n_vector, DTYPE: tl.constexpr, VECTOR: tl.constexpr,
    THREADS: tl.constexpr, DIRECTION: tl.constexpr, FORMATS: tl.constexpr,
):  # fmt: skip
    over_chunks(
        visit_next, n_tried(DIRECTION), 0, rows, chunks, scalars, ratios, saved, None, None, None,
        None, n_vector, DTYPE, VECTOR, THREADS, DIRECTION, FORMATS,
    )  # fmt: skip


# -- step: reads saved or w, and g, moments; writes moments, w -----------------------------------


@triton.jit
def visit_step(
    at, stored, g, m, c, sums, DTYPE: tl.constexpr, DIRECTION: tl.constexpr, FORMATS: tl.constexpr,
):  # fmt: skip
    w_at, master_at, moments_at, i, mask, start, key = at
    w = stored.to(tl.float32)
    u, m = update(g, m, c, DIRECTION)
    if FORMATS > 1:
        random = random_bits(key, start + i)
    for k in tl.static_range(n_kept(DIRECTION)):
        if FORMATS & (2 << k):
            store_at_random(moments_at[k] + i, m[k], mask, random, k)
        else:
            tl.store(moments_at[k] + i, m[k], mask=mask)
    after = w - c[SIZE] * decayed(u, w, c)
    if FORMATS & 1:
        tl.store(master_at + i, after, mask=mask)
    store(w_at + i, after, mask, DTYPE)
    return sums


@triton.jit(do_not_specialize=["n_vector"])
def step(
    rows, chunks, scalars, saved, ratios, skip, n_vector, DTYPE: tl.constexpr,
    VECTOR: tl.constexpr, THREADS: tl.constexpr, DIRECTION: tl.constexpr, FORMATS: tl.constexpr,
):  # fmt: skip
    over_chunks(
        visit_step, n_kept(DIRECTION), 0, rows, chunks, scalars, ratios, saved, None, None, skip,
        None, n_vector, DTYPE, VECTOR, THREADS, DIRECTION, FORMATS,
    )  # fmt: skip


# -- LAMB: norms reads w, g, moments and adds each chunk up; trust_ratios adds the chunks of a row -


@triton.jit
def visit_norms(
    at, stored, g, m, c, sums, DTYPE: tl.constexpr, DIRECTION: tl.constexpr, FORMATS: tl.constexpr,
):  # fmt: skip
    mask = at[4]
    w = stored.to(tl.float32)
    u, _ = update(g, m, c, DIRECTION)
    w_wide, u_wide = w.to(tl.float64), decayed(u, w, c).to(tl.float64)  # their squares are exact
    return added(sums[0], w_wide * w_wide, mask), added(sums[1], u_wide * u_wide, mask)


@triton.jit(do_not_specialize=["n_vector"])
def norms(
    rows, chunks, scalars, partials, n_vector, DTYPE: tl.constexpr, VECTOR: tl.constexpr,
    THREADS: tl.constexpr, DIRECTION: tl.constexpr, FORMATS: tl.constexpr,
):  # fmt: skip
    over_chunks(
        visit_norms, n_kept(DIRECTION), 2, rows, chunks, scalars, None, None, None, None, None,
        partials, n_vector, DTYPE, VECTOR, THREADS, DIRECTION, FORMATS,
    )  # fmt: skip


@triton.jit(do_not_specialize=["clip"])
def trust_ratios(partials, chunk_ranges, clip, ratios, THREADS: tl.constexpr):
    row = tl.program_id(0)
    lanes = tl.arange(0, THREADS)
    w_sums = tl.zeros([THREADS], tl.float64)
    u_sums = tl.zeros([THREADS], tl.float64)
    kind = 0
    while kind < 2:  # its vector chunks, and the others
        base = tl.load(chunk_ranges + 4 * row + 2 * kind)
        end = tl.load(chunk_ranges + 4 * row + 2 * kind + 1)
        while base < end:
            k = base + lanes
            w_sums += tl.load(partials + 2 * k, mask=k < end, other=0.0)
            u_sums += tl.load(partials + 2 * k + 1, mask=k < end, other=0.0)
            base += THREADS
        kind += 1
    w_squares = tl.sum(w_sums, axis=0)
    u_squares = tl.sum(u_sums, axis=0)
    ratio = (tl.sqrt(w_squares) / tl.sqrt(u_squares)).to(tl.float32)
    ratio = tl.where(ratio > clip, clip, ratio)
    ratio = tl.where((w_squares == 0.0) | (u_squares == 0.0), 1.0, ratio)
    tl.store(ratios + row, ratio)


# -- alignment: reads w, g and the weights as a window began; writes a partial sum ----------------


@triton.jit
def visit_alignment(
    at, stored, g, m, c, sums, DTYPE: tl.constexpr, DIRECTION: tl.constexpr, FORMATS: tl.constexpr,
):  # fmt: skip
    _, start_at, _, i, mask, _, _ = at
    w = stored.to(tl.float32)
    start = tl.load(start_at + i, mask=mask).to(tl.float32)
    return (added(sums[0], g * (start - w), mask),)


@triton.jit(do_not_specialize=["n_vector"])
def alignment(
    rows, chunks, starts, partials, n_vector, DTYPE: tl.constexpr, VECTOR: tl.constexpr,
    THREADS: tl.constexpr, FORMATS: tl.constexpr,
):  # fmt: skip
    over_chunks(
        visit_alignment, 0, 1, rows, chunks, None, None, None, None, starts, None, partials,
        n_vector, DTYPE, VECTOR, THREADS, None, FORMATS,
    )  # fmt: skip
