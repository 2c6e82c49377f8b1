// All CPU code transposes with this file, except gemm/pack.h. Squares of numbers, one vector wide,
// are transposed in registers. Larger blocks are cut into such squares. The last square of a row or
// column overlaps the one before.
#pragma once

#include <algorithm>

#include "cpu/lanes.h"

namespace atrousx {

// result[lane] is a[lane] where bit kStep of `lane` is 0, else b[lane - kStep]. kHigh returns the
// other elements: a[lane + kStep], else b[lane].
template <int kStep, bool kHigh, typename Index, typename Vector, size_t... kLane>
ATROUSX_ALWAYS_INLINE Vector interleave_lanes(Vector a, Vector b, std::index_sequence<kLane...>) {
  constexpr int kLanes = sizeof...(kLane);
  constexpr auto from = [](int lane) {
    const bool second = lane & kStep;
    return kHigh ? (second ? kLanes + lane : lane + kStep)
                 : (second ? kLanes + lane - kStep : lane);
  };
#if defined(__clang__)
  return __builtin_shufflevector(a, b, from(kLane)...);
#else
  return __builtin_shuffle(a, b, Lanes<Index, kLanes>{static_cast<Index>(from(kLane))...});
#endif
}

// Transposes rows[i][j] to rows[j][i]. Pairs of rows exchange blocks of 1, 2, 4, ... lanes.
template <int kStep = 1, int kLanes, typename Vector>
ATROUSX_ALWAYS_INLINE void transpose_lanes(Vector (&rows)[kLanes]) {
  using Index = std::conditional_t<sizeof(rows[0][0]) == 8, int64_t, int32_t>;
  if constexpr (kStep < kLanes) {
    for (int i = 0; i < kLanes; ++i) {
      if (i & kStep) continue;
      const Vector a = rows[i], b = rows[i + kStep];
      rows[i] = interleave_lanes<kStep, false, Index>(a, b, std::make_index_sequence<kLanes>{});
      rows[i + kStep] =
          interleave_lanes<kStep, true, Index>(a, b, std::make_index_sequence<kLanes>{});
    }
    transpose_lanes<2 * kStep>(rows);
  }
}

// row(i) returns row i of a square. put(k, column) receives its column k.
template <int kLanes, typename Row, typename Put>
ATROUSX_ALWAYS_INLINE void transpose_square(const Row& row, const Put& put) {
  std::decay_t<decltype(row(0))> rows[kLanes];
  for (int i = 0; i < kLanes; ++i) rows[i] = row(i);
  transpose_lanes(rows);
  for (int k = 0; k < kLanes; ++k) put(k, rows[k]);
}

// to[k * to_step + i] = from[i * from_step + k] for i and k < kLanes.
template <int kLanes, typename T, typename U>
ATROUSX_ALWAYS_INLINE void transpose_square(const T* from, int64_t from_step, U* to,
                                            int64_t to_step) {
  transpose_square<kLanes>(
      [&](int i) ATROUSX_INLINE_LAMBDA { return load_lanes<kLanes>(from + i * from_step); },
      [&](int k, auto v) ATROUSX_INLINE_LAMBDA { store_lanes<kLanes>(to + k * to_step, v); });
}

// The same for i < rows and k < columns. Neither may be less than kLanes.
template <int kLanes, typename T, typename U>
ATROUSX_ALWAYS_INLINE void transpose_block(const T* from, int64_t from_step, int64_t rows,
                                           int64_t columns, U* to, int64_t to_step) {
  for (int64_t k = 0; k < columns; k += kLanes)
    for (int64_t i = 0; i < rows; i += kLanes) {
      const int64_t column = min_of(k, columns - kLanes), row = min_of(i, rows - kLanes);
      transpose_square<kLanes>(from + row * from_step + column, from_step,
                               to + column * to_step + row, to_step);
    }
}

// Transposes between rows of numbers and vectors in which each of kLanes rows is one lane.
template <int kLanes>
struct RowsAsLanes {
  // to[j][lane] = rows[lane][j] for j < size. The rows and `to` must have room for whole squares.
  template <typename A>
  static ATROUSX_ALWAYS_INLINE void read(const A* rows, int64_t pitch, int64_t size, A* to) {
    for (int64_t j = 0; j < size; j += kLanes)
      transpose_square<kLanes>(rows + j, pitch, to + j * kLanes, kLanes);
  }

  // to[lane][j] = from[j][lane] for j < size and the first `count` lanes.
  template <typename T, typename A>
  static ATROUSX_ALWAYS_INLINE void write(const A* from, int64_t size, int64_t count,
                                          T* const* to) {
    for (int64_t j = 0; j < size && size >= kLanes; j += kLanes) {
      const int64_t at = min_of(j, size - kLanes);
      transpose_square<kLanes>(
          [&](int i) ATROUSX_INLINE_LAMBDA { return load_lanes<kLanes>(from + (at + i) * kLanes); },
          [&](int i, auto v) ATROUSX_INLINE_LAMBDA {
            if (i < count) store_lanes<kLanes>(to[i] + at, v);
          });
    }
    for (int64_t i = 0; i < count && size < kLanes; ++i)
      for (int64_t j = 0; j < size; ++j) to[i][j] = static_cast<T>(from[j * kLanes + i]);
  }
};

// to[k * to_step + i] = rows[from[i] + k] for i and k < kSide.
template <int kBytes>
struct TransposeGatheredSquare {
  template <typename T, typename A>
  static ATROUSX_ALWAYS_INLINE void run(const A* rows, const int64_t* from, T* to,
                                        int64_t to_step) {
    constexpr int kSide = kLanesIn<kBytes, A>;
    transpose_square<kSide>(
        [&](int i) ATROUSX_INLINE_LAMBDA { return load_lanes<kSide>(rows + from[i]); },
        [&](int k, auto v) ATROUSX_INLINE_LAMBDA { store_lanes<kSide>(to + k * to_step, v); });
  }
};

// to[k * to_step + i] = rows[from[i] + k] for i < count and k < width. The rows may lie anywhere.
template <typename T, typename A>
void transpose_gathered(const A* rows, const int64_t* from, int64_t count, int64_t width, T* to,
                        int64_t to_step) {
  const int64_t side = vector_bytes() / static_cast<int64_t>(sizeof(A));
  if (count < side || width < side) {
    for (int64_t k = 0; k < width; ++k)
      for (int64_t i = 0; i < count; ++i) to[k * to_step + i] = static_cast<T>(rows[from[i] + k]);
    return;
  }
  for (int64_t k = 0; k < width; k += side) {
    const int64_t row = std::min(k, width - side);
    for (int64_t i = 0; i < count; i += side) {
      const int64_t column = std::min(i, count - side);
      run_with_lanes<TransposeGatheredSquare>(rows + row, from + column,
                                              to + row * to_step + column, to_step);
    }
  }
}

}  // namespace atrousx
