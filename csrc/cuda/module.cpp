// Import hook of atrousx._cuda; its operators register themselves in the *_cuda.cu files.
#include "python_module.h"

PyMODINIT_FUNC PyInit__cuda() {
  const atrousx::ModuleString strings[] = {
      {"architectures", ATROUSX_CUDA_ARCHITECTURES},
      {"built_with_cuda", ATROUSX_CUDA_VERSION},
  };
  return atrousx::make_module("atrousx._cuda", strings);
}
