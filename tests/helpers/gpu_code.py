"""What the compilers make of the kernels for a GPU: registers, spills, 128-bit accesses, rounding.

Compiling needs no GPU; reading the machine code needs `cuobjdump`, which Triton's wheel carries.
`python tests/helpers/gpu_code.py` prints the table of `bench/KERNELS.md`, and `--write` renews it.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

PAGE = Path(__file__).parent.parent.parent / "bench" / "KERNELS.md"
BEGIN, END = "<!-- registers:begin -->", "<!-- registers:end -->"
ARCHITECTURES = (80, 86, 89, 90, 100, 120)  # A100, A40, L4, H100 and H200, B200, RTX 50
KERNELS = ("first_trial", "next_trial", "step")
USAGE = ("-sass", "-res-usage")  # options of cuobjdump
TYPES = {"fp32": 4, "bf16": 2, "fp16": 2}  # bytes an element


@dataclass(frozen=True)
class Compiled:
    """One kernel for one architecture."""

    ptx: str
    sass: str
    registers: int

    @property
    def vector_loads(self) -> int:
        return self._count(self.sass, r"\bLDG\.E\.128")

    @property
    def vector_stores(self) -> int:
        return self._count(self.sass, r"\bSTG\.E\.128")

    @property
    def spills(self) -> int:
        """Accesses of the memory that ptxas puts registers into when it runs out of them."""
        return self._count(self.sass, r"\b(?:LDL|STL)\b")

    def ptx_count(self, instruction: str) -> int:
        return self._count(self.ptx, rf"\b{re.escape(instruction)}\b")

    @staticmethod
    def _count(text: str, pattern: str) -> int:
        return len(re.findall(pattern, text))


def compiled(
    kernel: str,
    dtype: str,
    architecture: int,
    *,
    saved: bool = True,
    skip: bool = False,
    direction: str = "adam",
    formats: int = 0,
    kernels: ModuleType | None = None,
    fusion: bool = False,
) -> Compiled:
    """Compile as the backend launches it: all pointers but rows' own are aligned to 16 bytes."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from salsa_fused.kernels.backends import triton_kernels
    from salsa_fused.kernels.backends.triton import THREADS, TritonBackend

    tl = triton.language
    fn = getattr(kernels or triton_kernels, kernel)
    pointers = {"rows": "*i64", "chunks": "*i64", "scalars": "*fp32", "partials": "*fp64"}
    pointers |= {"saved": f"*{dtype}", "skip": "*fp32", "ratios": "*fp32"}
    pointers |= {"chunk_ranges": "*i64", "clip": "fp32", "starts": "*i64"}
    constants: dict[str, Any] = {
        "DTYPE": {"fp32": tl.float32, "bf16": tl.bfloat16, "fp16": tl.float16}[dtype],
        "VECTOR": TritonBackend.vector_bytes // TYPES[dtype],
        "THREADS": THREADS,
    }
    constants["DIRECTION"] = "adam" if direction == "lamb" else direction
    constants["FORMATS"] = formats
    if direction != "lamb":
        constants["ratios"] = None
    if kernel == "step":
        constants |= {name: None for name, there in (("saved", saved), ("skip", skip)) if not there}
    types = {**pointers, "n_vector": "i32", **dict.fromkeys(constants, "constexpr")}
    names = list(fn.arg_names)
    constants = {name: value for name, value in constants.items() if name in names}
    source = ASTSource(
        fn=fn,
        signature={name: types[name] for name in names},
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={
            (i,): [["tt.divisibility", 16]]
            for i, name in enumerate(names)
            if types[name].startswith("*")
        },
    )
    options = {"num_warps": THREADS // 32, "enable_fp_fusion": fusion}
    made = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
    sass, usage = (_cuobjdump(made.asm["cubin"], option) for option in USAGE)
    (registers,) = re.findall(r"REG:(\d+)", usage)
    return Compiled(made.asm["ptx"], sass, int(registers))


def cuobjdump() -> str | None:
    """Where the disassembler is: in Triton's wheel, or on the PATH."""
    triton = importlib.util.find_spec("triton")
    if triton is not None and triton.origin is not None:
        ours = Path(triton.origin).parent / "backends/nvidia/bin/cuobjdump"
        if ours.exists():
            return str(ours)
    return shutil.which("cuobjdump")


def _cuobjdump(cubin: bytes, option: str) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return _cuobjdump_file(file.name, option)


def _cuobjdump_file(file: str, *options: str) -> str:
    command = [cuobjdump() or "cuobjdump", *options, file]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def table() -> str:
    """Markdown: a row for every kernel, dtype and compiler, a column for every architecture."""
    import triton

    heads = ["kernel", "dtype", "compiler", *(f"sm_{number}" for number in ARCHITECTURES)]
    lines = [f"| {' | '.join(heads)} |", "| --- | --- | --- |" + " ---: |" * len(ARCHITECTURES)]
    from_nvcc = {number: compiled_by_nvcc(number) for number in ARCHITECTURES}
    for kernel in KERNELS:
        for dtype in TYPES:
            by_triton = [cell(compiled(kernel, dtype, number)) for number in ARCHITECTURES]
            by_nvcc = [cell(from_nvcc[number][kernel, "adam", dtype]) for number in ARCHITECTURES]
            for name, cells in (("Triton", by_triton), ("nvcc", by_nvcc)):
                lines.append(f"| {' | '.join([kernel, dtype, name, *cells])} |")
    return "\n".join([*lines, "", f"Triton {triton.__version__}, nvcc {nvcc_version()}."])


def cell(made: Compiled) -> str:
    """Registers, 128-bit loads and stores, and what is spilled."""
    spilled = f", {made.spills} spilled" if made.spills else ""
    return f"{made.registers}, {made.vector_loads} + {made.vector_stores}{spilled}"


# -- CUDA C++ ---------------------------------------------------------------------------------

NAME = re.compile(
    r"\d(first_trial|next_trial|step|norms|trust_ratios|alignment)_kernel(?:I(?:NS_\d+(\w+?)E)?"
    r"(f|NS_4bf16E|NS_4fp16E|NS\w*_5MixedE)E)?"
)


def kernel_name(mangled: str) -> tuple[str, str, str]:
    """(kernel, direction, dtype) of a function that nvcc has named; "sgd" and "fp32" for none.

    "mixed": the launch says how each tensor is stored.
    """
    kernel, direction, dtype = NAME.search(mangled).groups(default="")
    found = next((name for name in ("bf16", "fp16", "Mixed") if name in dtype), "fp32").lower()
    return kernel, direction.lower() or "sgd", found


def compiled_by_nvcc(architecture: int) -> dict[tuple[str, str, str], Compiled]:
    """What the built module holds for this architecture; nothing where there is none."""
    from salsa_fused.kernels.backends import cuda

    options = ("-arch", f"sm_{architecture}")
    sass, usage = (_cuobjdump_file(cuda.module.__file__, how, *options) for how in USAGE)
    registers = dict(re.findall(r"Function (\w+):\s+REG:(\d+)", usage))
    code = {part.split()[0]: part for part in re.split(r"Function : ", sass)[1:]}
    return {
        kernel_name(name): Compiled("", code[name], int(number))
        for name, number in registers.items()
        if name in code and "_kernel" in name
    }


def nvcc_version() -> str:
    done = subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=True)
    return re.search(r"release [\d.]+, V([\d.]+)", done.stdout)[1]


def main() -> int:
    if os.environ.get("TRITON_INTERPRET"):
        sys.exit("unset TRITON_INTERPRET: the interpreter compiles nothing")
    made = table()
    print(made)
    if "--write" in sys.argv[1:]:
        page = PAGE.read_text(encoding="utf-8")
        head, _, rest = page.partition(BEGIN)
        _, _, tail = rest.partition(END)
        PAGE.write_text(f"{head}{BEGIN}\n{made}\n{END}{tail}", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
