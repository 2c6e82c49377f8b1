// Which depthwise convolutions have their own kernels on CUDA, and the sizes of their jobs and
// their shared memory. All follow from sizes and strides alone. No torch: the tests use this file
// too.
#pragma once

#include "atrous_conv2d/plan.h"

namespace atrousx {

constexpr int kDepthwiseThreads = 384;  // two blocks to a multiprocessor
constexpr int kPlaneThreads = 256;
constexpr int kChunkVectors = 8;  // 128 bytes of a pixel: one cache line
constexpr int kPixelsAtOnce = kDepthwiseThreads / kChunkVectors;
// Planes of which a thread sums one pixel each. There are as many as fit in registers.
template <typename T>
constexpr int kMostPlanes = sizeof(T) == 8 ? 2 : 4;
// Taps that a thread of a grad-weight sums in registers at once.
constexpr int kTapsAtOnce = 9;
// The most static shared memory that a grad-weight of planes uses for its sums.
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

// The channels_last kernels use 32-bit offsets between the pixels of an image.
inline bool has_small_images(const DenseMap& m) {
  return m.height * m.strides.h <= INT32_MAX && m.width * m.strides.w <= INT32_MAX &&
         m.height * m.strides.h + m.width * m.strides.w <= INT32_MAX;
}

// The common layout of two maps. It selects the kernel.
inline DepthwiseLayout depthwise_layout(const DenseMap& one, const DenseMap& other,
                                        int64_t vector) {
  // A map of one channel has both layouts. As planes it is read in longer runs.
  if (is_dense_planes(one) && is_dense_planes(other)) return DepthwiseLayout::kPlanes;
  if (has_channel_vectors(one, vector) && has_channel_vectors(other, vector) &&
      has_small_images(one) && has_small_images(other))
    return DepthwiseLayout::kChannelsLast;
  return DepthwiseLayout::kOther;
}

inline bool is_depthwise(const GatherShape& shape) { return shape.outer == 1 && shape.inner == 1; }

// The kernels count taps, and pixels of a batch plus one step beyond the last, in 32 bits.
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

// Elements of the accumulation type that weights and planes take in shared memory, rounded up to
// whole vectors. Planes get one vector more, because they may start within a vector.
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
  // One element of the accumulation type for each value that the block's threads hold for one tap.
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

// The number of parts into which the images of a grad-weight of planes are split. It depends on
// sizes alone.
inline int64_t plane_splits(int64_t batch, int64_t blocks, int64_t wanted) {
  return max_of<int64_t>(min_of(batch, ceil_div(wanted, max_of<int64_t>(blocks, 1))), 1);
}

}  // namespace atrousx
