// CPU kernel and registration of upsample_softmax_add.
//
// A task is a band of pixel rows. It walks them block by block (cpu_blocks.h): a block's values
// become exponentials in place, and their shares are added to the sum.
#include "../upsample_bilinear2d/cpu_blocks.h"
#include "../vector_math.h"
#include "arguments.h"

namespace atrousx {
namespace {

// values = exp(value - greatest of the pixel), scale[j] = alpha / their sum over channels
struct Exponentials {
  template <typename A>
  static ATROUSX_ALWAYS_INLINE void run(A* values, int64_t channels, int64_t count, A alpha,
                                        A* scale) {
    A best[kBlockOutputs];
    for (int64_t j = 0; j < count; ++j) {
      best[j] = values[j];
      scale[j] = A(0);
    }
    for (int64_t c = 1; c < channels; ++c)
      for (int64_t j = 0; j < count; ++j) best[j] = max_of(best[j], values[c * kBlockPitch + j]);
    for (int64_t c = 0; c < channels; ++c)
      for (int64_t j = 0; j < count; ++j) {
        A& value = values[c * kBlockPitch + j];
        value = exp_nonpositive(value - best[j]);
        scale[j] += value;
      }
    for (int64_t j = 0; j < count; ++j) scale[j] = alpha / scale[j];
  }
};

// sum += scale * value, where neighbouring pixels of a channel are neighbours in memory, or
// neighbouring channels of a pixel, or neither.
struct AddShares {
  template <typename A>
  static ATROUSX_ALWAYS_INLINE void run(const A* values, int64_t channels, int64_t count,
                                        const A* scale, A* sum, int64_t channel_stride,
                                        int64_t column_stride) {
    if (column_stride == 1) {
      for (int64_t c = 0; c < channels; ++c)
        for (int64_t j = 0; j < count; ++j)
          sum[c * channel_stride + j] += scale[j] * values[c * kBlockPitch + j];
      return;
    }
    for (int64_t j = 0; j < count; ++j)
      for (int64_t c = 0; c < channels; ++c)
        sum[c * channel_stride + j * column_stride] += scale[j] * values[c * kBlockPitch + j];
  }
};

template <typename T>
class CpuSoftmaxAdd : UpsampledBlocks<T> {
  using typename UpsampledBlocks<T>::A;

 public:
  CpuSoftmaxAdd(const Resampling& r, const T* logits, A* sum, const Strides4& strides, A alpha,
                bool flip)
      : UpsampledBlocks<T>(r, logits), sum_(sum), strides_(strides), alpha_(alpha), flip_(flip) {}

  void run() const {
    const int64_t tasks = this->r_.batch * this->bands();
    torch::stable::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
      std::vector<A> row(this->row_size()), values(this->block_size());
      for (int64_t task = begin; task < end; ++task) {
        const Cell& band = this->rows_[task % this->bands()];
        for (int64_t oh = band.first; oh < band.first + band.count; ++oh)
          run_line(task / this->bands(), oh, row.data(), values.data());
      }
    });
  }

 private:
  void run_line(int64_t n, int64_t oh, A* row, A* values) const {
    const int64_t channels = this->r_.channels, width = this->r_.width;
    this->blend(n, oh, row);
    for (int64_t c = 0; flip_ && c < channels; ++c)
      std::reverse(row + c * width, row + (c + 1) * width);
    for (int64_t b = 0; b < this->columns_.blocks(); ++b) {
      const int64_t count = this->columns_.block_count(b);
      A scale[kBlockOutputs];
      this->interpolate(b, row, values);
      run_best<Exponentials>(values, channels, count, alpha_, static_cast<A*>(scale));
      run_best<AddShares>(
          static_cast<const A*>(values), channels, count, static_cast<const A*>(scale),
          sum_ + strides_.offset(n, 0, oh, this->columns_.block_first(b)), strides_.c, strides_.w);
    }
  }

  A* const sum_;  // [N, C, OH, OW]
  const Strides4 strides_;
  const A alpha_;
  const bool flip_;
};

void upsample_softmax_add_cpu(Tensor sum, const Tensor& logits, double alpha, bool flip,
                              bool align_corners) {
  const auto r = softmax_add_arguments(sum, logits, align_corners);
  if (sum.numel() == 0) return;
  const Tensor source = torch::stable::contiguous(logits);
  dispatch_floating(logits.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using A = Accumulate<T>;
    CpuSoftmaxAdd<T>(r, static_cast<const T*>(source.const_data_ptr()),
                     static_cast<A*>(sum.mutable_data_ptr()), strides4(sum), static_cast<A>(alpha),
                     flip)
        .run();
  });
}

}  // namespace
}  // namespace atrousx

STABLE_TORCH_LIBRARY_IMPL(atrousx, CPU, m) {
  m.impl("_upsample_softmax_add_", TORCH_BOX(&atrousx::upsample_softmax_add_cpu));
}
