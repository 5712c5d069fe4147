// Python's door to the kernels: addresses and sizes as integers, no torch headers.
#include <pybind11/pybind11.h>

#include "cpu_kernels.h"

namespace py = pybind11;

namespace {

using Address = std::uintptr_t;

salsa::cpu::Launch launch_from(Address rows, Address chunks, std::int64_t n_chunks, Address classes,
                               Address saved, int threads) {
    return {reinterpret_cast<const salsa::Row*>(rows),
            reinterpret_cast<const salsa::Chunk*>(chunks),
            n_chunks,
            reinterpret_cast<const salsa::AdamClass*>(classes),
            reinterpret_cast<float*>(saved),
            threads};
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
    module.doc() = "The compiled kernels of salsa_fused; called by salsa_fused/kernels/native.py.";
    module.attr("compiler") = compiler();
    module.attr("openmp") = salsa::cpu::has_openmp();
    module.attr("class_fields") = sizeof(salsa::AdamClass) / sizeof(float);
    module.attr("row_fields") = sizeof(salsa::Row) / sizeof(std::int64_t);

    using release_gil = py::call_guard<py::gil_scoped_release>;
    module.def("cpu_first_trial",
               [](Address rows, Address chunks, std::int64_t n_chunks, Address classes,
                  Address saved, int threads, Address partials) {
                   return salsa::cpu::first_trial(
                       launch_from(rows, chunks, n_chunks, classes, saved, threads),
                       reinterpret_cast<double*>(partials));
               },
               release_gil());
    module.def("cpu_next_trial",
               [](Address rows, Address chunks, std::int64_t n_chunks, Address classes,
                  Address saved, int threads) {
                   salsa::cpu::next_trial(
                       launch_from(rows, chunks, n_chunks, classes, saved, threads));
               },
               release_gil());
    module.def("cpu_adam_step",
               [](Address rows, Address chunks, std::int64_t n_chunks, Address classes,
                  Address saved, int threads) {
                   salsa::cpu::adam_step(
                       launch_from(rows, chunks, n_chunks, classes, saved, threads));
               },
               release_gil());
}
