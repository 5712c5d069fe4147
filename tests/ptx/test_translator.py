"""What the translator refuses, and what the threads notice: so that a green run means something."""

from __future__ import annotations

import ctypes

import pytest
import torch

from .instructions import UnknownInstructionError
from .library import PtxError

SOURCE = """
.version 8.7
.target sm_86
.address_size 64
.extern .shared .align 16 .b8 shared[];
.visible .entry kernel(
    .param .u64 kernel_param_0
)
.reqntid 64
{{
    .reg .pred %p<4>;
    .reg .b16 %rs<8>;
    .reg .b32 %r<16>;
    .reg .f32 %f<16>;
    .reg .b64 %rd<16>;
    ld.param.b64 %rd0, [kernel_param_0];
    mov.u32 %r0, %tid.x;
    mul.wide.u32 %rd1, %r0, 4;
    add.s64 %rd2, %rd0, %rd1;
{body}
    ret;
}}
"""
STORE = "st.global.b32 [%rd2], %r1;"


def launch(threads, body, values=None):
    """Run it with 64 threads on 64 numbers."""
    numbers = torch.arange(64, dtype=torch.int32) if values is None else values
    kernel = threads.kernel(SOURCE.format(body=body))
    kernel.launch(1, 64, [ctypes.c_uint64(numbers.data_ptr())])
    return numbers


def test_a_kernel(threads):
    body = f"ld.global.b32 %r1, [%rd2]; mad.lo.s32 %r1, %r1, 3, -1; {STORE}"
    assert launch(threads, body).tolist() == [3 * i - 1 for i in range(64)]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("ld.global.b32 %r2, [%rd2]; shr.s32 %r1, %r2, 1;", [-32, -31, 31]),
        ("ld.global.b32 %r2, [%rd2]; shr.u32 %r1, %r2, 31;", [1, 1, 0]),
        ("ld.global.b32 %r2, [%rd2]; setp.lt.s32 %p1, %r2, 0; selp.b32 %r1, 7, 9, %p1;", [7, 7, 9]),
        ("ld.global.b32 %r2, [%rd2]; setp.lt.u32 %p1, %r2, 9; selp.b32 %r1, 7, 9, %p1;", [9, 9, 9]),
        (
            "ld.global.b32 %r2, [%rd2]; neg.s32 %r2, %r2; cvt.s64.s32 %rd5, %r2;"
            "shr.u64 %rd5, %rd5, 32; cvt.u32.u64 %r1, %rd5;",
            [0, 0, -1],
        ),
        ("ld.global.b32 %r2, [%rd2]; bfe.u32 %r1, %r2, 1, 5;", [0, 1, 31]),
    ],
)
def test_integers(threads, body, expected):
    values = torch.tensor([-64, -62, *range(61), 63], dtype=torch.int32)
    found = launch(threads, f"{body} {STORE}", values)
    assert [found[i].item() for i in (0, 1, 63)] == expected


def test_halves_of_a_register(threads):
    halves = "mov.b32 {%rs1, %rs2}, %r1; mov.b32 %r1, {%rs2, %rs1};"
    found = launch(threads, f"ld.global.b32 %r1, [%rd2]; {halves} {STORE}")
    assert found.tolist() == [i << 16 for i in range(64)]


@pytest.mark.parametrize(
    ("compared", "holds"),
    [("eq", "001"), ("ne", "010"), ("neu", "110"), ("equ", "101"), ("lt", "000"), ("gtu", "110")],
)
def test_comparisons_with_what_is_not_a_number(threads, compared, holds):
    """Of NaN, 3 and 2 with 2."""
    values = torch.full((64,), 2.0)
    values[:2] = torch.tensor([torch.nan, 3.0])
    body = f"ld.global.f32 %f1, [%rd2]; setp.{compared}.f32 %p1, %f1, 0f40000000;"
    found = launch(threads, f"{body} selp.b32 %r1, 1, 0, %p1; {STORE}", values)
    assert "".join(map(str, found.view(torch.int32)[:3].tolist())) == holds


def test_a_16_bit_number_and_an_fp32_one(threads):
    """Blackwell's `sub`: the first operand has 16 bits."""
    values = torch.arange(64, dtype=torch.float32) / 3
    body = "ld.global.f32 %f1, [%rd2]; mov.b16 %rs1, 0x3fc0; sub.rn.f32.bf16 %f2, %rs1, %f1;"
    found = launch(threads, f"{body} st.global.f32 [%rd2], %f2;", values.clone())
    assert torch.equal(found, 1.5 - values)


@pytest.mark.parametrize(
    "instruction",
    [
        "add.f32 %f1, %f2, %f3;",  # the assembler may contract it
        "mul.f32 %f1, %f2, %f3;",
        "add.rn.ftz.f32 %f1, %f2, %f3;",
        "add.rz.f32 %f1, %f2, %f3;",
        "sqrt.approx.f32 %f1, %f2;",
        "div.full.f32 %f1, %f2, %f3;",
        "cvt.rz.f16.f32 %rs1, %f2;",
        "cvt.rn.satfinite.bf16.f32 %rs1, %f2;",
        "ld.b32 %r1, [%rd2];",  # where does the address lie?
        "st.local.b32 [%rd2], %r1;",
        "bar.sync 1;",
        "shfl.sync.down.b32 %r1, %r2, 1, 31, -1;",
        "atom.global.add.f32 %f1, [%rd2], %f2;",
        "bfe.u32 %r1, %r2, %r3, 5;",
        "bfe.s32 %r1, %r2, 1, 5;",
        "something.new %r1, %r2;",
    ],
)
def test_what_is_refused(threads, instruction):
    with pytest.raises(UnknownInstructionError):
        launch(threads, instruction)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("add.s64 %rd3, %rd0, 4; ld.global.v2.b32 {%r1, %r2}, [%rd3];", "not aligned"),
        ("mov.b64 %rd3, 4096; ld.global.b32 %r1, [%rd3];", "where there is no memory, at 0x1000"),
        ("mov.b32 %r1, 49152; st.shared.b32 [%r1], %r0;", "beyond shared memory"),
        ("mov.b32 %r1, 2; st.shared.b32 [%r1], %r0;", "not aligned"),
        ("setp.eq.s32 %p1, %r0, 5; @%p1 bra $L1; bar.sync 0;\n$L1:", "do not come"),
        ("setp.lt.s32 %p1, %r0, 32; @%p1 bra $L1; bar.sync 0; bra $L2;\n$L1:\nbar.sync 0;\n$L2:",
         "do not come"),
        ("setp.eq.s32 %p1, %r0, 40; @%p1 bra $L1; shfl.sync.bfly.b32 %r1, %r0, 1, 31, -1;\n$L1:",
         "do not come"),
        ("$L1:\nbra $L1;", "jumps for ever"),
    ],
)  # fmt: skip
def test_what_fails(threads, body, message):
    with pytest.raises(PtxError, match=message):
        launch(threads, body)
    test_a_kernel(threads)  # the next launch begins afresh


EXCHANGE = """
shl.b32 %r2, %r0, 2;
st.shared.b32 [%r2], %r0;
{barrier}
xor.b32 %r3, %r2, 128;
ld.shared.b32 %r1, [%r3];
"""


@pytest.mark.parametrize("order", ["forward", "reverse", "random"])
def test_threads_exchange_numbers(threads, order):
    with threads.in_order(order):
        found = launch(threads, EXCHANGE.format(barrier="bar.sync 0;") + STORE)
    assert found.tolist() == [i ^ 32 for i in range(64)]


def test_a_missing_barrier_shows(threads):
    for order in ("forward", "reverse", "random"):
        with threads.in_order(order):
            found = launch(threads, EXCHANGE.format(barrier="") + STORE)
        assert found.tolist() != [i ^ 32 for i in range(64)]


def test_a_warp_exchanges_numbers(threads):
    shuffles = "shfl.sync.bfly.b32 %r1, %r0, 16, 31, -1; shfl.sync.bfly.b32 %r1, %r1, 1, 31, -1;"
    assert launch(threads, f"{shuffles} {STORE}").tolist() == [i ^ 17 for i in range(64)]
