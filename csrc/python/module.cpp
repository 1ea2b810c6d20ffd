// ecgfast._C: the random stream of the ops over NumPy arrays. No torch in here.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include "../common/philox.h"

namespace py = pybind11;
using namespace pybind11::literals;

namespace {

using Words = py::array_t<uint32_t, py::array::c_style | py::array::forcecast>;

Words philox4x32_10(const Words& counters, const Words& keys) {
  if (counters.ndim() != 2 || counters.shape(1) != 4 || keys.ndim() != 2 || keys.shape(1) != 2 ||
      keys.shape(0) != counters.shape(0))
    throw py::value_error("philox4x32_10: counters must be [n, 4] and keys [n, 2]");
  const py::ssize_t n = counters.shape(0);
  Words out({n, py::ssize_t{4}});
  const uint32_t *c = counters.data(), *k = keys.data();
  uint32_t* o = out.mutable_data();
  py::gil_scoped_release release;
  for (py::ssize_t i = 0; i < n; ++i, c += 4, k += 2, o += 4) {
    const ecgfast::Words w = ecgfast::philox4x32_10(ecgfast::Words{{c[0], c[1], c[2], c[3]}}, k[0], k[1]);
    for (int j = 0; j < 4; ++j) o[j] = w.v[j];
  }
  return out;
}

Words stream(int64_t seed, int64_t step, int64_t sample, uint32_t purpose, py::ssize_t n) {
  if (n < 0) throw py::value_error("stream: n must not be negative");
  Words out(n);
  uint32_t* o = out.mutable_data();
  py::gil_scoped_release release;
  const ecgfast::Stream s = ecgfast::make_stream(seed, step, sample, static_cast<ecgfast::Purpose>(purpose));
  for (py::ssize_t e = 0; e < n; ++e) o[e] = ecgfast::element(s, static_cast<uint32_t>(e));
  return out;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "The random stream of ecgfast over NumPy arrays.";
  m.def("philox4x32_10", &philox4x32_10, "counters"_a, "keys"_a,
        "Philox4x32-10 of uint32 counters [n, 4] under uint32 keys [n, 2]: uint32 [n, 4].");
  m.def("stream", &stream, "seed"_a, "step"_a, "sample"_a, "purpose"_a, "n"_a,
        "Elements 0..n-1 of the stream of one sample at one step for one purpose: uint32 [n].");
}
