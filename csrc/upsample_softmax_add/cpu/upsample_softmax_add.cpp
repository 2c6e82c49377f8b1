// CPU kernel and registration of upsample_softmax_add.
//
// A task is a range of pixel rows. It goes through them block by block (logit_blocks.h). The values
// of a block become exponentials in place, and their shares are added to the sum.
#include "cpu/transpose.h"
#include "upsample_bilinear2d/cpu/logit_blocks.h"
#include "upsample_softmax_add/arguments.h"

namespace atrousx {
namespace {

template <typename A>
struct SoftmaxAddPlan {
  LinesPlan<A> lines;
  A* sum;  // [N, C, OH, OW]
  Strides4 strides;
  A alpha;
};

template <int kBytes, typename Plan>
class SoftmaxAddBlocks {
  using A = typename decltype(Plan::lines)::Number;
  static constexpr int kLanes = kLanesIn<kBytes, A>;

 public:
  ATROUSX_ALWAYS_INLINE SoftmaxAddBlocks(const Plan* plan, A* values)
      : plan_(plan), values_(values) {}

  ATROUSX_ALWAYS_INLINE void block(int64_t row, int64_t first, int64_t count,
                                   const BlendedLines<A>& lines) {
    const Resampling& r = plan_->lines.r;
    alignas(64) A best[kLineBlock], scale[kLineBlock];
    softmax_sums<kLanes, true>(lines, r.channels, count, values_, static_cast<A*>(best),
                               static_cast<A*>(scale));
    for (int64_t j = 0; j < count; ++j) scale[j] = plan_->alpha / scale[j];
    const Strides4& strides = plan_->strides;
    A* to = plan_->sum + strides.offset(row / r.out_height, 0, row % r.out_height, first);
    if (strides.w == 1) {
      for (int64_t c = 0; c < r.channels; ++c)
        for (int64_t j = 0; j < count; ++j)
          to[c * strides.c + j] += scale[j] * values_[c * kLineBlock + j];
    } else if (strides.c == 1 && r.channels >= kLanes && count >= kLanes) {
      add_transposed(scale, count, to);
    } else {
      for (int64_t j = 0; j < count; ++j)
        for (int64_t c = 0; c < r.channels; ++c)
          to[c * strides.c + j * strides.w] += scale[j] * values_[c * kLineBlock + j];
    }
  }

 private:
  // Adds to pixels whose channels are neighbours. A square may overlap the one before it, but must
  // not add twice. Its new numbers are in its last rows and lanes.
  ATROUSX_ALWAYS_INLINE void add_transposed(const A* scale, int64_t count, A* to) {
    const int64_t channels = plan_->lines.r.channels;
    for (int64_t j = 0; j < count; j += kLanes) {
      const int64_t column = min_of(j, count - kLanes);
      const auto shares = load_lanes<kLanes>(scale + column);
      for (int64_t c = 0; c < channels; c += kLanes) {
        const int64_t channel = min_of(c, channels - kLanes);
        transpose_square<kLanes>(
            [&](int i) ATROUSX_INLINE_LAMBDA {
              const A* from = values_ + (channel + i) * kLineBlock + column;
              const auto row = load_lanes<kLanes>(from) * shares;
              return channel + i < c ? Lanes<A, kLanes>{} : row;
            },
            [&](int i, auto v) ATROUSX_INLINE_LAMBDA {
              A* at = to + (column + i) * plan_->strides.w + channel;
              if (column + i >= j) store_lanes<kLanes>(at, load_lanes<kLanes>(at) + v);
            });
      }
    }
  }

  const Plan* plan_;
  A* values_;  // [C, kLineBlock]
};

template <typename A>
void add_as(const Tensor& sum, const Tensor& logits, const Resampling& r, double alpha, bool flip) {
  const SoftmaxAddPlan<A> plan{LinesPlan<A>(r, logits, flip),
                               static_cast<A*>(sum.mutable_data_ptr()), strides4(sum),
                               static_cast<A>(alpha)};
  over_pixel_rows<SoftmaxAddBlocks>(plan);
}

void upsample_softmax_add_cpu(Tensor sum, const Tensor& logits, double alpha, bool flip,
                              bool align_corners) {
  const auto r = softmax_add_arguments(sum, logits, align_corners);
  if (sum.numel() == 0) return;
  if (sum.scalar_type() == ScalarType::Double)
    add_as<double>(sum, logits, r, alpha, flip);
  else
    add_as<float>(sum, logits, r, alpha, flip);
}

}  // namespace
}  // namespace atrousx

STABLE_TORCH_LIBRARY_IMPL(atrousx, CPU, m) {
  m.impl("_upsample_softmax_add_", ATROUSX_BOX(atrousx::upsample_softmax_add_cpu));
}
