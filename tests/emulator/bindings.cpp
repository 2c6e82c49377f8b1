// The Python module of host-executed kernels; each operator binds its own.
#include <pybind11/pybind11.h>

#include "emulator.h"

void bind_atrous_conv2d(pybind11::module_& m);
void bind_atrous_conv2d_depthwise(pybind11::module_& m);
void bind_atrous_conv2d_tensorcore(pybind11::module_& m);
void bind_mean_field(pybind11::module_& m);
void bind_multi_rate_conv2d(pybind11::module_& m);
void bind_permutohedral(pybind11::module_& m);
void bind_planted(pybind11::module_& m);
void bind_ptx(pybind11::module_& m);
void bind_upsample_bilinear2d(pybind11::module_& m);
void bind_upsample_consumers(pybind11::module_& m);

PYBIND11_MODULE(atrousx_emulated, m) {
  m.def("set_reverse", &emulator::set_reverse);
  m.def("set_eager_copies", &emulator::set_eager_copies);
  bind_atrous_conv2d(m);
  bind_atrous_conv2d_depthwise(m);
  bind_atrous_conv2d_tensorcore(m);
  bind_mean_field(m);
  bind_multi_rate_conv2d(m);
  bind_permutohedral(m);
  bind_planted(m);
  bind_ptx(m);
  bind_upsample_bilinear2d(m);
  bind_upsample_consumers(m);
}
