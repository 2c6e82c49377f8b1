// Facts about the CUDA library. Its operators are registered in each <operator>/cuda.
#include <string>
#include <tuple>

#include <torch/csrc/stable/library.h>

namespace atrousx {

std::tuple<std::string, std::string> cuda_build_info() {
  return {ATROUSX_CUDA_ARCHITECTURES, ATROUSX_CUDA_VERSION};
}

}  // namespace atrousx

STABLE_TORCH_LIBRARY_IMPL(atrousx, CompositeExplicitAutograd, m) {
  m.impl("_cuda_build_info", TORCH_BOX(&atrousx::cuda_build_info));
}
