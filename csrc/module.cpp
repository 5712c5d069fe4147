// Python's door to the kernels: addresses and sizes as integers, no torch headers.
#include <pybind11/pybind11.h>

#include "cpu_kernels.h"
#include "watch.h"

namespace py = pybind11;

namespace {

using Address = std::uintptr_t;
using salsa::cpu::Launch;

Launch launch_from(Address rows, Address chunks, std::int64_t n_chunks, Address classes,
                   Address saved, int dtype, bool stream, int threads, int direction, Address ratios) {
    return {reinterpret_cast<const salsa::Row*>(rows),
            reinterpret_cast<const salsa::Chunk*>(chunks),
            n_chunks,
            reinterpret_cast<const salsa::AdamClass*>(classes),
            reinterpret_cast<void*>(saved),
            static_cast<salsa::Dtype>(dtype),
            stream,
            threads,
            static_cast<salsa::Direction>(direction),
            reinterpret_cast<const float*>(ratios)};
}

double first_trial(const Launch& launch, Address partials) {
    return salsa::cpu::first_trial(launch, reinterpret_cast<double*>(partials));
}

const char* compiler() {
#if defined(__VERSION__)
    return __VERSION__;
#else
    return "unknown";
#endif
}

}  // namespace

PYBIND11_MODULE(_native, module) {
    module.doc() = "The compiled part of salsa_fused; called by salsa_fused/kernels/{native,watch}.py.";
    module.attr("compiler") = compiler();
    module.attr("openmp") = salsa::cpu::has_openmp();
    module.attr("class_fields") = sizeof(salsa::AdamClass) / sizeof(float);
    module.attr("row_fields") = sizeof(salsa::Row) / sizeof(std::int64_t);

    using release_gil = py::call_guard<py::gil_scoped_release>;
    py::class_<Launch>(module, "CpuLaunch").def(py::init(&launch_from));
    module.def("cpu_first_trial", &first_trial, release_gil());
    module.def("cpu_advise_huge_pages", [](Address memory, std::int64_t bytes) {
        salsa::cpu::advise_huge_pages(reinterpret_cast<void*>(memory), bytes);
    });
    module.def("cpu_next_trial", &salsa::cpu::next_trial, release_gil());
    module.def("cpu_adam_step", &salsa::cpu::adam_step, release_gil());
    module.def("cpu_sgd_step", &salsa::cpu::sgd_step, release_gil());
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
    salsa::add_watching(module);
}
