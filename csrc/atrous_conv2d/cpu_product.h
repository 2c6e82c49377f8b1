// The CPU's indirect matrix product. Forward, grad-input and grad-weight are all
//   sums[lane][column] = sum over depth of a[a_depth[d] + a_lane[lane]] * b[b_depth[d] + b_column]
// with offsets in place of a copied (im2col) matrix. Both factors are packed into panels of the
// accumulation type, [depth][lanes] and [depth][columns], a few hundred KB at a time, so that any
// strides and any dtype feed the same register tile.
#pragma once

#include <atomic>
#include <cstdint>

#include "../cpu_dispatch.h"
#include "../portable.h"

namespace atrousx {

// The register tile: kLanes x kColumns sums, a column vector of kVectorBytes at a time. Each
// instruction set's tile leaves registers for the column vectors and a broadcast lane.
template <typename Sum, int kLaneCount, int kVectorCount, int kVectorSize>
struct RegisterTile {
  using A = Sum;
  static constexpr int kLanes = kLaneCount, kVectors = kVectorCount, kVectorBytes = kVectorSize;
  static constexpr int kColumns = kVectors * (kVectorBytes / static_cast<int>(sizeof(A)));
  static constexpr int kSums = kLanes * kColumns;
};

// Calls f with the register tile of the instruction set in use.
template <typename A, typename F>
void with_register_tile(F&& f) {
  switch (cpu_isa()) {
    case CpuIsa::kAvx512:
      return f(RegisterTile<A, 14, 2, 64>{});
    case CpuIsa::kAvx2:
      return f(RegisterTile<A, 6, 2, 32>{});
    case CpuIsa::kPortable:
      return f(RegisterTile<A, 6, 2, 16>{});
  }
}

// A stretch of depth whose columns lie next to each other in a packed panel.
struct Segment {
  int64_t offset, depth;
};

// sums[lane][column] += the product over the segments. It starts from zero and adds once at the
// end, so long sums are summed by blocks: less rounding than one running sum.
template <typename R>
struct MultiplyPanels {
  using A = typename R::A;
  typedef A Vector __attribute__((vector_size(R::kVectorBytes), aligned(sizeof(A)), may_alias));

  static ATROUSX_ALWAYS_INLINE void run(const A* lanes,    // [depth, kLanes]
                                        const A* columns,  // [.., kColumns], at segments' offsets
                                        const Segment* segments, int64_t count,
                                        A* sums) {  // [kLanes, kColumns]
    constexpr int kStep = R::kVectorBytes / sizeof(A);
    Vector acc[R::kLanes][R::kVectors] = {};
    for (int64_t s = 0; s < count; ++s) {
      const A* b = columns + segments[s].offset;
      for (int64_t d = 0; d < segments[s].depth; ++d) {
        Vector w[R::kVectors];
        for (int v = 0; v < R::kVectors; ++v)
          w[v] = *reinterpret_cast<const Vector*>(b + v * kStep);
        for (int l = 0; l < R::kLanes; ++l)
          for (int v = 0; v < R::kVectors; ++v) acc[l][v] += lanes[l] * w[v];
        lanes += R::kLanes;
        b += R::kColumns;
      }
    }
    for (int l = 0; l < R::kLanes; ++l)
      for (int v = 0; v < R::kVectors; ++v)
        *reinterpret_cast<Vector*>(sums + l * R::kColumns + v * kStep) += acc[l][v];
  }
};

// panel[d][lane] = source[depth_offsets[d] + lane_offsets[lane]]; lanes past `count` become zero.
template <int kWidth>
struct PackPanel {
  template <typename T, typename A>
  static ATROUSX_ALWAYS_INLINE void run(const T* source, const int64_t* depth_offsets,
                                        int64_t depth, const int64_t* lane_offsets, int64_t count,
                                        A* panel) {  // [depth, kWidth]
    for (int64_t lane = 0; lane < count;) {
      // Lanes that are neighbours in memory are copied together.
      int64_t run = 1;
      while (lane + run < count && lane_offsets[lane + run] == lane_offsets[lane] + run) ++run;
      const T* from = source + lane_offsets[lane];
      A* to = panel + lane;
      if (run == kWidth) {
        for (int64_t d = 0; d < depth; ++d)
          for (int64_t l = 0; l < kWidth; ++l)
            to[d * kWidth + l] = static_cast<A>(from[depth_offsets[d] + l]);
      } else if (run > 1) {
        for (int64_t d = 0; d < depth; ++d)
          for (int64_t l = 0; l < run; ++l)
            to[d * kWidth + l] = static_cast<A>(from[depth_offsets[d] + l]);
      } else {
        for (int64_t d = 0; d < depth; ++d) to[d * kWidth] = static_cast<A>(from[depth_offsets[d]]);
      }
      lane += run;
    }
    if (count < kWidth)
      for (int64_t d = 0; d < depth; ++d)
        for (int64_t l = count; l < kWidth; ++l) panel[d * kWidth + l] = A(0);
  }
};

// Threads take tasks one by one: tasks differ in cost (their live taps), and no result depends on
// which thread does which. body(task, worker), worker < cpu_workers(tasks).
inline int64_t cpu_workers(int64_t tasks) {
  return std::min<int64_t>(tasks, torch::stable::get_num_threads());
}

template <typename F>
void for_each_task(int64_t tasks, F&& body) {
  std::atomic<int64_t> next{0};
  torch::stable::parallel_for(0, cpu_workers(tasks), 1, [&](int64_t begin, int64_t end) {
    for (int64_t worker = begin; worker < end; ++worker)
      for (int64_t task; (task = next.fetch_add(1)) < tasks;) body(task, worker);
  });
}

}  // namespace atrousx
