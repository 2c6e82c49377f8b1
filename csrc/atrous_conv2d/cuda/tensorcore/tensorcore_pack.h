// The operands of the tensor-core kernels: maps with whole vectors of channels, weights with whole
// vectors of source channels. From sizes and strides alone this file decides whether a tensor can
// be read in place, and otherwise how it is packed. No torch: the tests run these functions on the
// host.
#pragma once

#include "atrous_conv2d/cuda/tensorcore/pack_kernels.cuh"
#include "atrous_conv2d/plan.h"

namespace atrousx {

struct MapSize {
  int64_t batch, groups, channels, height, width;  // channels of a group
};

inline int64_t whole_vectors(int64_t channels, int64_t vector) {
  return ceil_div(channels, vector) * vector;
}

// Strides of dimensions with one element do not matter. Zero is a multiple of every vector length.
inline Strides4 map_strides(const MapSize& size, const Strides4& s) {
  return {size.batch > 1 ? s.n : 0, s.c, size.height > 1 ? s.h : 0, size.width > 1 ? s.w : 0};
}

inline bool map_has_vectors(const MapSize& size, const Strides4& s, const void* data,
                            int64_t vector) {
  return s.c == 1 && (size.channels | s.n | s.h | s.w) % vector == 0 &&
         reinterpret_cast<uintptr_t>(data) % 16 == 0;
}

// The packed map: [N, H, W, groups, whole vectors].
inline Strides4 packed_map_strides(const MapSize& size, int64_t vector) {
  const int64_t pixel = size.groups * whole_vectors(size.channels, vector);
  return {size.height * size.width * pixel, 1, size.width * pixel, pixel};
}

inline PackShape map_pack(const MapSize& size, const Strides4& from, int64_t vector) {
  const Strides4 to = packed_map_strides(size, vector);
  const int64_t padded = whole_vectors(size.channels, vector);
  return {size.batch,
          size.groups,
          size.height,
          size.width,
          size.channels,
          from.n,
          size.channels * from.c,
          from.h,
          from.w,
          from.c,
          to.n,
          padded,
          to.h,
          to.w,
          padded};
}

// Whether a map's planes are dense. Then the transposing kernel packs it.
inline bool map_has_planes(const MapSize& size, const Strides4& s) {
  return (size.width == 1 || s.w == 1) && (size.height == 1 || s.h == size.width) && s.c > 1;
}

inline TransposeShape map_transpose(const MapSize& size, const Strides4& from, int64_t vector) {
  return {size.batch,    size.groups,
          size.channels, size.height * size.width,
          from.n,        size.channels * from.c,
          from.c,        whole_vectors(size.channels, vector)};
}

template <typename T>
int64_t transpose_jobs(const TransposeShape& s) {
  using Tile = TransposeTile<T>;
  return s.images * s.groups * ceil_div<int64_t>(s.padded_channels, Tile::kChannels) *
         ceil_div<int64_t>(s.pixels, Tile::kPixels);
}

struct WeightSize {
  int64_t groups, outer, inner, taps_h, taps_w;
};

inline WeightStrides weight_strides(const WeightSize& size, const WeightStrides& s) {
  return {size.groups > 1 ? s.group : 0, s.outer, s.inner, size.taps_h > 1 ? s.h : 0,
          size.taps_w > 1 ? s.w : 0};
}

// The kernels multiply a weight's strides, except the group's, by up to 16 and by its taps in 32
// bits.
constexpr int64_t kMostWeightStride = INT32_MAX / 16;

inline bool weight_has_vectors(const WeightSize& size, const WeightStrides& s, const void* data,
                               int64_t vector) {
  return s.inner == 1 && (size.inner | s.group | s.outer | s.h | s.w) % vector == 0 &&
         max_of(s.outer, size.taps_w * max_of(s.h, s.w)) <= kMostWeightStride &&
         reinterpret_cast<uintptr_t>(data) % 16 == 0;
}

// The packed weight: [groups, outer, KH, KW, whole vectors].
inline WeightStrides packed_weight_strides(const WeightSize& size, int64_t vector) {
  const int64_t padded = whole_vectors(size.inner, vector);
  const int64_t outer = size.taps_h * size.taps_w * padded;
  return {size.outer * outer, outer, 1, size.taps_w * padded, padded};
}

inline PackShape weight_pack(const WeightSize& size, const WeightStrides& from, int64_t vector) {
  const WeightStrides to = packed_weight_strides(size, vector);
  // In PyTorch's formats all taps are evenly spaced. Then one matrix holds all of them.
  const bool even = size.taps_h == 1 || size.taps_w == 1 || from.h == size.taps_w * from.w;
  const int64_t tap = size.taps_w > 1 ? from.w : from.h;
  PackShape s{size.groups,
              even ? 1 : size.taps_h,
              size.outer,
              even ? size.taps_h * size.taps_w : size.taps_w,
              size.inner,
              from.group,
              from.h,
              from.outer,
              tap,
              from.inner,
              to.group,
              to.h,
              to.outer,
              to.w,
              whole_vectors(size.inner, vector)};
  if (s.from_a < s.from_b) {  // neighbouring rows should lie close together
    std::swap(s.count_a, s.count_b);
    std::swap(s.from_a, s.from_b);
    std::swap(s.to_a, s.to_b);
  }
  return s;
}

inline int64_t pack_jobs(const PackShape& s) {
  return s.count_m * s.count_g * ceil_div<int64_t>(s.count_a * s.count_b, kPackTile) *
         ceil_div<int64_t>(s.padded_columns, kPackTile);
}

}  // namespace atrousx
