"""Threads that wait must not spin: on a shared machine they turn milliseconds into seconds."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when OpenMP loads, before torch
