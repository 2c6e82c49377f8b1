// Every operator's schema: the table of contents. Kernels are registered next to their code, in
// <operator>/<operator>_cpu.cpp and <operator>/<operator>_cuda.cu; autograd, fake kernels and
// autocast in atrousx/ops/<operator>.py.
#include <torch/csrc/stable/library.h>

#include "cpu_dispatch.h"
#include "python_module.h"

STABLE_TORCH_LIBRARY(atrousx, m) {
  // padding: top, left, bottom, right.
  m.def(
      "atrous_conv2d(Tensor input, Tensor weight, Tensor? bias, SymInt[2] stride, "
      "SymInt[4] padding, SymInt[2] dilation, SymInt groups) -> Tensor");
  m.def(
      "_atrous_conv2d_backward_input(Tensor grad_output, Tensor weight, SymInt[4] input_size, "
      "SymInt[2] stride, SymInt[4] padding, SymInt[2] dilation, SymInt groups) -> Tensor");
  m.def(
      "_atrous_conv2d_backward_weight(Tensor grad_output, Tensor input, SymInt[4] weight_size, "
      "SymInt[2] stride, SymInt[4] padding, SymInt[2] dilation, SymInt groups) -> Tensor");

  // scales: output size over input size as the caller gave them, or None to take it from the sizes.
  m.def(
      "upsample_bilinear2d(Tensor input, SymInt[2] output_size, bool align_corners, "
      "float? scale_h=None, float? scale_w=None) -> Tensor");
  m.def(
      "_upsample_bilinear2d_backward(Tensor grad_output, SymInt[4] input_size, bool align_corners, "
      "float? scale_h=None, float? scale_w=None) -> Tensor");
}

PyMODINIT_FUNC PyInit__C() {
  const atrousx::ModuleString strings[] = {
      {"cpu_isa", atrousx::cpu_isa_name(atrousx::cpu_isa())},
      {"built_with_torch", ATROUSX_BUILT_WITH_TORCH},
  };
  return atrousx::make_module("atrousx._C", strings);
}
