// Python's door to the kernels: addresses and sizes as integers, no torch headers.
#include <pybind11/pybind11.h>

#include "cpu_kernels.h"

namespace py = pybind11;

namespace salsa {
void add_columns(py::module_& module);  // columns.cpp: what kernels/columns.py calls
}

namespace {

using Address = std::uintptr_t;
using salsa::cpu::Launch;

Launch launch_from(Address rows, Address chunks, std::int64_t n_chunks, Address scalars,
                   Address saved, int dtype, bool past_caches, int threads, int direction,
                   Address ratios, int formats) {
    return {reinterpret_cast<const salsa::Row*>(rows),
            reinterpret_cast<const salsa::Chunk*>(chunks),
            n_chunks,
            reinterpret_cast<const salsa::Scalars*>(scalars),
            reinterpret_cast<void*>(saved),
            static_cast<salsa::Dtype>(dtype),
            past_caches,
            threads,
            direction,
            reinterpret_cast<const float*>(ratios),
            {formats}};
}

double first_trial(const Launch& launch, Address partials) {
    return salsa::cpu::first_trial(launch, reinterpret_cast<double*>(partials));
}

}  // namespace

PYBIND11_MODULE(_native, module) {
    module.doc() = "The CPU's kernels of salsa_fused, and its looks at lists of tensors.";
    module.attr("compiler") = __VERSION__;
    module.attr("openmp") = salsa::cpu::has_openmp();
    module.attr("directions") = salsa::kDirections;
    module.attr("scalar_fields") = sizeof(salsa::Scalars) / sizeof(float);
    module.attr("row_fields") = sizeof(salsa::Row) / sizeof(std::int64_t);

    using release_gil = py::call_guard<py::gil_scoped_release>;
    py::class_<Launch>(module, "CpuLaunch").def(py::init(&launch_from));
    module.def("cpu_first_trial", &first_trial, release_gil());
    module.def("cpu_advise_huge_pages", [](Address memory, std::int64_t bytes) {
        salsa::cpu::advise_huge_pages(reinterpret_cast<void*>(memory), bytes);
    });
    module.def("cpu_next_trial", &salsa::cpu::next_trial, release_gil());
    module.def("cpu_step", &salsa::cpu::step, release_gil());
    module.def(
        "cpu_trust_ratios",
        [](const Launch& launch, Address partials, Address ratios, std::int64_t n_rows, float clip) {
            salsa::cpu::trust_ratios(launch, reinterpret_cast<double*>(partials),
                                     reinterpret_cast<float*>(ratios), n_rows, clip);
        },
        release_gil());
    module.def(
        "cpu_alignment",
        [](const Launch& launch, Address starts, Address partials) {
            return salsa::cpu::alignment(launch, reinterpret_cast<const std::int64_t*>(starts),
                                         reinterpret_cast<double*>(partials));
        },
        release_gil());
    salsa::add_columns(module);
}
