// CUDA launcher and registration of upsample_softmax_add.
#include "../cuda_launch.h"
#include "arguments.h"
#include "upsample_softmax_add_kernels.cuh"

namespace atrousx {
namespace {

void upsample_softmax_add_cuda(Tensor sum, const Tensor& logits, double alpha, bool flip,
                               bool align_corners) {
  const auto r = softmax_add_arguments(sum, logits, align_corners);
  if (sum.numel() == 0) return;
  const LaunchContext context(logits.get_device_index());
  dispatch_floating(logits.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using A = Accumulate<T>;
    upsample_softmax_add_kernel<T>
        <<<grid_for(r.batch * r.out_height * r.out_width), kThreads, 0, context.stream()>>>(
            static_cast<const T*>(logits.const_data_ptr()), static_cast<A*>(sum.mutable_data_ptr()),
            r.batch, r.channels, r.plan<T>(), static_cast<A>(alpha), flip, strides4(logits),
            strides4(sum));
  });
  check_cuda(cudaGetLastError(), "_upsample_softmax_add_");
}

}  // namespace
}  // namespace atrousx

STABLE_TORCH_LIBRARY_IMPL(atrousx, CUDA, m) {
  m.impl("_upsample_softmax_add_", ATROUSX_BOX(atrousx::upsample_softmax_add_cuda));
}
