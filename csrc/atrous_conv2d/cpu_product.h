// The CPU's indirect matrix product. Forward, grad-input and grad-weight are all
//   sums[lane][column] = sum over depth of a[a_depth[d] + a_lane[lane]] * b[b_depth[d] + b_column]
// with offsets in place of a copied (im2col) matrix. Both factors are packed into panels of the
// accumulation type, [depth][lanes] and [depth][columns], a few hundred KB at a time, so that any
// strides and any dtype feed the same register tile.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <utility>

#include "../cpu_dispatch.h"
#include "../portable.h"
#include "cpu_pack.h"

namespace atrousx {

// The register tile: up to kLanes x kColumns sums, a column vector of kVectorBytes at a time. Each
// instruction set's tile leaves registers for the column vectors and a broadcast lane.
template <typename Sum, CpuIsa kSet, int kLaneCount, int kVectorCount, int kVectorSize>
struct RegisterTile {
  using A = Sum;
  static constexpr CpuIsa kIsa = kSet;
  static constexpr int kLanes = kLaneCount, kVectors = kVectorCount, kVectorBytes = kVectorSize;
  static constexpr int kColumns = kVectors * (kVectorBytes / static_cast<int>(sizeof(A)));
  static constexpr int kSums = kLanes * kColumns;
};

// Calls f with the register tile of the instruction set in use.
template <typename A, typename F>
void with_register_tile(F&& f) {
  switch (cpu_isa()) {
#if defined(__x86_64__)
    case CpuIsa::kAvx512:
      return f(RegisterTile<A, CpuIsa::kAvx512, 14, 2, 64>{});
    case CpuIsa::kAvx2:
      return f(RegisterTile<A, CpuIsa::kAvx2, 6, 2, 32>{});
#endif
    default:
      return f(RegisterTile<A, CpuIsa::kPortable, 6, 2, 16>{});
  }
}

// A stretch of depth whose columns lie next to each other in a packed panel.
struct Segment {
  int64_t offset, depth;
};

// sums[lane][column] += the product over the segments, for lanes < kLanesUsed. It starts from zero
// and adds once at the end, so long sums are summed by blocks: less rounding than one running sum.
template <typename R, int kLanesUsed, int64_t kLaneStep, int64_t kDepthStep>
struct MultiplyPanels {
  using A = typename R::A;
  typedef A Vector __attribute__((vector_size(R::kVectorBytes), aligned(sizeof(A)), may_alias));

  static ATROUSX_ALWAYS_INLINE void run(const A* lanes,    // lane l of row d: l * step + d * step
                                        const A* columns,  // [.., kColumns], at segments' offsets
                                        const Segment* segments, int64_t count,
                                        A* sums) {  // [kLanesUsed, kColumns]
    constexpr int kStep = R::kVectorBytes / sizeof(A);
    constexpr int kAhead = 12;  // rows: columns stream from the outer caches
    Vector acc[kLanesUsed][R::kVectors] = {};
    for (int64_t s = 0; s < count; ++s) {
      const A* b = columns + segments[s].offset;
      for (int64_t d = 0; d < segments[s].depth; ++d) {
        Vector w[R::kVectors];
        for (int byte = 0; byte < R::kVectors * R::kVectorBytes; byte += 64)
          __builtin_prefetch(reinterpret_cast<const char*>(b + kAhead * R::kColumns) + byte);
        for (int v = 0; v < R::kVectors; ++v)
          w[v] = *reinterpret_cast<const Vector*>(b + v * kStep);
        for (int l = 0; l < kLanesUsed; ++l)
          for (int v = 0; v < R::kVectors; ++v) acc[l][v] += lanes[l * kLaneStep] * w[v];
        lanes += kDepthStep;
        b += R::kColumns;
      }
    }
    for (int l = 0; l < kLanesUsed; ++l)
      for (int v = 0; v < R::kVectors; ++v)
        *reinterpret_cast<Vector*>(sums + l * R::kColumns + v * kStep) += acc[l][v];
  }
};

// MultiplyPanels for any number of lanes: each number has its own loop, so that a tile's last
// pixels do not multiply zeros.
template <typename R, int64_t kLaneStep, int64_t kDepthStep>
void multiply_panels(int64_t lanes_used, const typename R::A* lanes, const typename R::A* columns,
                     const Segment* segments, int64_t count, typename R::A* sums) {
  using A = typename R::A;
  using Loop = void (*)(const A*, const A*, const Segment*, int64_t, A*);
  static constexpr auto loops = []<size_t... kIndex>(std::index_sequence<kIndex...>) {
    return std::array<Loop, R::kLanes>{
        run_on<R::kIsa, MultiplyPanels<R, static_cast<int>(kIndex) + 1, kLaneStep, kDepthStep>,
               const A*, const A*, const Segment*, int64_t, A*>...};
  }(std::make_index_sequence<R::kLanes>{});
  loops[lanes_used - 1](lanes, columns, segments, count, sums);
}

// A row of `pixels` lanes cut into as few pieces as fit a register tile, as even as can be.
struct LanePieces {
  int64_t pixels, count;

  LanePieces(int64_t pixels_, int64_t most) : pixels(pixels_), count(ceil_div(pixels_, most)) {}
  int64_t first(int64_t piece) const { return piece * pixels / count; }
  int64_t size(int64_t piece) const { return first(piece + 1) - first(piece); }
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
