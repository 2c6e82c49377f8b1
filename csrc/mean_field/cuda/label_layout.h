// How rows of labels lie in a GPU's memory and how the lanes of a warp share them.
#pragma once

#include "portable.h"

namespace atrousx {

constexpr int kWarpLanes = 32;

// What one lane loads at once.
template <typename T>
struct alignas(16) LabelPack {
  static constexpr int kLabels = 16 / sizeof(T);
  T v[kLabels];
};

// A row is a point's or a vertex's labels in packs of 16 bytes. Rows of several packs have an even
// number of them, so that a row gathered from anywhere fills whole sectors of 32 bytes: a row of 21
// float32 touches 3 sectors, without padding mostly 4. `lanes` lanes of a warp, a power of two, own
// a row and take its packs in turn.
struct RowShape {
  using HoldsNoAddress = void;
  int64_t labels;
  int packs;  // int, so that a row's offset is one multiplication of 32-bit numbers
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
