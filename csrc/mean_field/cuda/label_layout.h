// The layout of rows of labels in a GPU's memory, and how the lanes of a warp share a row.
#pragma once

#include "portable.h"

namespace atrousx {

constexpr int kWarpLanes = 32;

// The labels that one lane loads at once.
template <typename T>
struct alignas(16) LabelPack {
  static constexpr int kLabels = 16 / sizeof(T);
  T v[kLabels];
};

// A row holds the labels of a point or a vertex in packs of 16 bytes. Rows of several packs have an
// even number of packs, so that a row fills whole sectors of 32 bytes wherever it is gathered. A
// row of 21 float32 labels then touches 3 sectors; without padding it would mostly touch 4. `lanes`
// lanes of a warp, a power of two, own a row and take its packs in turn.
struct RowShape {
  using HoldsNoAddress = void;
  int64_t labels;
  int packs;  // 32 bits, so that a row's offset is one 32-bit multiplication
  int shift;  // lanes = 1 << shift

  template <typename T>
  static RowShape make(int64_t labels) {
    int packs = static_cast<int>(ceil_div<int64_t>(labels, LabelPack<T>::kLabels));
    if (packs > 1) packs += packs % 2;
    int shift = 0;
    while ((1 << shift) < kWarpLanes && (1 << shift) < packs) ++shift;
    return {labels, packs, shift};
  }

  ATROUSX_HOST_DEVICE int lanes() const { return 1 << shift; }
};

}  // namespace atrousx
