"""One PTX instruction as a statement in C; what is not known here is refused, never guessed.

A register holds bits, as an unsigned integer (`p` registers a bool).  `value` reads them as the
type that the instruction names, `bits` turns a result into bits again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

REAL = {"f16": 16, "bf16": 16, "f32": 32, "f64": 64}
COMPARED = {"eq": "==", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
COMPARED |= {"ne": "!=", "lo": "<", "ls": "<=", "hi": ">", "hs": ">="}
OPPOSITE = {"equ": "ne", "neu": "eq", "ltu": "ge", "leu": "gt", "gtu": "le", "geu": "lt"}
ARITHMETIC = {"add": "+", "sub": "-", "mul": "*", "div": "/"}
LOGIC = {"and": "&", "or": "|", "xor": "^"}
SPECIAL = {
    **{"%tid.x": "ptx_tid", "%ctaid.x": "ptx_ctaid"},
    **{"%ntid.x": "ptx_ntid", "%nctaid.x": "ptx_nctaid"},
    **{f"%{name}.{axis}": "0u" for name in ("tid", "ctaid") for axis in "yz"},
}


class UnknownInstructionError(NotImplementedError):
    """Its translation is not known."""


def width(kind: str) -> int:
    return REAL.get(kind) or int(re.sub(r"\D", "", kind))


def is_integer(kind: str) -> bool:
    return re.fullmatch(r"[bus](?:8|16|32|64)", kind) is not None


class Instructions:
    """Those of one kernel."""

    def __init__(self, parameters: Sequence[str], symbols: dict[str, int]):
        self.parameters = list(parameters)
        self.symbols = symbols  # of shared memory: where each begins
        self.waits = 0  # instructions at which threads wait for others

    def statement(self, text: str) -> str:
        """Translate one instruction, with its guard."""
        guard = ""
        if found := re.match(r"@(!?)(%p\d+) (.*)", text):
            guard, text = f"if ({found[1]}{self.bits_in(found[2])}) ", found[3]
        name, _, rest = text.partition(" ")
        operands = split(rest)
        head, *modifiers = name.replace("::", "").split(".")
        try:
            done = self._translated(head, modifiers, operands)
        except (KeyError, IndexError, ValueError, UnknownInstructionError) as error:
            raise UnknownInstructionError(f"{text}: {error}") from error
        return f"{guard}{{ {done} }}"

    # -- operands ---------------------------------------------------------------------------------

    def bits_in(self, text: str, bits: int = 32) -> str:
        """An operand as C: a register, a special one, a number or an address of shared memory."""
        if text in SPECIAL:
            return SPECIAL[text]
        if re.fullmatch(r"%[a-z]+\d+", text):
            return register(text)
        if found := re.fullmatch(r"0[fFdD]((?:[0-9A-Fa-f]{8}){1,2})", text):
            return f"0x{found[1]}ull"
        if re.fullmatch(r"-?(?:0x[0-9a-fA-F]+|\d+)U?", text):
            number = int(text.removesuffix("U"), 0) % 2 ** max(bits, 1)
            return f"((u{bits}){number}ull)"
        if text in self.symbols:
            return f"{self.symbols[text]}u"
        raise UnknownInstructionError(f"operand {text!r}")

    def value(self, text: str, kind: str) -> str:
        if kind == "pred":
            return {"0": "false", "1": "true"}.get(text) or self.bits_in(text)
        bits = self.bits_in(text, width(kind))
        if kind in ("f32", "f64"):
            return f"{kind}({bits})"
        if kind in REAL:
            return f"from_{kind}({bits})"
        return f"({kind.replace('b', 'u')})({bits})"

    @staticmethod
    def bits(result: str, kind: str) -> str:
        if kind in ("f32", "f64"):
            return f"b{width(kind)}({result})"
        if kind in REAL:
            return f"to_{kind}({result})"
        return result if kind == "pred" else f"(u{width(kind)})({result})"

    def _set(self, to: str, result: str, kind: str) -> str:
        return f"{self.bits_in(to)} = {self.bits(result, kind)};"

    # -- instructions -----------------------------------------------------------------------------

    def _translated(self, head: str, modifiers: list[str], operands: list[str]) -> str:
        if head in ("ld", "st"):
            return self._memory(head, modifiers, operands)
        own: dict[str, Callable[[list[str], list[str]], str]] = {
            **{"mov": self._mov, "cvt": self._cvt, "setp": self._setp, "bra": self._bra},
            **{"bar": self._bar, "barrier": self._bar, "shfl": self._shfl},
        }
        if head in own:
            return own[head](modifiers, operands)
        if head in ("ret", "exit") and not modifiers:
            return "return;"
        *others, kind = modifiers
        if len(others) > 1 and others[-1] in REAL:  # such as add.rn.f32.bf16: f32 = bf16 + f32
            others[-1], kind = kind, others[-1]
        to, *given = operands
        if kind.endswith("x2") and head != "cvta":
            return self._pair(head, others, kind[:-2], to, given)
        result = self._result(head, others, kind, given)
        if others == ["wide"]:  # the result has twice the bits
            kind = f"{kind[0]}{2 * width(kind)}"
        return self._set(to, result, kind)

    def _result(self, head: str, others: list[str], kind: str, given: list[str]) -> str:
        if head == "cvta":
            return self.bits_in(given[0], 64)
        if head == "selp":
            on, off = (self.value(x, kind) for x in given[:2])
            return f"{self.bits_in(given[2])} ? {on} : {off}"
        if kind in REAL or (others and others[-1] in REAL):
            return self._real(head, others, kind, given)
        if kind == "pred":
            x = [self.value(y, kind) for y in given]
            return f"!{x[0]}" if head == "not" else f"{x[0]} {LOGIC[head]} {x[1]}"
        if head == "prmt":
            return f"ptx_permute({', '.join(map(self.bits_in, given))})"
        if not is_integer(kind):
            raise UnknownInstructionError(f"type {kind!r}")
        return self._integer(head, others, kind, given)

    def _real(self, head: str, others: list[str], kind: str, given: list[str]) -> str:
        mixed = [
            other for other in others if other in REAL
        ]  # the type of all operands but the last
        kinds = [*(mixed or [kind])] * (len(given) - 1) + [kind]
        x = [self.value(operand, of) for operand, of in zip(given, kinds)]
        if head == "neg" and not others:
            return f"-{x[0]}"
        # without .rn the assembler may contract a product and a sum, or take another rounding
        if [other for other in others if other not in REAL] != ["rn"]:
            raise UnknownInstructionError("it is not rounded to nearest, every one for itself")
        if head == "fma":
            return f"__builtin_fma{'' if kind == 'f64' else 'f'}({', '.join(x)})"
        if head == "sqrt":
            return f"__builtin_sqrt{'' if kind == 'f64' else 'f'}({x[0]})"
        return f"{x[0]} {ARITHMETIC[head]} {x[1]}"

    def _integer(self, head: str, others: list[str], kind: str, given: list[str]) -> str:
        unsigned, bits = f"u{width(kind)}", width(kind)
        if head in ("mul", "mad"):
            x, y = (self.value(operand, kind) for operand in given[:2])
            if others == ["wide"]:
                bits *= 2
                product = f"({kind[0]}{bits}){x} * ({kind[0]}{bits}){y}"
            elif others == ["lo"]:
                product = f"(u64){x} * (u64){y}"
            else:
                raise UnknownInstructionError("a product that is neither .lo nor .wide")
            more = f" + {self.bits_in(given[2], bits)}" if head == "mad" else ""
            return f"(u{bits})({product}){more}"
        if others:
            raise UnknownInstructionError(f"modifier {others[0]!r}")
        if head in ("shl", "shr"):
            n, x = self.bits_in(given[1]), self.value(given[0], kind)
            beyond = f"{x} >> {bits - 1}" if head == "shr" and kind[0] == "s" else "0"
            shift = f"({unsigned}){x} << {n}" if head == "shl" else f"{x} >> {n}"
            return f"{n} >= {bits} ? {beyond} : {shift}"
        if head == "bfe" and kind[0] == "u":  # some bits, of known places
            at, length = map(int, given[1:])
            if at < 0 or length < 0 or at + length > bits:
                raise UnknownInstructionError("bits beyond the number")
            return f"({self.value(given[0], kind)} >> {at}) & {hex(2**length - 1)}ull"
        x = [self.value(operand, kind) for operand in given]
        if head in ("min", "max"):
            return f"{x[0]} {'<' if head == 'min' else '>'} {x[1]} ? {x[0]} : {x[1]}"
        if head in ("not", "neg"):
            return f"{'~' if head == 'not' else '0u - '}({unsigned}){x[0]}"
        operator = LOGIC[head] if head in LOGIC else {"add": "+", "sub": "-"}[head]
        return f"({unsigned}){x[0]} {operator} ({unsigned}){x[1]}"

    def _pair(self, head: str, others: list[str], kind: str, to: str, given: list[str]) -> str:
        """Two numbers in one register, as GPUs since Blackwell compute with fp32."""
        if kind != "f32":
            raise UnknownInstructionError(f"arithmetic with two {kind}")
        names = [f"(u32)({self.bits_in(x, 64)} >> {{}})" for x in given]
        halves = []
        for shift in (0, 32):
            x = [f"f32({name.format(shift)})" for name in names]
            if others != ["rn"]:
                raise UnknownInstructionError("it is not rounded to nearest, every one for itself")
            if head == "fma":
                halves.append(f"(u64)b32(__builtin_fmaf({', '.join(x)}))")
            else:
                halves.append(f"(u64)b32({x[0]} {ARITHMETIC[head]} {x[1]})")
        return f"{self.bits_in(to)} = {halves[0]} | {halves[1]} << 32;"

    def _mov(self, modifiers: list[str], operands: list[str]) -> str:
        (kind,) = modifiers
        to, given = operands
        if kind == "pred":
            return self._set(to, self.value(given, kind), kind)
        half = width(kind) // 2
        if to.startswith("{"):
            parts = zip(split(to.strip("{} ")), (0, half))
            return " ".join(
                f"{self.bits_in(part)} = (u{half})({self.bits_in(given)} >> {shift});"
                for part, shift in parts
                if part != "_"
            )
        if given.startswith("{"):
            low, high = map(self.bits_in, split(given.strip("{} ")))
            return f"{self.bits_in(to)} = (u{2 * half}){low} | (u{2 * half}){high} << {half};"
        return f"{self.bits_in(to)} = {self.bits_in(given, width(kind))};"

    def _cvt(self, modifiers: list[str], operands: list[str]) -> str:
        *rounding, to, given = modifiers
        if to.endswith("x2"):  # the first operand becomes the higher half
            if rounding != ["rn"]:
                raise UnknownInstructionError("it is not rounded to nearest")
            high, low = (f"to_{to[:-2]}({self.value(x, given)})" for x in operands[1:])
            return f"{self.bits_in(operands[0])} = (u32){high} << 16 | {low};"
        narrower = to in REAL and (given not in REAL or REAL[to] < REAL[given])
        if rounding != (["rn"] if narrower else []) or (given in REAL and to not in REAL):
            raise UnknownInstructionError("another rounding than to nearest")
        x = self.value(operands[1], given)
        c = {"f16": "float", "bf16": "float", "f32": "float", "f64": "double"}
        return self._set(operands[0], f"({c.get(to, to.replace('b', 'u'))})({x})", to)

    def _setp(self, modifiers: list[str], operands: list[str]) -> str:
        comparison, *logic, kind = modifiers
        to, x, y = operands[:3]
        if kind.endswith("x2"):
            parts = zip(to.split("|"), (0, 16))
            a, b = self.bits_in(x), self.bits_in(y)
            return " ".join(
                f"{self.bits_in(part)} = "
                + comparison_of(
                    comparison,
                    f"from_{kind[:-2]}((u16)({a} >> {shift}))",
                    f"from_{kind[:-2]}((u16)({b} >> {shift}))",
                    real=True,
                )
                + ";"
                for part, shift in parts
            )
        found = comparison_of(comparison, self.value(x, kind), self.value(y, kind), kind in REAL)
        if logic:
            found = f"({found}) {LOGIC[logic[0]]} {self.value(operands[3], 'pred')}"
        return f"{self.bits_in(to)} = {found};"

    def _memory(self, head: str, modifiers: list[str], operands: list[str]) -> str:
        space, *others, kind = modifiers
        vector = next((int(m[1:]) for m in others if re.fullmatch(r"v\d", m)), 1)
        where, data = reversed(operands) if head == "ld" else operands
        registers = split(data.strip("{} "))
        if len(registers) != vector:
            raise UnknownInstructionError("not as many registers as numbers")
        base, offset = re.fullmatch(r"\[ *([%$\w.]+) *(?:\+ *(-?\d+))? *\]", where).groups()
        size, offset = width(kind) // 8, int(offset or 0)
        if space == "param" and head == "ld":
            at = f"ptx_parameter({self.parameters.index(base)}, {offset})"
        elif space in ("global", "shared"):
            check = {"global": "ptx_global", "shared": "ptx_in_shared"}[space]
            at = f"{check}({self.bits_in(base, 64)} + (u64)({offset}ll), {vector * size})"
        else:
            raise UnknownInstructionError("where an address lies is not known")
        c = f"u{8 * size}"
        each = []
        for i, register in enumerate(registers):
            place = f"at + {i * size}"
            if head == "ld":
                each.append(f"{self.bits_in(register)} = load_{c}({place});")
            else:
                each.append(f"save_{c}({place}, {self.bits_in(register, 8 * size)});")
        return f"const u64 at = {at}; {' '.join(each)}"

    def _bra(self, modifiers: list[str], operands: list[str]) -> str:
        if modifiers not in ([], ["uni"]):
            raise UnknownInstructionError(f"modifier {modifiers[0]!r}")
        return f"PTX_JUMP {label(operands[0])};"

    def _bar(self, modifiers: list[str], operands: list[str]) -> str:
        if modifiers not in (["sync"], ["cta", "sync"]) or operands != ["0"]:
            raise UnknownInstructionError("a barrier of some threads only")
        self.waits += 1
        return f"ptx_barrier({self.waits});"

    def _shfl(self, modifiers: list[str], operands: list[str]) -> str:
        to, x, mask, within, lanes = operands
        if modifiers != ["sync", "bfly", "b32"] or (within, lanes) not in (("31", "-1"),):
            raise UnknownInstructionError("a shuffle that is no butterfly of a whole warp")
        self.waits += 1
        arguments = f"{self.waits}, {self.bits_in(x)}, {self.bits_in(mask)}"
        return f"{self.bits_in(to)} = ptx_shuffle({arguments});"


def comparison_of(name: str, x: str, y: str, real: bool) -> str:
    """C's comparisons are false where one is not a number, but for `!=`."""
    if not real:
        return f"{x} {COMPARED[name]} {y}"
    if name in ("num", "nan"):
        return f"{'!' if name == 'num' else ''}__builtin_isunordered({x}, {y})"
    if name == "ne":
        return f"__builtin_islessgreater({x}, {y})"
    if name in OPPOSITE:
        return f"!({comparison_of(OPPOSITE[name], x, y, real)})"
    return f"{x} {COMPARED[name]} {y}"


def register(name: str) -> str:
    return f"_{name[1:]}"


def label(text: str) -> str:
    return "L" + re.sub(r"\W", "_", text)


def split(text: str) -> list[str]:
    """Operands between commas that stand in no brackets."""
    return [part.strip() for part in re.split(r",(?![^{\[(]*[}\])])", text) if part.strip()]
