// Kernels of the permutohedral lattice: embed, pack and neighbours build it; splat, blur and slice
// filter. Letters: N images, P points of an image, D features, C channels, E = N P (D + 1) corners
// (a point and one vertex of its simplex), M vertices. Every kernel gathers, so every sum has a
// fixed order. The kernels never follow an index that is out of range: results that depend on it
// become NaN. A neighbour out of range counts as no neighbour.
#pragma once

#include "cuda/device.cuh"
#include "permutohedral_filter/plan.h"

namespace atrousx {

// Who: one thread owns one point, in a grid-stride loop. Reads: its features. Writes: its base,
// ranks and weights. Synchronisation: none.
template <typename T>
__global__ void permutohedral_embed_kernel(const T* features,  // [N, D, P]
                                           int32_t* base,      // [N, P, D + 1]
                                           uint8_t* rank,      // [N, P, D + 1]
                                           T* weights,         // [N, P, D + 1]
                                           int64_t images, int64_t points, EmbeddingPlan<T> plan) {
  const int64_t dims = plan.own.dims;
  for (int64_t i = global_thread(); i < images * points; i += global_threads()) {
    const T* point = features + i / points * dims * points + i % points;
    const int64_t row = i * (dims + 1);
    embed_point(plan, point, points, base + row, rank + row, weights + row);
  }
}

// Who: one thread owns one point, in a grid-stride loop. Reads: its ranks and the gradients of its
// weights. Writes: the gradients of its features. Synchronisation: none.
template <typename T>
__global__ void permutohedral_embed_backward_kernel(const T* grad_weights,  // [N, P, D + 1]
                                                    const uint8_t* rank,    // [N, P, D + 1]
                                                    T* grad_features,       // [N, D, P]
                                                    int64_t images, int64_t points,
                                                    Elevation<T> elevation) {
  const int64_t dims = elevation.dims;
  for (int64_t i = global_thread(); i < images * points; i += global_threads()) {
    T* point = grad_features + i / points * dims * points + i % points;
    const int64_t row = i * (dims + 1);
    embed_point_backward(elevation, rank + row, grad_weights + row, point, points);
  }
}

// Who: one thread owns one corner, in a grid-stride loop. Reads: its point's base and ranks.
// Writes: the words of its key. Synchronisation: none.
__global__ void permutohedral_pack_kernel(const int32_t* base,  // [N, P, D + 1]
                                          const uint8_t* rank,  // [N, P, D + 1]
                                          int64_t* keys,        // [words, E]
                                          int64_t corners, int64_t points, KeyLayout layout) {
  const int64_t width = layout.dims + 1;
  for (int64_t i = global_thread(); i < corners; i += global_threads()) {
    const int64_t point = i / width, row = point * width;
    const int k = static_cast<int>(i % width);
    for (int w = 0; w < layout.words; ++w)
      keys[w * corners + i] = key_word(layout, w, point / points, base + row, rank + row, k);
  }
}

// Who: one thread owns one vertex and one side of one axis, in a grid-stride loop. Reads: the
// sorted keys, by binary search. Writes: the index of that neighbour, or -1. Synchronisation: none.
__global__ void permutohedral_neighbours_kernel(SortedKeys keys,
                                                const int64_t* steps,  // [D + 1, words]
                                                int64_t* neighbours,   // [D + 1, 2, M]
                                                int64_t axes) {
  const int64_t count = axes * 2 * keys.count;
  for (int64_t i = global_thread(); i < count; i += global_threads()) {
    const int64_t vertex = i % keys.count, line = i / keys.count;
    const int64_t* step = steps + line / 2 * keys.words;
    const int sign = line % 2 == 0 ? 1 : -1;
    const int64_t found = keys.lower_bound(0, keys.count, vertex, step, sign);
    const bool there = found < keys.count && keys.compare(found, vertex, step, sign) == 0;
    neighbours[i] = there ? found : -1;
  }
}

// Who: one thread owns one channel of one vertex, in a grid-stride loop, channels fastest.
// Reads: that channel of the points around the vertex. Writes: its own element.
// Synchronisation: none.
template <typename T, typename Index>
__global__ void permutohedral_splat_kernel(const T* values,       // [N P, C]
                                           const Index* starts,   // [M + 1]
                                           const Index* points,   // [E], by vertex
                                           const T* weights,      // [E], by vertex
                                           const T* point_scale,  // [N P], or null for 1
                                           T* lattice,            // [M, C]
                                           int64_t vertices, int64_t channels, int64_t rows,
                                           int64_t entries) {
  for (int64_t i = global_thread(); i < vertices * channels; i += global_threads()) {
    const int64_t vertex = i / channels, channel = i % channels;
    const EntryRange range(starts, vertex, entries);
    T sum = range.valid() ? T(0) : std::numeric_limits<T>::quiet_NaN();
    for (int64_t e = range.begin; e < range.end; ++e) {
      const Index point = points[e];
      if (!is_index(point, rows)) {
        sum = std::numeric_limits<T>::quiet_NaN();
        continue;
      }
      const T weight = point_scale == nullptr ? weights[e] : weights[e] * point_scale[point];
      sum += weight * values[point * channels + channel];
    }
    lattice[i] = sum;
  }
}

// Who: one thread owns one channel of one vertex, in a grid-stride loop, channels fastest. Reads:
// that channel of the vertex and of its two neighbours along one axis. Writes: its own element of
// another array. Synchronisation: none; the next axis is another launch.
template <typename T, typename Index>
__global__ void permutohedral_blur_kernel(const T* lattice,         // [M, C]
                                          const Index* neighbours,  // [2, M] of this axis
                                          T* blurred,               // [M, C]
                                          int64_t vertices, int64_t channels) {
  for (int64_t i = global_thread(); i < vertices * channels; i += global_threads()) {
    const int64_t vertex = i / channels, channel = i % channels;
    const Index ahead = neighbours[vertex], behind = neighbours[vertices + vertex];
    const T a = is_index(ahead, vertices) ? lattice[ahead * channels + channel] : T(0);
    const T b = is_index(behind, vertices) ? lattice[behind * channels + channel] : T(0);
    blurred[i] = lattice[i] + T(0.5) * (a + b);
  }
}

// Who: one thread owns one channel of one point, in a grid-stride loop, channels fastest.
// Reads: that channel of the D + 1 vertices around the point. Writes: its own element.
// Synchronisation: none.
template <typename T, typename Index>
__global__ void permutohedral_slice_kernel(const T* lattice,       // [M, C]
                                           const Index* vertices,  // [N P, D + 1]
                                           const T* weights,       // [N P, D + 1]
                                           const T* point_scale,   // [N P], or null for 1
                                           T* output,              // [N P, C]
                                           int64_t points, int64_t channels, int64_t count,  // M
                                           int dims) {
  for (int64_t i = global_thread(); i < points * channels; i += global_threads()) {
    const int64_t point = i / channels, channel = i % channels, row = point * (dims + 1);
    T sum = T(0);
    for (int k = 0; k <= dims; ++k) {
      const Index vertex = vertices[row + k];
      sum += is_index(vertex, count) ? weights[row + k] * lattice[vertex * channels + channel]
                                     : std::numeric_limits<T>::quiet_NaN();
    }
    const T scale = slice_scale<T>(dims);
    output[i] = (point_scale == nullptr ? scale : scale * point_scale[point]) * sum;
  }
}

// Who: one thread owns one corner, in a grid-stride loop. Reads: the values of its point and of its
// vertex. Writes: their inner product, which is the gradient of the corner's weight.
// Synchronisation: none.
template <typename T, typename Index>
__global__ void permutohedral_corner_product_kernel(const T* values,        // [N P, C]
                                                    const T* lattice,       // [M, C]
                                                    const Index* vertices,  // [N P, D + 1]
                                                    T* product,             // [N P, D + 1]
                                                    int64_t corners, int64_t channels,
                                                    int64_t count,  // M
                                                    int dims) {
  const T scale = slice_scale<T>(dims);
  for (int64_t i = global_thread(); i < corners; i += global_threads()) {
    if (!is_index(vertices[i], count)) {
      product[i] = std::numeric_limits<T>::quiet_NaN();
      continue;
    }
    const T* value = values + i / (dims + 1) * channels;
    const T* vertex = lattice + vertices[i] * int64_t{channels};
    T sum = T(0);
    for (int64_t c = 0; c < channels; ++c) sum += value[c] * vertex[c];
    product[i] = scale * sum;
  }
}

}  // namespace atrousx
