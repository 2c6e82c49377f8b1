// Launches the last step of grad-weight, for all kernels that write parts.
#pragma once

#include "atrous_conv2d/cuda/grad_weight/sum_parts_kernel.cuh"
#include "cuda/launch.h"

namespace atrousx {

// parts [count, taps, K, C / groups] -> result [K, C / groups, KH, KW].
template <typename T>
void sum_parts(const GatherShape& shape, int64_t count, const Tensor& parts, const Tensor& result,
               cudaStream_t stream) {
  // One thread per weight if there would be few threads otherwise.
  constexpr int64_t kLeastThreads = int64_t{1} << 16;
  const int64_t pairs = result.size(0) * result.size(1);
  const int64_t taps_at_once = pairs < kLeastThreads ? 1 : shape.taps();
  launch({"_atrous_conv2d_backward_weight, sum of parts",
          grid_for(pairs * ceil_div(shape.taps(), taps_at_once)), kThreads, stream},
         atrous_conv2d_sum_parts_kernel<T>, reads<Accumulate<T>>(parts), writes<T>(result), count,
         shape, strides4(result), taps_at_once);
}

}  // namespace atrousx
