// What Winograd's F(2x2, 3x3) makes of a tile's sources, of filters and of sums; see
// cpu_winograd.h.
#pragma once

#include <algorithm>

#include "../cpu_lanes.h"
#include "cpu_weight.h"

namespace atrousx {

constexpr int kWinogradPoints = 16;  // of a transformed tile, 4 x 4

// Transformed sources: [points, slabs of at most kSlab channels, tiles, channels of a slab]. Lanes
// of a product lie side by side, whatever the number of channels: they do not fight for cache sets.
struct WinogradSources {
  int64_t channels, tiles;

  int64_t width() const { return std::min<int64_t>(kSlab, channels); }
  int64_t slab_size() const { return tiles * width(); }
  // A cache line more than is needed: planes a power of two apart would share few cache sets.
  int64_t plane() const { return ceil_div(channels, width()) * slab_size() + 16; }
};

// The place of a tile, [points, slabs, channels of a slab], becomes B^T x B.
template <int kBytes>
struct TransformSource {
  template <typename A>
  static ATROUSX_ALWAYS_INLINE void run(const A* const* pixels, WinogradSources size, A* to) {
    constexpr int kLanes = kLanesIn<kBytes, A>;
    for (int64_t first = 0; first < size.channels; first += size.width(), to += size.slab_size()) {
      const int64_t depth = min_of(size.width(), size.channels - first);
      int64_t c = 0;
      for (; c + kLanes <= depth; c += kLanes)
        transform<kLanes>(pixels, first + c, to + c, size.plane());
      for (; c < depth; ++c) transform<1>(pixels, first + c, to + c, size.plane());
    }
  }

 private:
  template <int kLanes, typename A>
  static ATROUSX_ALWAYS_INLINE void transform(const A* const* pixels, int64_t c, A* to,
                                              int64_t plane) {
    Lanes<A, kLanes> t[4][4];
    for (int j = 0; j < 4; ++j) {
      const auto x0 = load_lanes<kLanes>(pixels[j] + c), x1 = load_lanes<kLanes>(pixels[4 + j] + c);
      const auto x2 = load_lanes<kLanes>(pixels[8 + j] + c),
                 x3 = load_lanes<kLanes>(pixels[12 + j] + c);
      t[0][j] = x0 - x2;
      t[1][j] = x1 + x2;
      t[2][j] = x2 - x1;
      t[3][j] = x1 - x3;
    }
    for (int i = 0; i < 4; ++i) {
      store_lanes<kLanes>(to + (4 * i) * plane, t[i][0] - t[i][2]);
      store_lanes<kLanes>(to + (4 * i + 1) * plane, t[i][1] + t[i][2]);
      store_lanes<kLanes>(to + (4 * i + 2) * plane, t[i][2] - t[i][1]);
      store_lanes<kLanes>(to + (4 * i + 3) * plane, t[i][1] - t[i][3]);
    }
  }
};

// outputs[destination * step + c] = (A^T sums A)[destination], of channels c; destinations 2 x 2.
template <int kBytes>
struct TransformSums {
  template <typename A>
  static ATROUSX_ALWAYS_INLINE void run(const A* sums, int64_t plane, int64_t channels,
                                        A* outputs) {
    constexpr int kLanes = kLanesIn<kBytes, A>;
    int64_t c = 0;
    for (; c + kLanes <= channels; c += kLanes)
      transform<kLanes>(sums + c, plane, channels, outputs + c);
    for (; c < channels; ++c) transform<1>(sums + c, plane, channels, outputs + c);
  }

 private:
  template <int kLanes, typename A>
  static ATROUSX_ALWAYS_INLINE void transform(const A* sums, int64_t plane, int64_t step,
                                              A* outputs) {
    Lanes<A, kLanes> t[2][4];
    for (int j = 0; j < 4; ++j) {
      const auto m0 = load_lanes<kLanes>(sums + j * plane);
      const auto m1 = load_lanes<kLanes>(sums + (4 + j) * plane);
      const auto m2 = load_lanes<kLanes>(sums + (8 + j) * plane);
      const auto m3 = load_lanes<kLanes>(sums + (12 + j) * plane);
      t[0][j] = m0 + m1 + m2;
      t[1][j] = m1 - m2 - m3;
    }
    for (int i = 0; i < 2; ++i) {
      store_lanes<kLanes>(outputs + 2 * i * step, t[i][0] + t[i][1] + t[i][2]);
      store_lanes<kLanes>(outputs + (2 * i + 1) * step, t[i][1] - t[i][2] - t[i][3]);
    }
  }
};

// The transformed filters, [points, blocks of kColumns outputs, channels, kColumns].
template <typename R>
struct WinogradWeight {
  using A = typename R::A;
  int64_t outer, inner;

  explicit WinogradWeight(const GatherShape& shape) : outer(shape.outer), inner(shape.inner) {}

  int64_t blocks() const { return ceil_div<int64_t>(outer, R::kColumns); }
  int64_t block_size() const { return inner * R::kColumns; }
  int64_t size() const { return kWinogradPoints * blocks() * block_size(); }

  // like: names dtype and device. Any strides.
  template <typename T>
  Tensor pack(const T* weight, const WeightStrides& strides, const Tensor& like) const {
    const Tensor packed = scratch(like, size());
    A* to = static_cast<A*>(packed.mutable_data_ptr());
    prefer_huge_pages(to, size() * static_cast<int64_t>(sizeof(A)));
    for_each_task(blocks() * inner, [&](int64_t task, int64_t) {
      const int64_t block = task / inner, c = task % inner;
      for (int64_t column = 0; column < R::kColumns; ++column) {
        const int64_t k = block * R::kColumns + column;
        double points[kWinogradPoints] = {};
        if (k < outer) transform(weight + k * strides.outer + c * strides.inner, strides, points);
        for (int p = 0; p < kWinogradPoints; ++p)
          to[(p * blocks() + block) * block_size() + c * R::kColumns + column] =
              static_cast<A>(points[p]);
      }
    });
    return packed;
  }

 private:
  // points = G w G^T, of one filter.
  template <typename T>
  static void transform(const T* filter, const WeightStrides& strides, double* points) {
    const auto spread = [](double a, double b, double c, double* to, int step) {
      to[0] = a;
      to[step] = (a + b + c) / 2;
      to[2 * step] = (a - b + c) / 2;
      to[3 * step] = c;
    };
    double rows[4][3];
    for (int j = 0; j < 3; ++j) {
      const T* w = filter + j * strides.w;
      spread(static_cast<double>(w[0]), static_cast<double>(w[strides.h]),
             static_cast<double>(w[2 * strides.h]), &rows[0][j], 3);
    }
    for (int i = 0; i < 4; ++i) spread(rows[i][0], rows[i][1], rows[i][2], points + 4 * i, 1);
  }
};

}  // namespace atrousx
