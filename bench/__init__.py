"""Benchmarks of salsa_fused: run from the root of the repository, `python -m bench --help`."""

import os

# OpenMP's threads wait by spinning, by default for so long that a busy machine slows down
# fivefold; without any spinning, small models take twice the time on a quiet one. To be set before
# torch is imported, and read by GNU's OpenMP only.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler's own messages
