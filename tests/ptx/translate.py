"""A file of PTX as C: a function for every kernel."""

from __future__ import annotations

import re
from dataclasses import dataclass

from .instructions import Instructions, label, register

HEAD = """\
#include "threads.h"
// a loop that does not end is an error, not a test that hangs
#define PTX_JUMP if (++jumps > (1u << 26)) ptx_fail("it jumps for ever", 0); else goto
"""

# uninitialised registers hold what shows
UNSET = {"bool": "false", "u16": "0xdead", "u32": "0xdeadbeefu", "u64": "0xdeadbeefdeadbeefull"}


@dataclass(frozen=True)
class Translated:
    """The C code, and the name of every kernel in it; its function is `ptx_` and that name."""

    code: str
    kernels: tuple[str, ...]


def translate(ptx: str) -> Translated:
    """Translate a whole file.

    Raises:
        UnknownInstructionError: it has an instruction that nobody needed yet.
    """
    ptx = re.sub(r"//[^\n]*|/\*.*?\*/", "", ptx, flags=re.S)
    head, *_ = re.split(r"\.entry\b", ptx, maxsplit=1)
    shared = place_of_symbols(head)
    entry = r"\.entry\s+(\w+)\((.*?)\)[^{]*?\{\n(.*?)\n\}\s*(?=\n|$)"
    found = re.findall(entry, ptx, flags=re.S)
    return Translated(
        HEAD + "\n".join(function(*one, shared) for one in found), tuple(name for name, *_ in found)
    )


def place_of_symbols(text: str) -> dict[str, int]:
    """Where each variable in shared memory begins."""
    symbols = dict.fromkeys(re.findall(r"\.extern \.shared[^;]*?\b(\w+)\[\];", text), 0)
    end = 0
    for align, bits, name, count in re.findall(
        r"\.shared \.align (\d+) \.b(\d+) (\w+)\[(\d+)\]", text
    ):
        symbols[name] = -(-end // int(align)) * int(align)
        end = symbols[name] + int(count) * int(bits) // 8
    return symbols


def function(name: str, parameters: str, body: str, shared: dict[str, int]) -> str:
    instructions = Instructions(
        re.findall(r"\w+_param_\d+", parameters), {**shared, **place_of_symbols(body)}
    )
    registers, statements = [], []
    body = re.sub(r"(?m)^\s*\.(?:loc|file|pragma|shared)\b[^\n;]*(?:;|$)", "\n", body)
    # a register of its own for the half that is not wanted
    for half, pattern in (("{{_, {0}}}", r"\{tmp, (%\w+)\}"), ("{{{0}, _}}", r"\{(%\w+), tmp\}")):
        whole = r"\{ \.reg \.b16 tmp; mov\.b32 " + pattern + r", (%\w+); \}"
        body = re.sub(whole, lambda m, h=half: f"mov.b32 {h.format(m[1])}, {m[2]};", body)
    body = re.sub(r"(?m)^\s*(\$\w+):", r"\1:;", body)
    for text in (" ".join(one.split()) for one in body.split(";")):
        if found := re.fullmatch(r"\.reg \.(\w+) (%\w+?)<(\d+)>", text):
            registers.append(declaration(*found.groups()))
        elif text.endswith(":"):
            statements.append(f"{label(text[:-1])}:;")
        elif text:
            statements.append(instructions.statement(text))
    lines = "\n    ".join([*registers, *statements])
    return f"void ptx_{name}(void) {{\n    u32 jumps = 0;\n    (void)jumps;\n    {lines}\n}}\n"


def declaration(kind: str, prefix: str, count: str) -> str:
    c = "bool" if kind == "pred" else f"u{re.sub(r'[^0-9]', '', kind)}"
    names = ", ".join(f"{register(prefix)}{i} = {UNSET[c]}" for i in range(int(count)))
    return f"{c} {names};"
