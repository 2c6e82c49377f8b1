// What the forward and backward of upsample_cross_entropy on the CPU share: labels, weights, sizes.
#pragma once

#include "upsample_bilinear2d/cpu/logit_blocks.h"
#include "upsample_cross_entropy/plan.h"

namespace atrousx {

// The loops replace a label by its class, or by one of these.
constexpr int kIgnoredClass = -1, kInvalidClass = -2;

template <typename A>
using ClassIndex = std::conditional_t<sizeof(A) == 8, int64_t, int32_t>;

struct ClassifyLabels {
  template <typename Label, typename Index>
  static ATROUSX_ALWAYS_INLINE void run(const Label* labels, int64_t count, int64_t channels,
                                        int64_t ignore_index, Index* classes) {
    for (int64_t j = 0; j < count; ++j) {
      const auto label = static_cast<int64_t>(labels[j]);
      const bool valid = label >= 0 && label < channels;
      const auto c = valid ? static_cast<Index>(label) : Index(kInvalidClass);
      classes[j] = label == ignore_index ? Index(kIgnoredClass) : c;
    }
  }
};

struct Labels {
  const void* data;  // [N, OH, OW]
  ScalarType dtype;
  int64_t channels, ignore_index;

  // Classifies `count` pixels from `at` on. The rest of the block is marked as ignored.
  template <typename Index>
  void classify(int64_t at, int64_t count, Index* classes) const {
    if (dtype == ScalarType::Long)
      run_best<ClassifyLabels>(static_cast<const int64_t*>(data) + at, count, channels,
                               ignore_index, classes);
    else if (dtype == ScalarType::Int)
      run_best<ClassifyLabels>(static_cast<const int32_t*>(data) + at, count, channels,
                               ignore_index, classes);
    else
      run_best<ClassifyLabels>(static_cast<const uint8_t*>(data) + at, count, channels,
                               ignore_index, classes);
    std::fill(classes + count, classes + kLineBlock, Index(kIgnoredClass));
  }
};

// The weights of a block's classes: 0 for ignored pixels, NaN for invalid labels.
template <int kLanes, typename A>
ATROUSX_ALWAYS_INLINE void weigh_classes(const PixelLoss<A>& loss, const ClassIndex<A>* classes,
                                         A* weight) {
  using V = Lanes<A, kLanes>;
  for (int64_t j = 0; j < kLineBlock && loss.class_weight != nullptr; ++j)
    weight[j] = loss.class_weight[max_of(classes[j], ClassIndex<A>(0))];
  for (int64_t j = 0; j < kLineBlock; j += kLanes) {
    const auto c = load_raw<Lanes<ClassIndex<A>, kLanes>>(classes + j);
    V w = V{} + A(1);
    if (loss.class_weight != nullptr) w = load_lanes<kLanes>(weight + j);
    const auto known = c >= 0, invalid = c == kInvalidClass;
    const V none = V{}, nan = none + std::numeric_limits<A>::quiet_NaN();
    w = known ? w : none;
    store_lanes<kLanes>(weight + j, invalid ? nan : w);
  }
}

template <typename A>
struct LossPlan {
  LinesPlan<A> lines;
  PixelLoss<A> loss;  // takes classes instead of labels
  A total;            // sum of the class weights
  Labels labels;
};

}  // namespace atrousx
