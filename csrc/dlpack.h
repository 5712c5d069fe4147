// What is needed of DLPack 1.3's C exchange API: where a framework's tensors lie, asked of their
// Python objects.  https://dmlc.github.io/dlpack/latest/c_api.html
#pragma once

#include <cstdint>

namespace salsa::dlpack {

inline constexpr const char* kCapsule = "dlpack_exchange_api";
inline constexpr std::uint32_t kMajorVersion = 1;

struct Tensor {
    void* data;
    struct {
        std::int32_t type, id;
    } device;
    std::int32_t ndim;
    struct {
        std::uint8_t code, bits;
        std::uint16_t lanes;
    } dtype;
    std::int64_t* shape;
    std::int64_t* strides;  // in elements
    std::uint64_t byte_offset;
};

// Fills a tensor in, which owns nothing; not 0: it cannot, and a Python error is set.
using FromPyObject = int (*)(void* object, Tensor* out);

struct ExchangeApi {
    struct {
        std::uint32_t major, minor;
    } version;
    void* older;
    void* others[3];  // of no use here
    FromPyObject tensor_from_py_object;
    void* current_work_stream;
};

}  // namespace salsa::dlpack
