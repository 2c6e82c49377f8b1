// Finds the simplices around points on the CPU, with one point per lane. The arithmetic is that of
// embed_point in plan.h, operation by operation, so vertices and weights are the same.
#pragma once

#include "cpu/lanes.h"
#include "permutohedral_filter/plan.h"

namespace atrousx {

// The results for R points.
template <typename T>
struct Simplices {
  int32_t* multiple;  // [D + 1, R] base / (D + 1)
  uint8_t* rank;      // [D + 1, R]
  T* weight;          // [R, D + 1]
  int64_t rows;       // R
};

// Embeds one point. It is never inlined: in code for wider instruction sets its products would be
// fused with sums, and vertices would change.
template <typename T>
[[gnu::noinline]] void embed_one(const EmbeddingPlan<T>& plan, const T* features, int64_t stride,
                                 const Simplices<T>& out, int64_t row) {
  const int width = plan.own.dims + 1;
  int32_t base[kMaxFeatures + 1];
  uint8_t rank[kMaxFeatures + 1];
  embed_point(plan, features, stride, base, rank, out.weight + row * width);
  for (int i = 0; i < width; ++i) {
    out.multiple[i * out.rows + row] = base[i] / width;
    out.rank[i * out.rows + row] = rank[i];
  }
}

// kDims is D, or 0 for any D. If it is not 0, loops are unrolled and arrays are registers.
template <typename T, int kLanes, int kDims>
struct LaneSimplex {
  using Vector = Lanes<T, kLanes>;
  using Int = std::conditional_t<sizeof(T) == 8, int64_t, int32_t>;
  using Ints = Lanes<Int, kLanes>;
  static constexpr int kCoordinates = (kDims != 0 ? kDims : kMaxFeatures) + 1;

  int dims;
  Vector elevated[kCoordinates], multiple[kCoordinates];
  Ints rank[kCoordinates];

  // Returns false if a point's coordinates are too large for T, or NaN.
  ATROUSX_ALWAYS_INLINE bool elevate(const Elevation<T>& e, const T* features, int64_t stride) {
    Vector sum{};
    for (int j = dims; j > 0; --j) {
      const Vector c = in_register(load_raw<Vector>(features + (j - 1) * stride) * e.factor[j - 1]);
      elevated[j] = sum - in_register(static_cast<T>(j) * c);
      sum += c;
    }
    elevated[0] = sum;
    constexpr T kWide = static_cast<T>(kWideCoordinate);
    Ints inside = Ints{} - 1;
    for (int i = 0; i <= dims; ++i)
      inside &= (Ints)(elevated[i] < kWide) & (Ints)(elevated[i] > -kWide);
    Int all = -1;
    for (int lane = 0; lane < kLanes; ++lane) all &= inside[lane];
    return all != 0;
  }

  ATROUSX_ALWAYS_INLINE Vector residual(int i) const {
    return elevated[i] - multiple[i] * static_cast<T>(dims + 1);  // the product is exact
  }

  ATROUSX_ALWAYS_INLINE void enclose() {
    // A sum with kRound is rounded to an integer, ties to even.
    constexpr T kRound = sizeof(T) == 8 ? T(6755399441055744.0) : T(12582912.0);
    const T down = T(1) / static_cast<T>(dims + 1);
    Vector total{};
    for (int i = 0; i <= dims; ++i) {
      multiple[i] = (in_register(elevated[i] * down) + kRound) - kRound;
      total += multiple[i];
      rank[i] = Ints{};
    }
    for (int i = 0; i < dims; ++i)
      for (int j = i + 1; j <= dims; ++j) {
        const Ints less = (Ints)(residual(i) < residual(j));  // -1 if true
        rank[i] -= less;
        rank[j] += less + 1;
      }
    const Ints steps = __builtin_convertvector(total, Ints);
    for (int i = 0; i <= dims; ++i) {
      rank[i] += steps;
      const Ints low = (Ints)(rank[i] < 0), high = (Ints)(rank[i] > dims);
      rank[i] += ((dims + 1) & low) - ((dims + 1) & high);
      multiple[i] += __builtin_convertvector(high - low, Vector);
    }
  }

  // Writes weight[k] of each lane to weights[k * kLanes + lane].
  ATROUSX_ALWAYS_INLINE void weigh(T* weights) const {
    const T down = T(1) / static_cast<T>(dims + 1);
    Vector sorted[kCoordinates];  // parts of the coordinates, by rank
    for (int r = 0; r <= dims; ++r) sorted[r] = Vector{};
    for (int i = 0; i <= dims; ++i) {
      const Vector part = in_register(residual(i) * down);
      for (int r = 0; r <= dims; ++r)
        sorted[r] = (Vector)((Ints)sorted[r] | ((Ints)(rank[i] == r) & (Ints)part));
    }
    store_lanes<kLanes>(weights, Vector(sorted[dims] + (T(1) - sorted[0])));
    for (int k = 1; k <= dims; ++k)
      store_lanes<kLanes>(weights + k * kLanes, Vector(sorted[dims - k] - sorted[dims - k + 1]));
  }

  ATROUSX_ALWAYS_INLINE void store(const Simplices<T>& out, int64_t row) const {
    for (int i = 0; i <= dims; ++i) {
      using Multiples = Lanes<int32_t, kLanes>;
      using Ranks = Lanes<uint8_t, kLanes>;
      *reinterpret_cast<Multiples*>(out.multiple + i * out.rows + row) =
          __builtin_convertvector(multiple[i], Multiples);
      *reinterpret_cast<Ranks*>(out.rank + i * out.rows + row) =
          __builtin_convertvector(rank[i], Ranks);
    }
    T weights[kCoordinates * kLanes];
    weigh(weights);
    T* to = out.weight + row * (dims + 1);
    for (int lane = 0; lane < kLanes; ++lane)
      for (int k = 0; k <= dims; ++k) *to++ = weights[k * kLanes + lane];
  }
};

// The features of an image.
template <typename T>
struct ImageFeatures {
  const T* data;  // [D, stride]
  int64_t stride;
};

// Embeds points [begin, end) of an image. The results of point 0 go to row `first`.
template <int kBytes>
struct EmbedPoints {
  template <typename T, int kDims>
  static ATROUSX_ALWAYS_INLINE void run_dims(const EmbeddingPlan<T>& plan, ImageFeatures<T> image,
                                             const Simplices<T>& out, int64_t first, int64_t begin,
                                             int64_t end) {
    constexpr int kLanes = kLanesIn<kBytes, T>;
    const auto [features, stride] = image;
    LaneSimplex<T, kLanes, kDims> simplex;
    simplex.dims = kDims != 0 ? kDims : plan.own.dims;
    int64_t p = begin;
    for (; p + kLanes <= end; p += kLanes) {
      if (simplex.elevate(plan.own, features + p, stride)) {
        simplex.enclose();
        simplex.store(out, first + p);
        continue;
      }
      for (int lane = 0; lane < kLanes; ++lane)
        embed_one(plan, features + p + lane, stride, out, first + p + lane);
    }
    for (; p < end; ++p) embed_one(plan, features + p, stride, out, first + p);
  }

  template <typename T>
  static ATROUSX_ALWAYS_INLINE void run(const EmbeddingPlan<T>* plan, ImageFeatures<T> image,
                                        Simplices<T> out, int64_t first, int64_t begin,
                                        int64_t end) {
    if (plan->own.dims == 2) return run_dims<T, 2>(*plan, image, out, first, begin, end);
    if (plan->own.dims == 5) return run_dims<T, 5>(*plan, image, out, first, begin, end);
    run_dims<T, 0>(*plan, image, out, first, begin, end);
  }
};

}  // namespace atrousx
