// What the host code of csrc/cuda_kernels.cu includes where a C++ compiler compiles it: launches run
// the kernels' PTX, translated.  The bodies of the kernels compile too, and are never called.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>

#define __global__
#define __device__
#define __shared__ static
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __builtin_assume(...)

struct uint2 {
    unsigned x, y;
};
struct uint4 {
    unsigned x, y, z, w;
};
struct dim3 {
    unsigned x, y = 1, z = 1;
    constexpr dim3(unsigned x = 1) : x(x) {}
};
inline const dim3 threadIdx, blockIdx;
inline void __syncthreads() {}

enum cudaError_t { cudaSuccess, cudaErrorLaunchFailure };
using cudaStream_t = void*;
struct cudaFuncAttributes {};
struct cudaLaunchConfig_t {
    dim3 gridDim, blockDim;
    cudaStream_t stream;
};

inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
template <class Kernel>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes*, Kernel*) {
    return cudaSuccess;
}

extern "C" int ptx_launch(void (*)(), unsigned, unsigned, const void* const*);
extern "C" const char* ptx_message();
inline const char* cudaGetErrorString(cudaError_t) { return ptx_message(); }

void (*ptx_of(void (*kernel)()))();  // in the table that nvcc_module.py writes

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
    const auto run = [&](Parameters... values) {
        const void* addresses[] = {&values...};
        return ptx_launch(ptx_of(reinterpret_cast<void (*)()>(kernel)), config->gridDim.x,
                          config->blockDim.x, addresses);
    };
    return run(std::forward<Arguments>(arguments)...) ? cudaErrorLaunchFailure : cudaSuccess;
}
