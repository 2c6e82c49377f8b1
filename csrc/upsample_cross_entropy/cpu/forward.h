// The forward of upsample_cross_entropy on the CPU: losses, block by block of pixels.
#pragma once

#include "upsample_cross_entropy/cpu/labels.h"

namespace atrousx {

template <typename A>
struct LossForwardPlan : LossPlan<A> {
  A* log_sum;          // [N, OH, OW]
  A* losses;           // [N, OH, OW], or null
  double* row_loss;    // [N, OH], zeros at the start
  double* row_weight;  // [N, OH], zeros at the start
};

// Computes the losses of one block of pixels after another.
template <int kBytes, typename Plan>
class LossBlocks {
  using A = typename decltype(Plan::lines)::Number;
  static constexpr int kLanes = kLanesIn<kBytes, A>;
  using Math = LaneMath<A, kLanes>;
  using V = Lanes<A, kLanes>;
  using Index = ClassIndex<A>;

 public:
  ATROUSX_ALWAYS_INLINE LossBlocks(const Plan* plan, A* values) : plan_(plan), values_(values) {}

  ATROUSX_ALWAYS_INLINE void block(int64_t row, int64_t first, int64_t count,
                                   const BlendedLines<A>& lines) {
    const int64_t at = row * plan_->lines.r.out_width + first;
    alignas(64) A lse[kLineBlock], sum[kLineBlock], loss[kLineBlock];
    softmax_sums<kLanes, false>(lines, plan_->loss.channels, count, values_, static_cast<A*>(lse),
                                static_cast<A*>(sum));
    Index classes[kLineBlock];
    plan_->labels.classify(at, count, static_cast<Index*>(classes));
    A own[kLineBlock], weight[kLineBlock];
    for (int64_t j = 0; j < kLineBlock; ++j)
      own[j] = values_[max_of(classes[j], Index(0)) * kLineBlock + j];
    weigh_classes<kLanes>(plan_->loss, static_cast<const Index*>(classes), static_cast<A*>(weight));
    for (int64_t j = 0; j < count; j += kLanes) {
      const V log_sum = load_lanes<kLanes>(lse + j) + Math::log_normal(load_lanes<kLanes>(sum + j));
      const V w = load_lanes<kLanes>(weight + j);
      V value = (A(1) - plan_->loss.smoothing) * w * (log_sum - load_lanes<kLanes>(own + j));
      if (plan_->loss.smoothing != A(0)) value += spread(j, log_sum);
      const auto counts = load_raw<Lanes<Index, kLanes>>(classes + j) != kIgnoredClass;
      store_lanes<kLanes>(lse + j, log_sum);
      store_lanes<kLanes>(loss + j, counts ? value : V{});
    }
    std::copy_n(lse, count, plan_->log_sum + at);
    if (plan_->losses != nullptr) std::copy_n(loss, count, plan_->losses + at);
    plan_->row_loss[row] += total(loss, count);
    plan_->row_weight[row] += total(weight, count);
  }

 private:
  // The smoothed part of the losses: (e / C) sum_c w_c (lse - v_c)
  ATROUSX_ALWAYS_INLINE V spread(int64_t j, V log_sum) const {
    V weighted = V{};
    for (int64_t c = 0; c < plan_->loss.channels; ++c)
      weighted += plan_->loss.weight(c) * load_lanes<kLanes>(values_ + c * kLineBlock + j);
    return plan_->loss.spread() * (plan_->total * log_sum - weighted);
  }

  // Sums in float64, by whole vectors. Numbers past `count` must be 0.
  static ATROUSX_ALWAYS_INLINE double total(const A* numbers, int64_t count) {
    constexpr int kWide = kBytes / 8;
    Lanes<double, kWide> sums = {};
    for (int64_t j = 0; j < count; j += kWide)
      sums += __builtin_convertvector(load_raw<Lanes<A, kWide>>(numbers + j), Lanes<double, kWide>);
    double sum = 0;
    for (int lane = 0; lane < kWide; ++lane) sum += sums[lane];
    return sum;
  }

  const Plan* plan_;
  A* values_;  // [C, kLineBlock]
};

}  // namespace atrousx
