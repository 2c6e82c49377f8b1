// Which depthwise convolutions have kernels of their own on CUDA, and what these need: sizes of
// jobs and of shared memory, from sizes and strides alone. No torch: the tests use it too.
#pragma once

#include "atrous_conv2d/plan.h"

namespace atrousx {

constexpr int kDepthwiseThreads = 384;  // two blocks to a multiprocessor
constexpr int kPlaneThreads = 256;
constexpr int kChunkVectors = 8;  // 128 bytes of a pixel: a line of the cache
constexpr int kPixelsAtOnce = kDepthwiseThreads / kChunkVectors;
// Planes that share the arithmetic of their pixels: as many as leave their sums in registers.
template <typename T>
constexpr int kMostPlanes = sizeof(T) == 8 ? 2 : 4;
// Taps that a thread of a grad-weight sums at once, in registers.
constexpr int kTapsAtOnce = 9;
// Shared memory that a grad-weight of planes takes for sums, at most, beside what it stages.
constexpr int64_t kPlanesStaticBytes =
    kPlaneThreads / 32 * kTapsAtOnce * kMostPlanes<float> * static_cast<int64_t>(sizeof(float));

// Elements in 16 bytes.
template <typename T>
constexpr int kDepthwiseVector = 16 / static_cast<int>(sizeof(T));

enum class DepthwiseLayout { kOther, kChannelsLast, kPlanes };

struct DenseMap {
  int64_t batch, channels, height, width;
  Strides4 strides;
  const void* data;
};

// Strides of dimensions with one element do not matter.
inline bool is_dense_planes(const DenseMap& m) {
  const Strides4& s = m.strides;
  return (m.width == 1 || s.w == 1) && (m.height == 1 || s.h == m.width) &&
         (m.channels == 1 || s.c == m.height * m.width) &&
         (m.batch == 1 || s.n == m.channels * m.height * m.width);
}

inline bool has_channel_vectors(const DenseMap& m, int64_t vector) {
  const auto whole = [&](int64_t size, int64_t stride) {
    return size == 1 || stride % vector == 0;
  };
  return m.strides.c == 1 && m.channels % vector == 0 && whole(m.batch, m.strides.n) &&
         whole(m.height, m.strides.h) && whole(m.width, m.strides.w) &&
         reinterpret_cast<uintptr_t>(m.data) % 16 == 0;
}

// The kernels of channels_last maps go from pixel to pixel of an image by 32-bit offsets.
inline bool has_small_images(const DenseMap& m) {
  return m.height * m.strides.h <= INT32_MAX && m.width * m.strides.w <= INT32_MAX &&
         m.height * m.strides.h + m.width * m.strides.w <= INT32_MAX;
}

// The layout that two maps share, by which their kernel is chosen.
inline DepthwiseLayout depthwise_layout(const DenseMap& one, const DenseMap& other,
                                        int64_t vector) {
  // One channel is both; planes then are read in longer runs.
  if (is_dense_planes(one) && is_dense_planes(other)) return DepthwiseLayout::kPlanes;
  if (has_channel_vectors(one, vector) && has_channel_vectors(other, vector) &&
      has_small_images(one) && has_small_images(other))
    return DepthwiseLayout::kChannelsLast;
  return DepthwiseLayout::kOther;
}

inline bool is_depthwise(const GatherShape& shape) { return shape.outer == 1 && shape.inner == 1; }

// The kernels count taps and pixels of a batch in 32 bits, and a step past the last pixel.
inline bool is_countable(const GatherShape& shape) {
  const int64_t pixels = shape.batch * shape.rows.destinations * shape.columns.destinations;
  const int64_t sources = shape.rows.sources * shape.columns.sources;
  const int64_t most = INT32_MAX - max_of(kDepthwiseThreads, kPlaneThreads);
  return pixels * shape.rows.taps * shape.columns.taps <= most && sources <= most;
}

inline int64_t tap_table_bytes(const GatherShape& shape) {
  return static_cast<int64_t>(sizeof(int)) * (shape.rows.destinations * shape.rows.taps +
                                              shape.columns.destinations * shape.columns.taps);
}

// Numbers of the accumulation type that weights and planes take in shared memory; planes get a
// vector more, since they may start within one. Both are whole vectors.
template <typename T>
ATROUSX_HOST_DEVICE constexpr int64_t staged_weights(int64_t taps, int64_t planes) {
  return ceil_div<int64_t>(taps * planes, kDepthwiseVector<T>) * kDepthwiseVector<T>;
}
template <typename T>
ATROUSX_HOST_DEVICE constexpr int64_t staged_planes(int64_t plane, int64_t planes) {
  return ceil_div<int64_t>(plane * planes, kDepthwiseVector<T>) * kDepthwiseVector<T> +
         kDepthwiseVector<T>;
}

template <typename T>
int64_t depthwise_shared_bytes(const GatherShape& shape) {
  const int64_t taps = shape.rows.taps * shape.columns.taps;
  return taps * kChunkVectors * kDepthwiseVector<T> * static_cast<int64_t>(sizeof(Accumulate<T>)) +
         tap_table_bytes(shape);
}

template <typename T>
int64_t planes_shared_bytes(const GatherShape& shape, int64_t planes) {
  const int64_t taps = shape.rows.taps * shape.columns.taps;
  const int64_t plane = shape.rows.sources * shape.columns.sources;
  return (staged_weights<T>(taps, planes) + staged_planes<T>(plane, planes)) *
             static_cast<int64_t>(sizeof(Accumulate<T>)) +
         tap_table_bytes(shape);
}

template <typename T>
int64_t depthwise_grad_weight_shared_bytes(const GatherShape& shape) {
  // A number of the accumulation type for each value that the block's threads hold of a tap.
  return int64_t{kPlaneThreads} * kDepthwiseVector<T> *
             static_cast<int64_t>(sizeof(Accumulate<T>)) +
         tap_table_bytes(shape);
}

template <typename T>
int64_t planes_grad_weight_shared_bytes(const GatherShape& shape, int64_t planes) {
  const int64_t plane = shape.rows.sources * shape.columns.sources;
  return staged_planes<T>(plane, planes) * static_cast<int64_t>(sizeof(Accumulate<T>)) +
         tap_table_bytes(shape);
}

// Into how many parts the images of a grad-weight of planes are split; a function of sizes alone.
inline int64_t plane_splits(int64_t batch, int64_t blocks, int64_t wanted) {
  return max_of<int64_t>(min_of(batch, ceil_div(wanted, max_of<int64_t>(blocks, 1))), 1);
}

}  // namespace atrousx
