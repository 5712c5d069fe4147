// Looking at Python's lists of tensors in C++, where Python takes 50 ns for every attribute.
#include <pybind11/pybind11.h>

#include <cstdint>
#include <stdexcept>
#include <tuple>
#include <vector>

#include "dlpack.h"

namespace py = pybind11;

namespace {

using Address = std::uintptr_t;
using salsa::dlpack::Tensor;

// The memory of an `array.array("q")`, which nobody resizes meanwhile; null where it is too short.
Address* words_of(const py::handle& array, Py_ssize_t n) {
    Py_buffer buffer;
    if (PyObject_GetBuffer(array.ptr(), &buffer, PyBUF_SIMPLE) != 0) throw py::error_already_set();
    PyBuffer_Release(&buffer);
    const auto size = buffer.len / static_cast<Py_ssize_t>(sizeof(Address));
    return size < n ? nullptr : static_cast<Address*>(buffer.buf);
}

// Asks for the cache lines at these addresses; a hint, which no address can make fail.
void prefetch_lines(const py::object& array) {
    const Py_ssize_t n = PyObject_Size(array.ptr());
    const Address* lines = words_of(array, n);
    for (Py_ssize_t i = 0; i < n; ++i) __builtin_prefetch(reinterpret_cast<const void*>(lines[i]));
}

// Gives a tensor's layout word by word (null: there is none), as long as `word` says true.
template <class Word>
bool every_word(const Tensor* tensor, const Word& word) {
    if (tensor == nullptr) return word(-1);
    const auto& [code, bits, lanes] = tensor->dtype;
    if (!(word(tensor->ndim) && word(code | bits << 8 | lanes << 16) &&
          word(tensor->device.type) && word(tensor->device.id)))
        return false;
    for (std::int32_t i = 0; i < tensor->ndim; ++i)
        if (!(word(tensor->shape[i]) && word(tensor->strides[i]))) return false;
    return true;
}

// Reads lists of tensors and None, by the function that torch offers for it.  A tensor that it
// cannot read (sparse, without memory) is for Python to look at.
class TensorReader {
public:
    explicit TensorReader(const py::object& capsule) {
        const auto* api = static_cast<const salsa::dlpack::ExchangeApi*>(
            PyCapsule_GetPointer(capsule.ptr(), salsa::dlpack::kCapsule));
        if (api == nullptr) throw py::error_already_set();
        if (api->version.major != salsa::dlpack::kMajorVersion ||
            api->tensor_from_py_object == nullptr)
            throw std::runtime_error("another version of DLPack's exchange API");
        from_py_object_ = api->tensor_from_py_object;
    }

    // All but the addresses (shapes, strides, dtypes, devices), to compare with; or None.
    py::object layouts(const py::list& tensors) const {
        std::vector<std::int64_t> words;
        const bool readable = every_tensor(tensors, [&](Py_ssize_t, const Tensor* tensor) {
            return every_word(tensor, [&](std::int64_t word) {
                words.push_back(word);
                return true;
            });
        });
        if (!readable) return py::none();
        return py::bytes(reinterpret_cast<const char*>(words.data()),
                         words.size() * sizeof(std::int64_t));
    }

    // Writes where the elements of each begin, 0 for None.
    bool addresses(const py::list& tensors, const py::object& array) const {
        Address* to = words_of(array, PyList_GET_SIZE(tensors.ptr()));
        return to != nullptr && every_tensor(tensors, [&](Py_ssize_t i, const Tensor* tensor) {
            to[i] = address_of(tensor);
            return true;
        });
    }

    // The same where they still have these layouts, and only then true.
    bool addresses_in(const py::list& tensors, const py::bytes& layouts,
                      const py::object& array) const {
        Address* to = words_of(array, PyList_GET_SIZE(tensors.ptr()));
        return to != nullptr && every_tensor_as(tensors, layouts, [&](Py_ssize_t i, const Tensor* tensor) {
            to[i] = address_of(tensor);
            return true;
        });
    }

    // Whether all tensors of some columns, each (tensors, layouts, addresses), have the layouts and
    // the addresses that are given; no where there are no layouts.
    bool unchanged(const py::list& columns) const {
        for (const py::handle& column : columns) {
            const auto [tensors, layouts, at] =
                column.cast<std::tuple<py::list, py::object, py::object>>();
            if (layouts.is_none()) return false;
            const Address* known = words_of(at, PyList_GET_SIZE(tensors.ptr()));
            if (known == nullptr || !every_tensor_as(tensors, layouts, [&](Py_ssize_t i, const Tensor* tensor) {
                    return address_of(tensor) == known[i];
                }))
                return false;
        }
        return true;
    }

private:
    template <class Visit>
    bool every_tensor(const py::list& tensors, const Visit& visit) const {
        const Py_ssize_t n = PyList_GET_SIZE(tensors.ptr());
        for (Py_ssize_t i = 0; i < n; ++i) {
            PyObject* object = PyList_GET_ITEM(tensors.ptr(), i);
            Tensor tensor;
            const bool none = object == Py_None;
            if (!none && from_py_object_(object, &tensor) != 0) {
                PyErr_Clear();
                return false;
            }
            if (!visit(i, none ? nullptr : &tensor)) return false;
        }
        return true;
    }

    // The same for tensors that have these layouts, which are compared first.
    template <class Visit>
    bool every_tensor_as(const py::list& tensors, const py::bytes& layouts,
                         const Visit& visit) const {
        const auto* known = reinterpret_cast<const std::int64_t*>(PyBytes_AS_STRING(layouts.ptr()));
        const auto* end = known + PyBytes_GET_SIZE(layouts.ptr()) / sizeof(std::int64_t);
        const bool same = every_tensor(tensors, [&](Py_ssize_t i, const Tensor* tensor) {
            return every_word(tensor,
                              [&](std::int64_t word) { return known != end && *known++ == word; }) &&
                   visit(i, tensor);
        });
        return same && known == end;
    }

    static Address address_of(const Tensor* tensor) {
        return tensor == nullptr ? 0 : reinterpret_cast<Address>(tensor->data) + tensor->byte_offset;
    }

    salsa::dlpack::FromPyObject from_py_object_;
};

// Asks for what a look at a dict's items will read, some turns before it.
void prefetch_items(PyObject* dict) {
    if (!PyDict_CheckExact(dict)) return;
    const auto* keys = reinterpret_cast<const char*>(reinterpret_cast<PyDictObject*>(dict)->ma_keys);
    __builtin_prefetch(keys);
    __builtin_prefetch(keys + 64);
}

// The step count of all entries of the state, where it is one and the same, the moments are these
// very tensors (a list of each kind) and no entry is missing; None where anything differs.  names:
// what an entry calls the count, and then each kind of moment.
py::object common_step(const py::list& entries, const py::list& moments,
                       const py::sequence& names) {
    constexpr Py_ssize_t kAhead = 12;
    const Py_ssize_t n = PyList_GET_SIZE(entries.ptr());
    std::vector<py::str> keys;
    std::vector<py::list> columns;
    for (const py::handle& name : names) keys.push_back(name.cast<py::str>());
    for (const py::handle& column : moments) columns.push_back(column.cast<py::list>());
    if (keys.size() != columns.size() + 1) throw py::value_error("not a name for each kind");
    for (const py::list& column : columns)
        if (PyList_GET_SIZE(column.ptr()) != n) return py::none();
    PyObject* first = nullptr;
    for (Py_ssize_t i = 0; i < n; ++i) {
        if (i + kAhead < n) prefetch_items(PyList_GET_ITEM(entries.ptr(), i + kAhead));
        PyObject* entry = PyList_GET_ITEM(entries.ptr(), i);
        if (!PyDict_CheckExact(entry)) return py::none();
        const auto field = [entry](const py::str& name) {
            PyObject* value = PyDict_GetItemWithError(entry, name.ptr());
            if (value == nullptr && PyErr_Occurred()) throw py::error_already_set();
            return value;
        };
        for (std::size_t k = 0; k < columns.size(); ++k) {
            PyObject* moment = PyList_GET_ITEM(columns[k].ptr(), i);
            if (moment == Py_None || field(keys[k + 1]) != moment) return py::none();
        }
        PyObject* t = field(keys[0]);
        if (t == nullptr || !PyLong_CheckExact(t)) return py::none();
        if (first == nullptr) first = t;
        if (t != first) {
            const int same = PyObject_RichCompareBool(t, first, Py_EQ);
            if (same < 0) throw py::error_already_set();
            if (same == 0) return py::none();
        }
    }
    return first == nullptr ? py::none() : py::reinterpret_borrow<py::object>(first);
}

// Whether a dict holds the keys and values that a list has, these very objects in this order: first
// all keys, then all values.  None of them is touched.
bool same_items(const py::object& dict, const py::list& known) {
    if (!PyDict_Check(dict.ptr())) return false;
    const Py_ssize_t n = PyDict_GET_SIZE(dict.ptr());
    if (PyList_GET_SIZE(known.ptr()) != 2 * n) return false;
    PyObject *key, *value;
    Py_ssize_t position = 0;
    for (Py_ssize_t i = 0; PyDict_Next(dict.ptr(), &position, &key, &value); ++i)
        if (key != PyList_GET_ITEM(known.ptr(), i) || value != PyList_GET_ITEM(known.ptr(), n + i))
            return false;
    return true;
}

// Whether these lists, one after the other, hold the objects of `known`.
bool same_objects(const py::list& lists, const py::list& known) {
    Py_ssize_t seen = 0;
    for (const py::handle& list : lists) {
        if (!PyList_Check(list.ptr())) throw py::type_error("not a list");
        const Py_ssize_t n = PyList_GET_SIZE(list.ptr());
        if (seen + n > PyList_GET_SIZE(known.ptr())) return false;
        for (Py_ssize_t i = 0; i < n; ++i)
            if (PyList_GET_ITEM(list.ptr(), i) != PyList_GET_ITEM(known.ptr(), seen + i))
                return false;
        seen += n;
    }
    return seen == PyList_GET_SIZE(known.ptr());
}

// entry[name] = value, for all entries.
void set_in_all(const py::list& entries, const py::str& name, const py::object& value) {
    for (const py::handle& entry : entries) {
        const auto set = PyDict_CheckExact(entry.ptr()) ? &PyDict_SetItem : &PyObject_SetItem;
        if (set(entry.ptr(), name.ptr(), value.ptr()) < 0) throw py::error_already_set();
    }
}

}  // namespace

namespace salsa {

void add_columns(py::module_& module) {
    py::class_<TensorReader>(module, "TensorReader")
        .def(py::init<const py::object&>())
        .def("layouts", &TensorReader::layouts)
        .def("addresses", &TensorReader::addresses)
        .def("addresses_in", &TensorReader::addresses_in)
        .def("unchanged", &TensorReader::unchanged);
    module.def("common_step", &common_step);
    module.def("same_items", &same_items);
    module.def("same_objects", &same_objects);
    module.def("set_in_all", &set_in_all);
    module.def("prefetch", &prefetch_lines);
}

}  // namespace salsa
