// Geometry of the permutohedral lattice, shared by host and device: the simplex that encloses a
// point, the sorted integer keys of its vertices, and the keys of neighbours.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "portable.h"

namespace atrousx {

constexpr int kMaxFeatures = 32;

// Whether an index of a lattice is in [0, count). Index can represent count. A negative index
// becomes large when its sign is ignored. Kernels check every index that they read, because a
// direct call of an operator may pass any. A value at a bad index becomes NaN.
template <typename Index>
ATROUSX_HOST_DEVICE bool is_index(Index index, int64_t count) {
  using Unsigned = std::make_unsigned_t<Index>;
  return static_cast<Unsigned>(index) < static_cast<Unsigned>(count);
}

// The entries of a vertex: a range of all entries, or not valid.
struct EntryRange {
  int64_t begin, end;

  template <typename Index>
  ATROUSX_HOST_DEVICE EntryRange(const Index* starts, int64_t vertex, int64_t entries)
      : begin(starts[vertex]), end(starts[vertex + 1]) {
    if (begin < 0 || begin > end || end > entries) begin = end = -1;
  }

  ATROUSX_HOST_DEVICE bool valid() const { return begin >= 0; }
};

// a * b, rounded before anything is added. nvcc would fuse it with a following addition. Then a
// vertex near the edge of two simplices could differ from the CPU's.
ATROUSX_HOST_DEVICE float rounded_product(float a, float b) {
#if defined(__CUDA_ARCH__)
  return __fmul_rn(a, b);
#else
  return a * b;
#endif
}

ATROUSX_HOST_DEVICE double rounded_product(double a, double b) {
#if defined(__CUDA_ARCH__)
  return __dmul_rn(a, b);
#else
  return a * b;
#endif
}

// Maps D features to D + 1 coordinates of zero sum. Its basis is orthogonal. With these factors
// splat, blur and slice together are a Gaussian of variance 1 in the features.
template <typename A>
struct Elevation {
  using HoldsNoAddress = void;
  int dims;
  A factor[kMaxFeatures];

  static Elevation make(int dims) {
    Elevation e{};
    e.dims = dims;
    const A deviation = static_cast<A>(std::sqrt(2.0 / 3.0) * (dims + 1));
    for (int i = 0; i < dims; ++i)
      e.factor[i] =
          static_cast<A>(1.0 / std::sqrt(static_cast<double>((i + 2) * (i + 1))) * deviation);
    return e;
  }

  // Writes the coordinates and returns the largest magnitude.
  template <typename F>
  ATROUSX_HOST_DEVICE A apply(const F* features, int64_t stride, A* elevated) const {
    A sum = A(0), largest = A(0);
    for (int j = dims; j > 0; --j) {
      const A c = rounded_product(static_cast<A>(features[(j - 1) * stride]), factor[j - 1]);
      elevated[j] = sum - rounded_product(static_cast<A>(j), c);
      sum += c;
      largest = max_of(largest, std::fabs(elevated[j]));
    }
    elevated[0] = sum;
    return max_of(largest, std::fabs(sum));
  }

  // The transpose of apply.
  template <typename F>
  ATROUSX_HOST_DEVICE void transposed(const A* grad_elevated, F* grad_features,
                                      int64_t stride) const {
    A above = grad_elevated[0];
    for (int j = 1; j <= dims; ++j) {
      grad_features[(j - 1) * stride] =
          static_cast<F>((above - static_cast<A>(j) * grad_elevated[j]) * factor[j - 1]);
      above += grad_elevated[j];
    }
  }
};

// Vertex k of the simplex around a point has the coordinates
//   base[i] + k                if rank[i] <= D - k,
//   base[i] + k - (D + 1)      otherwise.
// The numbers in base are multiples of D + 1 that sum to zero. rank orders the residuals, largest
// first.
ATROUSX_HOST_DEVICE int64_t vertex_coordinate(int64_t base, int rank, int k, int dims) {
  return base + k - (rank > dims - k ? dims + 1 : 0);
}

// Coordinates stay within int32, with room for a step to a neighbour. The Python side refuses
// larger features. The clamp below keeps a direct call of the operator within bounds.
constexpr int64_t kCoordinateLimit = int64_t{1} << 30;

// The weights of the vertices around a point, from the parts of its coordinates. `weight` needs
// D + 2 entries.
template <typename A>
ATROUSX_HOST_DEVICE void barycentric_weights(const A* elevated, int dims, const int32_t* base,
                                             const int* rank, A* weight) {
  const A down = A(1) / static_cast<A>(dims + 1);
  for (int i = 0; i < dims + 2; ++i) weight[i] = A(0);
  for (int i = 0; i <= dims; ++i) {
    const A part = rounded_product(elevated[i] - static_cast<A>(base[i]), down);
    weight[dims - rank[i]] += part;
    weight[dims - rank[i] + 1] -= part;
  }
  weight[0] += A(1) + weight[dims + 1];
}

// Finds base, rank and barycentric weights from elevated coordinates; `weight` needs D + 2 entries.
template <typename A>
ATROUSX_HOST_DEVICE void enclosing_simplex(const A* elevated, int dims, int32_t* base, int* rank,
                                           A* weight) {
  const A down = A(1) / static_cast<A>(dims + 1);
  const A limit = static_cast<A>(kCoordinateLimit / (dims + 1));
  int sum = 0;
  for (int i = 0; i <= dims; ++i) {
    // The limit is the first argument, so that NaN becomes the limit.
    const A nearest = max_of(-limit, std::rint(rounded_product(elevated[i], down)));
    const int multiple = static_cast<int>(min_of(limit, nearest));
    base[i] = multiple * (dims + 1);
    sum += multiple;
    rank[i] = 0;
  }
  // If residuals are equal, the earlier coordinate ranks first.
  for (int i = 0; i < dims; ++i)
    for (int j = i + 1; j <= dims; ++j) {
      const bool less =
          elevated[i] - static_cast<A>(base[i]) < elevated[j] - static_cast<A>(base[j]);
      ++rank[less ? i : j];
    }
  // The multiples may miss the hyperplane of zero sum by a few steps. Then the coordinates with the
  // extreme residuals step back.
  for (int i = 0; i <= dims; ++i) {
    rank[i] += min_of(max_of(sum, -(dims + 1)), dims + 1);
    if (rank[i] < 0) {
      rank[i] += dims + 1;
      base[i] += dims + 1;
    } else if (rank[i] > dims) {
      rank[i] -= dims + 1;
      base[i] -= dims + 1;
    }
    rank[i] = min_of(max_of(rank[i], 0), dims);
  }
  barycentric_weights(elevated, dims, base, rank, weight);
}

// Below this magnitude a point is computed in its own type. In float32 this gives exactly
// pydensecrf's numbers. Above it pydensecrf's 16-bit keys overflow, and float32 has too few
// fraction bits.
constexpr double kWideCoordinate = 32768.0;

template <typename T>
struct EmbeddingPlan {
  using HoldsNoAddress = void;
  Elevation<T> own;
  Elevation<double> wide;

  static EmbeddingPlan make(int dims) {
    return {Elevation<T>::make(dims), Elevation<double>::make(dims)};
  }
};

template <typename T, typename A>
ATROUSX_HOST_DEVICE void store_simplex(const A* elevated, int dims, int32_t* base, uint8_t* rank,
                                       T* weight) {
  int ranks[kMaxFeatures + 1];
  A weights[kMaxFeatures + 2];
  enclosing_simplex(elevated, dims, base, ranks, weights);
  for (int i = 0; i <= dims; ++i) {
    rank[i] = static_cast<uint8_t>(ranks[i]);
    weight[i] = static_cast<T>(weights[i]);
  }
}

// Embeds one point: D features, `stride` apart -> base [D + 1], rank [D + 1], weight [D + 1].
template <typename T>
ATROUSX_HOST_DEVICE void embed_point(const EmbeddingPlan<T>& plan, const T* features,
                                     int64_t stride, int32_t* base, uint8_t* rank, T* weight) {
  const int dims = plan.own.dims;
  T elevated[kMaxFeatures + 1];
  if (static_cast<double>(plan.own.apply(features, stride, elevated)) < kWideCoordinate)
    return store_simplex(elevated, dims, base, rank, weight);
  double wide[kMaxFeatures + 1];
  plan.wide.apply(features, stride, wide);
  store_simplex(wide, dims, base, rank, weight);
}

// Computes the gradient of a point's features from that of its weights. Within a simplex the
// weights are linear in the features. A rank above D, which no simplex has, gives NaN.
template <typename T>
ATROUSX_HOST_DEVICE void embed_point_backward(const Elevation<T>& elevation, const uint8_t* rank,
                                              const T* grad_weight, T* grad_features,
                                              int64_t stride) {
  const int dims = elevation.dims;
  T grad_elevated[kMaxFeatures + 1];
  for (int i = 0; i <= dims; ++i) {
    grad_elevated[i] = std::numeric_limits<T>::quiet_NaN();
    if (rank[i] > dims) continue;
    const int k = dims - rank[i];
    const T next = grad_weight[k == dims ? 0 : k + 1];
    grad_elevated[i] = (grad_weight[k] - next) / static_cast<T>(dims + 1);
  }
  elevation.transposed(grad_elevated, grad_features, stride);
}

// A vertex's key has as digits its image and its first D coordinates; the last coordinate follows
// from the zero sum. The digits lie in one or more 64-bit words. Digits have room for every
// neighbour. So a neighbour's key is the key plus a constant, and sorted keys stay sorted when this
// is added.
struct KeyLayout {
  using HoldsNoAddress = void;
  int dims, words;
  int64_t image_stride;  // in word 0
  int32_t word[kMaxFeatures];
  int64_t stride[kMaxFeatures];
  int64_t minimum[kMaxFeatures];
};

// Word `w` of the key of vertex k around a point. The arithmetic is unsigned, here and in compare,
// because an invalid layout or step may overflow.
ATROUSX_HOST_DEVICE int64_t key_word(const KeyLayout& layout, int w, int64_t image,
                                     const int32_t* base, const uint8_t* rank, int k) {
  uint64_t key = w == 0 ? static_cast<uint64_t>(image) * layout.image_stride : 0;
  for (int i = 0; i < layout.dims; ++i) {
    const uint64_t coordinate = vertex_coordinate(base[i], rank[i], k, layout.dims);
    if (layout.word[i] == w) key += (coordinate - layout.minimum[i]) * layout.stride[i];
  }
  return static_cast<int64_t>(key);
}

// Sorted keys, word by word, and the step to a neighbour.
struct SortedKeys {
  const int64_t* key;  // [words, M]
  int64_t count;       // M
  int words;

  // Compares key `i` with key `from` plus `sign` times `step` [words]. Negative if key `i` is
  // smaller.
  ATROUSX_HOST_DEVICE int compare(int64_t i, int64_t from, const int64_t* step, int sign) const {
    for (int w = 0; w < words; ++w) {
      const int64_t left = key[w * count + i];
      const int64_t right = static_cast<int64_t>(static_cast<uint64_t>(key[w * count + from]) +
                                                 sign * static_cast<uint64_t>(step[w]));
      if (left != right) return left < right ? -1 : 1;
    }
    return 0;
  }

  // The first index in [low, high) whose key is not smaller than the stepped one.
  ATROUSX_HOST_DEVICE int64_t lower_bound(int64_t low, int64_t high, int64_t from,
                                          const int64_t* step, int sign) const {
    while (low < high) {
      const int64_t middle = low + (high - low) / 2;
      if (compare(middle, from, step, sign) < 0)
        low = middle + 1;
      else
        high = middle;
    }
    return low;
  }
};

// The factor of a slice. It brings a point's response to itself near 1.
template <typename A>
ATROUSX_HOST_DEVICE A slice_scale(int dims) {
  A power = A(1);
  for (int i = 0; i < dims; ++i) power *= A(0.5);
  return A(1) / (A(1) + power);
}

}  // namespace atrousx
