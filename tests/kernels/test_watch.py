"""The looks at all tensors at once, by the compiled module and without it."""

from __future__ import annotations

import ctypes
import struct
import subprocess
import sys
from array import array

import pytest
import torch

from salsa_fused.kernels import columns

needs_reader = pytest.mark.skipif(
    isinstance(columns.look, columns.InPython),
    reason="the C++ kernels are not built, or torch lacks DLPack's exchange API",
)


@needs_reader
def test_layouts_are_as_remembered_and_nothing_else_is():
    def tensors(other=None):
        return [torch.zeros(4, 4), None, torch.zeros(2) if other is None else other]

    known = columns.Column("{}")
    assert known.addresses_of(tensors()) is None
    known.remember_layouts(tensors())
    these = tensors()
    assert known.addresses_of(these) == array("q", [these[0].data_ptr(), 0, these[2].data_ptr()])
    for other in (
        torch.zeros(2, dtype=torch.bfloat16),
        torch.zeros(2, dtype=torch.float16),
        torch.zeros(2, dtype=torch.int32),
        torch.zeros(3),
        torch.zeros(2, 1),
        torch.zeros(()),
        torch.zeros(4)[::2],
        torch.zeros(2).to_sparse(),
        torch.zeros(2, device="meta"),
    ):
        assert known.addresses_of(tensors(other)) is None, other
    assert known.addresses_of([torch.zeros(4, 4), torch.zeros(2), None]) is None
    assert known.addresses_of([torch.zeros(4, 4), None]) is None
    assert known.addresses_of([*tensors(), torch.zeros(2)]) is None
    assert known.addresses_of(tensors()) is not None


@needs_reader
def test_what_cannot_be_described_is_not_remembered():
    known = columns.Column("{}")
    known.remember_layouts([torch.zeros(2), torch.zeros(2).to_sparse()])
    assert known.addresses_of([torch.zeros(2)]) is None
    with pytest.raises(RuntimeError, match="storage"):
        columns.addresses([torch.zeros(2).to_sparse()])


@needs_reader
def test_columns_are_unchanged_where_layouts_and_addresses_are():
    tensors = [torch.zeros(4, 4), None, torch.zeros(2)]
    layouts = columns.look.layouts(tensors)
    at = columns.addresses(tensors)

    def unchanged(tensors, layouts=layouts, at=at):
        column = (tensors, layouts, at)
        known = (these, columns.look.layouts(these), there)
        return columns.look.unchanged([known, column])

    these = [torch.zeros(3)]
    there = columns.addresses(these)
    before = at.tolist()
    assert columns.look.unchanged([]) and unchanged(tensors)
    assert not unchanged(tensors, layouts=None)
    assert not unchanged([tensors[0], None, torch.zeros(2)])
    assert not unchanged([tensors[0].t(), None, tensors[2]], layouts=b"")
    assert not unchanged([tensors[0], None, tensors[2][:1]])
    assert not unchanged([tensors[0], tensors[2], None])
    assert not unchanged(tensors[:2]) and not unchanged([*tensors, None])
    assert not unchanged([tensors[0], None, tensors[2].to_sparse()])
    assert at.tolist() == before
    for wrong in ([tensors], [(tensors, layouts)], [(tuple(tensors), layouts, 0)]):
        with pytest.raises((RuntimeError, TypeError)):
            columns.look.unchanged(wrong)


@needs_reader
def test_another_version_of_dlpack_is_not_used():
    module = pytest.importorskip("salsa_fused._native")
    version = ctypes.create_string_buffer(struct.pack("IIQQQQQQ", 2, 0, *[1] * 6))
    new = ctypes.pythonapi.PyCapsule_New
    new.restype, new.argtypes = (
        ctypes.py_object,
        [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p],
    )
    with pytest.raises(RuntimeError, match="DLPack"):
        module.TensorReader(new(ctypes.addressof(version), b"dlpack_exchange_api", None))
    with pytest.raises(ValueError, match="PyCapsule"):
        module.TensorReader(new(ctypes.addressof(version), b"something else", None))


@pytest.mark.parametrize("other", ["None", "datetime.datetime_CAPI"])
def test_a_torch_with_another_api_is_read_in_python(other):
    code = (
        f"import datetime, torch; torch.Tensor.__dlpack_c_exchange_api__ = {other}; "
        "from salsa_fused.kernels import columns; print(type(columns.look).__name__)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "InPython\n"


def test_addresses_begin_at_the_first_element(looks):
    whole = torch.zeros(10, dtype=torch.bfloat16)
    assert list(looks.addresses([whole[3:], None, whole])) == [
        whole.data_ptr() + 6,
        0,
        whole.data_ptr(),
    ]


def test_lines_are_looked_up_where_they_can_be_asked_for(looks):
    entry, weight = {"step": 1}, torch.zeros(1)
    lines = looks.lines_of([weight, None], [entry])
    assert bool(lines) == (not isinstance(looks.look, columns.InPython))
    assert not lines or {id(entry), id(weight)} < set(lines)


def test_the_same_objects(looks):
    a, b, c = ([] for _ in range(3))
    assert looks.look.same_objects([[a], [], [b, c]], [a, b, c])
    for others in ([a, b], [a, b, c, c], [a, c, b], [a, b, []], []):
        assert not looks.look.same_objects([[a], [b, c]], others)
    state = {"x": a, "y": b}
    assert looks.look.same_items(state, ["x", "y", a, b])
    for others in (["x", "y", a, c], ["y", "x", b, a], ["x", a], ["x", "y", a, b, c]):
        assert not looks.look.same_items(state, others)


NAMES = ("step", "exp_avg", "exp_avg_sq")


def test_the_count_that_all_entries_share():
    moments = [torch.zeros(1) for _ in range(40)]

    def entries(**changes):
        found = [{"step": 1000, "exp_avg": m, "exp_avg_sq": m} for m in moments]
        found[20].update(changes)
        return found

    def common_step(entries):
        return columns.look.common_step(entries, [moments, moments], NAMES)

    if not isinstance(columns.look, columns.InPython):
        assert common_step(entries()) == 1000
    changes: list[dict] = [{"step": 999}, {"step": 1e3}, {"exp_avg": None}]
    changes += [{"exp_avg_sq": torch.zeros(1)}, {"step": torch.tensor(1000)}]
    for change in changes:
        assert common_step(entries(**change)) is None
    assert common_step([*entries()[:-1], None]) is None
    assert common_step([*entries()[:-1], {}]) is None
    assert common_step(entries()[:-1]) is None
    missing = [{"step": 1, "exp_avg": None, "exp_avg_sq": None}]
    assert columns.look.common_step(missing, [[None], [None]], NAMES) is None


def test_a_count_is_entered_everywhere(looks):
    entries = [{"step": 1}, {"other": 2}]
    looks.look.set_in_all(entries, "step", 7)
    assert entries == [{"step": 7}, {"other": 2, "step": 7}]
