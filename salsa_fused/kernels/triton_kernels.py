"""The kernels in Triton: each is one launch for the whole model.

A program works on one chunk.  Rows, chunks and classes are those of ``csrc/adam.h``, in the
device's memory; so is the order of operations, without contraction into fma and with correctly
rounded division and square root: the bits are those of every other backend.

Chunks come in two kinds, told apart by their place in the list.  The first ``n_vector`` lie on 16
bytes in all of their tensors and are counted in vectors of ``VECTOR`` elements: with the bounds
multiplied here, and the hint on each pointer, the compiler makes 128-bit accesses of them.  The
rest (tails, unaligned views) is counted in elements and accessed one by one.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from . import launch
from .chunks import CHUNK_FIELDS as FIELDS_OF_CHUNK
from .interface import AdamClass

WEIGHT = tl.constexpr(launch.WEIGHT)
GRADIENT = tl.constexpr(launch.GRADIENT)
EXP_AVG = tl.constexpr(launch.EXP_AVG)
EXP_AVG_SQ = tl.constexpr(launch.EXP_AVG_SQ)
SAVED_AT = tl.constexpr(launch.SAVED_AT)
CLASS = tl.constexpr(launch.CLASS)
ROW_FIELDS = tl.constexpr(launch.ROW_FIELDS)
CHUNK_FIELDS = tl.constexpr(FIELDS_OF_CHUNK)
CLASS_FIELDS = tl.constexpr(len(AdamClass._fields))

SCALARS = tl.constexpr(2)  # elements a thread holds of an unaligned chunk: more cost registers

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)  # on the CPU, without a compiler


DTYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


@triton.jit
def probe(pointer):
    """The least that can be launched."""
    tl.store(pointer, 1)


# -- the arithmetic, as in csrc/adam.h --------------------------------------------------------


@triton.jit
def second_moment(v, g, beta2, one_minus_beta2):
    return beta2 * v + (one_minus_beta2 * g) * g


@triton.jit
def preconditioner(v, inv_root_bias2, eps):
    return tl.sqrt_rn(v) * inv_root_bias2 + eps


@triton.jit
def trial_direction(g, v_before, beta2, one_minus_beta2, inv_root_bias2, eps):
    v = second_moment(v_before, g, beta2, one_minus_beta2)
    return tl.div_rn(g, preconditioner(v, inv_root_bias2, eps))


# -- the table --------------------------------------------------------------------------------


@triton.jit
def chunk_bounds(rows, chunks, number, UNIT: tl.constexpr):
    """The row of a chunk, its first element, and how many there are (0 without a gradient)."""
    chunk = chunks + number * CHUNK_FIELDS
    row = rows + tl.load(chunk) * ROW_FIELDS
    start = tl.load(chunk + 1)
    size = (tl.load(chunk + 2) - start).to(tl.int32) * UNIT
    size = tl.where(tl.load(row + GRADIENT) == 0, 0, size)
    return row, start * UNIT, size


@triton.jit
def pointer_to(address, start, DTYPE: tl.constexpr, UNIT: tl.constexpr):
    """Where a chunk begins in a tensor; aligned where it is counted in vectors."""
    pointer = address.to(tl.pointer_type(DTYPE)) + start
    if UNIT > 1:
        pointer = tl.multiple_of(pointer, 16)
    return pointer


@triton.jit
def saved_pointer(saved, row, start, UNIT: tl.constexpr):
    pointer = saved + (tl.load(row + SAVED_AT) + start)
    if UNIT > 1:
        pointer = tl.multiple_of(pointer, 16)
    return pointer


@triton.jit
def scalars_of(classes, row):
    c = classes + tl.load(row + CLASS) * CLASS_FIELDS
    return (
        tl.load(c),  # beta1
        tl.load(c + 1),  # 1 - beta1
        tl.load(c + 2),  # beta2
        tl.load(c + 3),  # 1 - beta2
        tl.load(c + 4),  # 1 / (1 - beta1^t)
        tl.load(c + 5),  # 1 / sqrt(1 - beta2^t)
        tl.load(c + 6),  # eps
        tl.load(c + 7),  # weight decay
        tl.load(c + 8),  # step
        tl.load(c + 9),  # slope scale
    )


@triton.jit
def ratio_of(ratios, chunks, number):
    """LAMB's, of the row of a chunk."""
    return tl.load(ratios + tl.load(chunks + number * CHUNK_FIELDS))


@triton.jit
def in_threads(wide, BLOCK: tl.constexpr, UNIT: tl.constexpr):
    """Added up as far as one thread holds them."""
    return tl.sum(tl.reshape(wide, [BLOCK // UNIT, UNIT]), axis=1)


@triton.jit
def store(pointer, x, mask, DTYPE: tl.constexpr):
    """Round to nearest, ties to even."""
    if INTERPRETED and tl.bfloat16 == DTYPE:  # the interpreter truncates
        bits = x.to(tl.uint32, bitcast=True)
        nearest = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16 << 16).to(tl.float32, bitcast=True)
        x = tl.where(x == x, nearest, x)
    tl.store(pointer, x.to(DTYPE), mask=mask)


# -- first_trial: reads w, g, v; writes saved, w and a partial slope ---------------------------


@triton.jit
def first_trial_chunk(
    rows, chunks, classes, saved, ratios, number, DTYPE: tl.constexpr, UNIT: tl.constexpr,
    BLOCK: tl.constexpr, DIRECTION: tl.constexpr,
):  # fmt: skip
    row, start, size = chunk_bounds(rows, chunks, number, UNIT)
    _, _, beta2, one_minus_beta2, _, inv_root_bias2, eps, _, step, scale = scalars_of(classes, row)
    if ratios is not None:
        ratio = ratio_of(ratios, chunks, number)
        step *= ratio
        scale *= ratio
    w_at = pointer_to(tl.load(row + WEIGHT), start, DTYPE, UNIT)
    g_at = pointer_to(tl.load(row + GRADIENT), start, DTYPE, UNIT)
    v_at = pointer_to(tl.load(row + EXP_AVG_SQ), start, tl.float32, UNIT)
    saved_at = saved_pointer(saved, row, start, UNIT)
    sums = tl.zeros([BLOCK // UNIT], tl.float64)  # side by side, in the same order in every run
    lanes = tl.arange(0, BLOCK)
    base = 0
    while base < size:
        i = base + lanes
        mask = i < size
        stored = tl.load(w_at + i, mask=mask)
        g = tl.load(g_at + i, mask=mask).to(tl.float32)
        if DIRECTION != "sgd":
            v = tl.load(v_at + i, mask=mask)
        tl.store(saved_at + i, stored, mask=mask)
        if DIRECTION == "sgd":
            d = g
        else:
            d = trial_direction(g, v, beta2, one_minus_beta2, inv_root_bias2, eps)
        store(w_at + i, stored.to(tl.float32) - step * d, mask, DTYPE)
        products = tl.where(mask, g * d, 0.0).to(tl.float64)
        sums += in_threads(products, BLOCK, UNIT)
        base += BLOCK
    return tl.sum(sums, axis=0) * scale.to(tl.float64)


@triton.jit(do_not_specialize=["n_vector"])
def first_trial(
    rows, chunks, classes, saved, ratios, partials, n_vector, DTYPE: tl.constexpr,
    VECTOR: tl.constexpr, THREADS: tl.constexpr, DIRECTION: tl.constexpr,
):  # fmt: skip
    number = tl.program_id(0)
    if number < n_vector:
        slope = first_trial_chunk(
            rows, chunks, classes, saved, ratios, number, DTYPE, VECTOR, VECTOR * THREADS, DIRECTION
        )
    else:
        slope = first_trial_chunk(
            rows, chunks, classes, saved, ratios, number, DTYPE, 1, SCALARS * THREADS, DIRECTION
        )
    tl.store(partials + number, slope)


# -- next_trial: reads saved, g, v; writes w ---------------------------------------------------


@triton.jit
def next_trial_chunk(
    rows, chunks, classes, saved, ratios, number, DTYPE: tl.constexpr, UNIT: tl.constexpr,
    BLOCK: tl.constexpr, DIRECTION: tl.constexpr,
):  # fmt: skip
    row, start, size = chunk_bounds(rows, chunks, number, UNIT)
    _, _, beta2, one_minus_beta2, _, inv_root_bias2, eps, _, step, _ = scalars_of(classes, row)
    if ratios is not None:
        step *= ratio_of(ratios, chunks, number)
    w_at = pointer_to(tl.load(row + WEIGHT), start, DTYPE, UNIT)
    g_at = pointer_to(tl.load(row + GRADIENT), start, DTYPE, UNIT)
    v_at = pointer_to(tl.load(row + EXP_AVG_SQ), start, tl.float32, UNIT)
    saved_at = saved_pointer(saved, row, start, UNIT)
    lanes = tl.arange(0, BLOCK)
    base = 0
    while base < size:
        i = base + lanes
        mask = i < size
        w = tl.load(saved_at + i, mask=mask).to(tl.float32)
        g = tl.load(g_at + i, mask=mask).to(tl.float32)
        if DIRECTION == "sgd":
            d = g
        else:
            v = tl.load(v_at + i, mask=mask)
            d = trial_direction(g, v, beta2, one_minus_beta2, inv_root_bias2, eps)
        store(w_at + i, w - step * d, mask, DTYPE)
        base += BLOCK


@triton.jit(do_not_specialize=["n_vector"])
def next_trial(
    rows, chunks, classes, saved, ratios, n_vector, DTYPE: tl.constexpr, VECTOR: tl.constexpr,
    THREADS: tl.constexpr, DIRECTION: tl.constexpr,
):  # fmt: skip
    number = tl.program_id(0)
    if number < n_vector:
        next_trial_chunk(
            rows, chunks, classes, saved, ratios, number, DTYPE, VECTOR, VECTOR * THREADS, DIRECTION
        )
    else:
        next_trial_chunk(
            rows, chunks, classes, saved, ratios, number, DTYPE, 1, SCALARS * THREADS, DIRECTION
        )


# -- adam_step: reads saved or w, and g, m, v; writes m, v, w ----------------------------------


@triton.jit
def adam_step_chunk(
    rows, chunks, classes, saved, ratios, skip, number, DTYPE: tl.constexpr, UNIT: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    row, start, size = chunk_bounds(rows, chunks, number, UNIT)
    if skip is not None:
        size = tl.where(tl.load(skip) != 0.0, 0, size)  # so is what is not a number
    (
        beta1, one_minus_beta1, beta2, one_minus_beta2, inv_bias1, inv_root_bias2, eps,
        weight_decay, step, _,
    ) = scalars_of(classes, row)  # fmt: skip
    if ratios is not None:
        step *= ratio_of(ratios, chunks, number)
    w_at = pointer_to(tl.load(row + WEIGHT), start, DTYPE, UNIT)
    g_at = pointer_to(tl.load(row + GRADIENT), start, DTYPE, UNIT)
    m_at = pointer_to(tl.load(row + EXP_AVG), start, tl.float32, UNIT)
    v_at = pointer_to(tl.load(row + EXP_AVG_SQ), start, tl.float32, UNIT)
    from_at = w_at
    if saved is not None:
        from_at = saved_pointer(saved, row, start, UNIT)
    lanes = tl.arange(0, BLOCK)
    base = 0
    while base < size:
        i = base + lanes
        mask = i < size
        w = tl.load(from_at + i, mask=mask).to(tl.float32)
        g = tl.load(g_at + i, mask=mask).to(tl.float32)
        m = beta1 * tl.load(m_at + i, mask=mask) + one_minus_beta1 * g
        v = second_moment(tl.load(v_at + i, mask=mask), g, beta2, one_minus_beta2)
        d = tl.div_rn(m * inv_bias1, preconditioner(v, inv_root_bias2, eps))
        tl.store(m_at + i, m, mask=mask)
        tl.store(v_at + i, v, mask=mask)
        store(w_at + i, w - step * (d + weight_decay * w), mask, DTYPE)
        base += BLOCK


@triton.jit(do_not_specialize=["n_vector"])
def adam_step(
    rows, chunks, classes, saved, ratios, skip, n_vector, DTYPE: tl.constexpr,
    VECTOR: tl.constexpr, THREADS: tl.constexpr,
):  # fmt: skip
    number = tl.program_id(0)
    if number < n_vector:
        adam_step_chunk(
            rows, chunks, classes, saved, ratios, skip, number, DTYPE, VECTOR, VECTOR * THREADS
        )
    else:
        adam_step_chunk(
            rows, chunks, classes, saved, ratios, skip, number, DTYPE, 1, SCALARS * THREADS
        )


# -- sgd_step: reads saved or w, and g; writes w -----------------------------------------------


@triton.jit
def sgd_step_chunk(
    rows, chunks, classes, saved, skip, number, DTYPE: tl.constexpr, UNIT: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    row, start, size = chunk_bounds(rows, chunks, number, UNIT)
    if skip is not None:
        size = tl.where(tl.load(skip) != 0.0, 0, size)
    _, _, _, _, _, _, _, weight_decay, step, _ = scalars_of(classes, row)
    w_at = pointer_to(tl.load(row + WEIGHT), start, DTYPE, UNIT)
    g_at = pointer_to(tl.load(row + GRADIENT), start, DTYPE, UNIT)
    from_at = w_at
    if saved is not None:
        from_at = saved_pointer(saved, row, start, UNIT)
    lanes = tl.arange(0, BLOCK)
    base = 0
    while base < size:
        i = base + lanes
        mask = i < size
        w = tl.load(from_at + i, mask=mask).to(tl.float32)
        g = tl.load(g_at + i, mask=mask).to(tl.float32)
        store(w_at + i, w - step * (g + weight_decay * w), mask, DTYPE)
        base += BLOCK


@triton.jit(do_not_specialize=["n_vector"])
def sgd_step(
    rows, chunks, classes, saved, skip, n_vector, DTYPE: tl.constexpr, VECTOR: tl.constexpr,
    THREADS: tl.constexpr,
):  # fmt: skip
    number = tl.program_id(0)
    if number < n_vector:
        sgd_step_chunk(rows, chunks, classes, saved, skip, number, DTYPE, VECTOR, VECTOR * THREADS)
    else:
        sgd_step_chunk(rows, chunks, classes, saved, skip, number, DTYPE, 1, SCALARS * THREADS)


# -- LAMB: norms reads w, g, m, v and adds each chunk up; trust_ratios adds the chunks of a row ---


@triton.jit
def squares(x, mask, BLOCK: tl.constexpr, UNIT: tl.constexpr):
    """Exact in fp64."""
    wide = tl.where(mask, x, 0.0).to(tl.float64)
    return in_threads(wide * wide, BLOCK, UNIT)


@triton.jit
def norms_chunk(
    rows, chunks, classes, partials, number, DTYPE: tl.constexpr, UNIT: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    row, start, size = chunk_bounds(rows, chunks, number, UNIT)
    (
        beta1, one_minus_beta1, beta2, one_minus_beta2, inv_bias1, inv_root_bias2, eps,
        weight_decay, _, _,
    ) = scalars_of(classes, row)  # fmt: skip
    w_at = pointer_to(tl.load(row + WEIGHT), start, DTYPE, UNIT)
    g_at = pointer_to(tl.load(row + GRADIENT), start, DTYPE, UNIT)
    m_at = pointer_to(tl.load(row + EXP_AVG), start, tl.float32, UNIT)
    v_at = pointer_to(tl.load(row + EXP_AVG_SQ), start, tl.float32, UNIT)
    w_sums = tl.zeros([BLOCK // UNIT], tl.float64)
    u_sums = tl.zeros([BLOCK // UNIT], tl.float64)
    lanes = tl.arange(0, BLOCK)
    base = 0
    while base < size:
        i = base + lanes
        mask = i < size
        w = tl.load(w_at + i, mask=mask).to(tl.float32)
        g = tl.load(g_at + i, mask=mask).to(tl.float32)
        m = beta1 * tl.load(m_at + i, mask=mask) + one_minus_beta1 * g
        v = second_moment(tl.load(v_at + i, mask=mask), g, beta2, one_minus_beta2)
        d = tl.div_rn(m * inv_bias1, preconditioner(v, inv_root_bias2, eps))
        w_sums += squares(w, mask, BLOCK, UNIT)
        u_sums += squares(d + weight_decay * w, mask, BLOCK, UNIT)
        base += BLOCK
    tl.store(partials + 2 * number, tl.sum(w_sums, axis=0))
    tl.store(partials + 2 * number + 1, tl.sum(u_sums, axis=0))


@triton.jit(do_not_specialize=["n_vector"])
def norms(
    rows, chunks, classes, partials, n_vector, DTYPE: tl.constexpr, VECTOR: tl.constexpr,
    THREADS: tl.constexpr,
):  # fmt: skip
    number = tl.program_id(0)
    if number < n_vector:
        norms_chunk(rows, chunks, classes, partials, number, DTYPE, VECTOR, VECTOR * THREADS)
    else:
        norms_chunk(rows, chunks, classes, partials, number, DTYPE, 1, SCALARS * THREADS)


@triton.jit(do_not_specialize=["clip"])
def trust_ratios(partials, parts, clip, ratios, THREADS: tl.constexpr):
    row = tl.program_id(0)
    lanes = tl.arange(0, THREADS)
    w_sums = tl.zeros([THREADS], tl.float64)
    u_sums = tl.zeros([THREADS], tl.float64)
    kind = 0
    while kind < 2:  # its vector chunks, and the others
        base = tl.load(parts + 4 * row + 2 * kind)
        end = tl.load(parts + 4 * row + 2 * kind + 1)
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


# -- alignment: reads w, g and the weights as a window began; writes a partial sum --------------


@triton.jit
def alignment_chunk(
    rows, chunks, starts, number, DTYPE: tl.constexpr, UNIT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row, start, size = chunk_bounds(rows, chunks, number, UNIT)
    began = tl.load(starts + tl.load(chunks + number * CHUNK_FIELDS))
    size = tl.where(began == 0, 0, size)
    w_at = pointer_to(tl.load(row + WEIGHT), start, DTYPE, UNIT)
    g_at = pointer_to(tl.load(row + GRADIENT), start, DTYPE, UNIT)
    began_at = pointer_to(began, start, DTYPE, UNIT)
    sums = tl.zeros([BLOCK // UNIT], tl.float64)
    lanes = tl.arange(0, BLOCK)
    base = 0
    while base < size:
        i = base + lanes
        mask = i < size
        w = tl.load(w_at + i, mask=mask).to(tl.float32)
        g = tl.load(g_at + i, mask=mask).to(tl.float32)
        before = tl.load(began_at + i, mask=mask).to(tl.float32)
        products = tl.where(mask, g * (before - w), 0.0).to(tl.float64)
        sums += in_threads(products, BLOCK, UNIT)
        base += BLOCK
    return tl.sum(sums, axis=0)


@triton.jit(do_not_specialize=["n_vector"])
def alignment(
    rows, chunks, starts, partials, n_vector, DTYPE: tl.constexpr, VECTOR: tl.constexpr,
    THREADS: tl.constexpr,
):  # fmt: skip
    number = tl.program_id(0)
    if number < n_vector:
        total = alignment_chunk(rows, chunks, starts, number, DTYPE, VECTOR, VECTOR * THREADS)
    else:
        total = alignment_chunk(rows, chunks, starts, number, DTYPE, 1, SCALARS * THREADS)
    tl.store(partials + number, total)
