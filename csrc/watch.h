// Looking at Python's lists of tensors in C++, where Python takes 50 ns for every attribute.
#pragma once

#include <pybind11/pybind11.h>

namespace salsa {

// Adds what salsa_fused/kernels/watch.py calls to the module.
void add_watching(pybind11::module_& module);

}  // namespace salsa
