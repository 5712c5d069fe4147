// Python's door to the CUDA kernels: addresses, sizes and a stream as integers, no torch headers.
#include <pybind11/pybind11.h>

#include "cuda_kernels.h"

namespace py = pybind11;

namespace {

using Address = std::uintptr_t;
using salsa::cuda::Launch;

Launch launch_from(Address rows, Address chunks, std::int64_t n_chunks, std::int64_t n_vector,
                   Address scalars, Address saved, Address skip, int dtype, int device,
                   Address stream, int direction, Address ratios, int formats) {
    return {reinterpret_cast<const salsa::Row*>(rows),
            reinterpret_cast<const salsa::Chunk*>(chunks),
            n_chunks,
            n_vector,
            reinterpret_cast<const salsa::Scalars*>(scalars),
            reinterpret_cast<void*>(saved),
            reinterpret_cast<const float*>(skip),
            static_cast<salsa::Dtype>(dtype),
            device,
            reinterpret_cast<void*>(stream),
            direction,
            reinterpret_cast<const float*>(ratios),
            {formats}};
}

}  // namespace

PYBIND11_MODULE(_native_cuda, module) {
    module.doc() = "The CUDA kernels of salsa_fused.";
    module.attr("directions") = salsa::kDirections;
    module.attr("architectures") = SALSA_CUDA_ARCHITECTURES;

    using release_gil = py::call_guard<py::gil_scoped_release>;
    // local: a process may load another build of this module, as the tests do
    py::class_<Launch>(module, "CudaLaunch", py::module_local()).def(py::init(&launch_from));
    module.def(
        "first_trial",
        [](const Launch& launch, Address partials) {
            salsa::cuda::first_trial(launch, reinterpret_cast<double*>(partials));
        },
        release_gil());
    module.def("probe", &salsa::cuda::probe, release_gil());
    module.def("next_trial", &salsa::cuda::next_trial, release_gil());
    module.def("step", &salsa::cuda::step, release_gil());
    module.def(
        "trust_ratios",
        [](const Launch& launch, Address partials, Address chunk_ranges, std::int64_t n_rows,
           float clip, Address ratios) {
            salsa::cuda::trust_ratios(launch, reinterpret_cast<double*>(partials),
                                      reinterpret_cast<const std::int64_t*>(chunk_ranges), n_rows,
                                      clip, reinterpret_cast<float*>(ratios));
        },
        release_gil());
    module.def(
        "alignment",
        [](const Launch& launch, Address starts, Address partials) {
            salsa::cuda::alignment(launch, reinterpret_cast<const std::int64_t*>(starts),
                                   reinterpret_cast<double*>(partials));
        },
        release_gil());
}
