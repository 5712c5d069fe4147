"""The GPU kernels' PTX, as nvcc and Triton make it, run on a CPU.

PTX is what a compiler for a GPU writes before the driver's assembler makes machine code of it.
Here every PTX instruction becomes a statement in C (`instructions.py`, `translate.py`), and a
block's threads take turns at its barriers (`threads.c`).  So the code that a GPU would run computes
on CPU tensors, and its bits are compared with the CPU backend's:

* `triton_driver.py`: a driver for Triton whose launches run the PTX.  Compiling, the binding of
  arguments, specialisation and launching are Triton's own.
* `nvcc_module.py`: `_native_cuda` with its own host code; `include/cuda_runtime.h` launches the
  PTX.

What this cannot show: bugs of the assembler, races of the memory order inside a warp or between
blocks, streams and the allocator, time.
"""
