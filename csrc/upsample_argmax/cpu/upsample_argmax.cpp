// CPU kernel and registration of upsample_argmax.
//
// A task is a range of pixel rows. It goes through them block by block (logit_blocks.h). Values are
// compared as soon as they are blended, a vector of pixels at a time.
#include "upsample_argmax/label_maps.h"
#include "upsample_bilinear2d/cpu/logit_blocks.h"

namespace atrousx {
namespace {

template <typename A, typename LabelType>
struct ArgmaxPlan {
  using Label = LabelType;
  LinesPlan<A> lines;
  Label* labels;   // [N, OH, OW]
  A* probability;  // [N, OH, OW] or null
};

template <int kBytes, typename Plan>
class ArgmaxBlocks {
  using A = typename decltype(Plan::lines)::Number;
  using Label = typename Plan::Label;
  static constexpr int kLanes = kLanesIn<kBytes, A>;
  using V = Lanes<A, kLanes>;
  using Index = std::conditional_t<sizeof(A) == 8, int64_t, int32_t>;

 public:
  ATROUSX_ALWAYS_INLINE ArgmaxBlocks(const Plan* plan, A* values) : plan_(plan), values_(values) {}

  ATROUSX_ALWAYS_INLINE void block(int64_t row, int64_t first, int64_t count,
                                   const BlendedLines<A>& lines) {
    const int64_t at = row * plan_->lines.r.out_width + first;
    alignas(64) Index labels[kLineBlock];
    alignas(64) A best[kLineBlock];
    V differences = V{};
    for (int64_t j = 0; j < count; j += kLanes) {
      const V winner = plan_->probability == nullptr
                           ? winners<false>(lines, j, labels, &differences)
                           : winners<true>(lines, j, labels, &differences);
      store_lanes<kLanes>(best + j, winner);
    }
    A finite = A(0);
    for (int lane = 0; lane < kLanes; ++lane) finite += differences[lane];
    if (finite != A(0)) look_for_nan(lines, count, labels, best);
    for (int64_t j = 0; j < count; ++j) plan_->labels[at + j] = static_cast<Label>(labels[j]);
    if (plan_->probability == nullptr) return;
    for (int64_t j = 0; j < count; j += kLanes)
      store_lanes<kLanes>(best + j, share(load_lanes<kLanes>(best + j), j));
    std::copy_n(static_cast<const A*>(best), count, plan_->probability + at);
  }

 private:
  // Returns the greatest value of each pixel in a vector, and writes its channel to `labels`. Among
  // equal values the first channel wins. kKeep: writes all values to values_. Comparisons ignore
  // NaN; if there may be one, `differences` is not 0.
  template <bool kKeep>
  ATROUSX_ALWAYS_INLINE V winners(const BlendedLines<A>& lines, int64_t j, Index* labels,
                                  V* differences) {
    using Indices = Lanes<Index, kLanes>;
    V best = lines.template value<kLanes>(0, j), none = best - best;
    Indices label = {};
    if (kKeep) store_lanes<kLanes>(values_ + j, best);
    for (int64_t c = 1; c < plan_->lines.r.channels; ++c) {
      const V v = lines.template value<kLanes>(c, j);
      if (kKeep) store_lanes<kLanes>(values_ + c * kLineBlock + j, v);
      const Indices channel = Indices{} + static_cast<Index>(c);
      const auto wins = v > best;
      best = wins ? v : best;
      label = wins ? channel : label;
      none += v - v;
    }
    *differences += none;
    *reinterpret_cast<Indices*>(labels + j) = label;
    return best;
  }

  // Corrects a block that may contain NaN. NaN wins over every number.
  ATROUSX_ALWAYS_INLINE void look_for_nan(const BlendedLines<A>& lines, int64_t count,
                                          Index* labels, A* best) const {
    for (int64_t j = 0; j < count; ++j) {
      for (int64_t c = 0; c < plan_->lines.r.channels; ++c) {
        const A v = lines.template value<1>(c, j);
        if (v == v) continue;
        labels[j] = static_cast<Index>(c);
        best[j] = v;
        break;
      }
    }
  }

  // The softmax probability of the winner.
  ATROUSX_ALWAYS_INLINE V share(V best, int64_t j) const {
    V sum = V{};
    for (int64_t c = 0; c < plan_->lines.r.channels; ++c)
      sum += LaneMath<A, kLanes>::exp_nonpositive(load_lanes<kLanes>(values_ + c * kLineBlock + j) -
                                                  best);
    return A(1) / sum;
  }

  const Plan* plan_;
  A* values_;  // [C, kLineBlock]
};

template <typename A, typename Label>
void argmax_as(const Resampling& r, const Tensor& logits, const Tensor& labels,
               const Tensor& probability) {
  const ArgmaxPlan<A, Label> plan{
      LinesPlan<A>(r, logits), static_cast<Label*>(labels.mutable_data_ptr()),
      probability.numel() > 0 ? static_cast<A*>(probability.mutable_data_ptr()) : nullptr};
  over_pixel_rows<ArgmaxBlocks>(plan);
}

std::tuple<Tensor, Tensor> upsample_argmax_cpu(const Tensor& logits,
                                               std::vector<int64_t> output_size, bool align_corners,
                                               bool with_probability, bool narrow) {
  const auto r = Resampling::forward(logits, output_size, align_corners, {}, {});
  const auto [labels, probability] = label_maps(logits, r, with_probability, narrow);
  if (labels.numel() == 0) return {labels, probability};
  if (logits.scalar_type() == ScalarType::Double)
    narrow ? argmax_as<double, uint8_t>(r, logits, labels, probability)
           : argmax_as<double, int64_t>(r, logits, labels, probability);
  else
    narrow ? argmax_as<float, uint8_t>(r, logits, labels, probability)
           : argmax_as<float, int64_t>(r, logits, labels, probability);
  return {labels, probability};
}

}  // namespace
}  // namespace atrousx

STABLE_TORCH_LIBRARY_IMPL(atrousx, CPU, m) {
  m.impl("_upsample_argmax", ATROUSX_BOX(atrousx::upsample_argmax_cpu));
}
