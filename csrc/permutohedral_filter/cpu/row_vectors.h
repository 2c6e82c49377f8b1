// Rows of channels in vector registers.
//
// Values and vertices are rows of channels. A row is cut into vectors of 32 bytes. Up to four
// vectors stay in registers while a loop visits its rows; with more channels it visits them four
// vectors at a time. Rows of vertices are padded to whole vectors. The padding holds whatever
// follows the row of values in memory. This is harmless: lanes are independent, and nothing reads
// the padding.
#pragma once

#include "cpu/dispatch.h"
#include "cpu/lanes.h"
#include "tensor.h"

namespace atrousx {

template <typename T>
struct RowVector {
  static constexpr int64_t kLanes = kLanesIn<32, T>;
  using type = Lanes<T, kLanes>;
};

template <typename T>
int64_t row_vectors(int64_t channels) {
  return (channels + RowVector<T>::kLanes - 1) / RowVector<T>::kLanes;
}

// `kVectors` vectors of a row.
template <typename T, int kVectors>
struct RowBlock {
  using Vector = typename RowVector<T>::type;
  Vector v[kVectors];

  ATROUSX_ALWAYS_INLINE void clear() {
    for (int i = 0; i < kVectors; ++i) v[i] = Vector{};
  }
  ATROUSX_ALWAYS_INLINE void load(const T* from) {
    for (int i = 0; i < kVectors; ++i) v[i] = reinterpret_cast<const Vector*>(from)[i];
  }
  ATROUSX_ALWAYS_INLINE void store(T* to) const {
    for (int i = 0; i < kVectors; ++i) reinterpret_cast<Vector*>(to)[i] = v[i];
  }
  ATROUSX_ALWAYS_INLINE void add(T weight, const T* from) {
    for (int i = 0; i < kVectors; ++i) v[i] += weight * reinterpret_cast<const Vector*>(from)[i];
  }
};

// Calls Loop::block<kVectors>(first lane, args...) until `vectors` are done.
template <typename Loop, typename... Args>
ATROUSX_ALWAYS_INLINE void over_blocks(int64_t vectors, int64_t lanes, Args... args) {
  int64_t at = 0;
  for (; vectors - at > 4; at += 4) Loop::template block<4>(at * lanes, args...);
  switch (vectors - at) {
    case 1:
      return Loop::template block<1>(at * lanes, args...);
    case 2:
      return Loop::template block<2>(at * lanes, args...);
    case 3:
      return Loop::template block<3>(at * lanes, args...);
    case 4:
      return Loop::template block<4>(at * lanes, args...);
  }
}

// Prefetches `vectors` vectors, but at most 256 bytes. Rows begin at multiples of 32 bytes, so a
// row of whole cache lines may reach into one more line.
template <typename T>
ATROUSX_ALWAYS_INLINE void prefetch_row(const T* row, int64_t vectors) {
  constexpr int64_t kLine = 64, kMost = 4 * kLine;
  const char* bytes = reinterpret_cast<const char*>(row);
  const int64_t size = std::min<int64_t>(kMost, vectors * 32);
  for (int64_t at = 0; at < size; at += kLine) __builtin_prefetch(bytes + at);
  if (size % kLine == 0) __builtin_prefetch(bytes + size - 1);
}

}  // namespace atrousx
