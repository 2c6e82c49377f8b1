// The micro-kernel of indirect matrix products on the CPU. Forward, grad-input and grad-weight all
// compute
//   sums[lane][column] = sum over depth of source[lanes[lane] + depth] * columns[depth][column]
// A lane is a row of the product here: a pixel or, in grad-weight, an input channel. The kernel
// reads lanes by address from a packed map (packed_map.h), so no panel is copied for each tap.
// Columns come from a packed panel. Packing converts both to the element type of the register tile,
// so one tile works for all strides and dtypes.
#pragma once

#include <array>
#include <atomic>
#include <bit>
#include <cstdint>
#include <type_traits>
#include <utility>
#include <vector>

#include <torch/csrc/stable/ops.h>

#include "cpu/dispatch.h"
#include "portable.h"

namespace atrousx {

// The register tile: up to kLanes x kColumns sums in vectors of kVectorBytes. Most tiles leave
// registers for the column vectors and for a broadcast lane. A packed element holds kPack numbers:
// one number of type A or, if the CPU multiplies such pairs, two bfloat16 that are neighbours in
// depth.
template <typename Sum, CpuIsa kSet, int kLaneCount, int kVectorCount, int kVectorSize,
          int kPackedNumbers = 1>
struct RegisterTile {
  using A = Sum;
  static constexpr int kPack = kPackedNumbers;
  static constexpr CpuIsa kIsa = kSet;
  static constexpr int kLanes = kLaneCount, kVectors = kVectorCount, kVectorBytes = kVectorSize;
  static constexpr int kColumns = kVectors * (kVectorBytes / static_cast<int>(sizeof(A)));
};

// Calls f with a register tile of the instruction set in use, for products that are `columns` wide.
// It takes the tile with the least padding, and the widest of several such tiles.
template <typename A, int kPack = 1, typename F>
void with_register_tile(int64_t columns, F&& f) {
  const auto padded = [&](int64_t width) { return ceil_div(columns, width) * width; };
  switch (cpu_isa()) {
#if defined(__x86_64__)
    case CpuIsa::kAvx512:
      if constexpr (sizeof(A) == 4) {
        // 4 vectors leave no register for a lane. A multiply-add can read the lane from memory, but
        // MultiplyLanes multiplies pairs from registers only.
        if (kPack == 1 && padded(64) <= padded(32) && padded(64) <= padded(24))
          return f(RegisterTile<A, CpuIsa::kAvx512, 7, 4, 64, kPack>{});
        if (padded(24) < padded(32)) return f(RegisterTile<A, CpuIsa::kAvx512, 9, 3, 32, kPack>{});
        return f(RegisterTile<A, CpuIsa::kAvx512, 14, 2, 64, kPack>{});
      } else {
        return f(RegisterTile<A, CpuIsa::kAvx512, 14, 2, 64>{});
      }
    case CpuIsa::kAvx2:
      if constexpr (kPack == 1) return f(RegisterTile<A, CpuIsa::kAvx2, 6, 2, 32>{});
      break;  // AVX2 has no product of pairs
#endif
    default:
      if constexpr (kPack == 1) return f(RegisterTile<A, CpuIsa::kPortable, 6, 2, 16>{});
  }
}

// Calls f with kPack, the numbers in a packed element, for a product of elements of type T.
template <typename T, typename F>
void with_pack(F&& f) {
  if constexpr (std::is_same_v<T, BFloat16>) {
    if (cpu_has_bf16_pairs()) return f(std::integral_constant<int, 2>{});
  }
  f(std::integral_constant<int, 1>{});
}

// A stretch of depth. `source` and `columns` are the offsets at which it begins.
struct Segment {
  int64_t source, columns, depth;
};

// How many rows a plain product sums in registers. More rows would round more.
template <typename A>
constexpr int64_t kRunning = 512 / sizeof(A);

// The segments of one product. Segments that are neighbours in both factors are joined. After about
// `running` rows the sums in registers are added to memory, because sums of blocks round less than
// one running sum. `step` is the distance from one row of the lanes to the next, if kDepthStep is
// kPlanes. `begins` means that memory has no sums yet.
struct SegmentList {
  int64_t running, step = 1;
  bool begins = false;
  std::vector<Segment> items{};
  int64_t depth = 0;

  void add(const Segment& s, int64_t source_step, int64_t columns_step) {
    depth += s.depth;
    if (!items.empty()) {
      Segment& last = items.back();
      if (s.source == last.source + last.depth * source_step &&
          s.columns == last.columns + last.depth * columns_step) {
        last.depth += s.depth;
        return;
      }
    }
    items.push_back(s);
  }
  void clear() {
    items.clear();
    depth = 0;
  }
};

// The number of elements in a cache line.
template <typename A>
constexpr int kLine = 64 / static_cast<int>(sizeof(A));

constexpr int kSlab = 64;       // elements of a slab, each of one channel or, as a pair, of two
constexpr int64_t kPlanes = 0;  // a kDepthStep: the step is known only at run time

// How many addresses a product prefetches from: kLanes, rounded up to a multiple of kLine.
template <typename R>
constexpr int kNextLanes =
    (R::kLanes + kLine<typename R::A> - 1) / kLine<typename R::A> * kLine<typename R::A>;

// What a product prefetches while it computes, one or a few cache lines for each row. All lines at
// once would fill the CPU's buffers of pending loads, and the product would wait.
template <typename A>
struct Prefetch {
  const A* from;           // null: prefetch from the source of each segment
  const int64_t* offsets;  // [kNextLanes]; kLine rows prefetch one line at each offset
};

// What a product multiplies.
template <typename A>
struct Factors {
  const A* source;
  const int64_t* lanes;  // where each lane begins in the source
  const A* columns;      // [.., kColumns]
};

// sums[lane][column] += the product over the segments, for lanes < kLanesUsed. If `begins` is true,
// the first sums overwrite memory. Row d of lane l is at lanes[l] + d * kDepthStep from the source
// of a segment.
//   kDepthStep 1        Depth counts channels. The kernel prefetches what `next` says.
//   kDepthStep > 1      Depth counts pixels or tiles. Of packed pairs of pixels, the kernel takes
//                       every second element (packed_map.h).
//   kDepthStep kPlanes  Depth counts channels that lie `step` apart. The kernel prefetches the same
//                       rows of the next slab.
template <typename R, int kLanesUsed, int64_t kDepthStep>
struct MultiplyLanes {
  using A = typename R::A;
  // With the vector type of cpu/lanes.h GCC allocates registers differently, and this loop is
  // slower.
  typedef A Vector __attribute__((vector_size(R::kVectorBytes), aligned(sizeof(A)), may_alias));
  // A pair is broadcast as bits, because it is not a number.
  typedef int32_t Bits __attribute__((vector_size(R::kVectorBytes)));

  typedef Vector Sums[kLanesUsed][R::kVectors];

  static ATROUSX_ALWAYS_INLINE void run(Factors<A> in, const SegmentList* list, Prefetch<A> next,
                                        A* sums) {  // [kLanesUsed, kColumns]
    const Segment* const segments = list->items.data();
    const int64_t count = static_cast<int64_t>(list->items.size()), running = list->running;
    const int64_t depth_step = kDepthStep == kPlanes ? list->step : kDepthStep;
    bool begins = list->begins;
    for (int64_t s = 0; s < count;) {
      Sums acc = {};
      for (int64_t rows = 0; s < count && rows < running; ++s) {
        rows += segments[s].depth;
        const A* a = in.source + segments[s].source;
        const A* b = in.columns + segments[s].columns;
        const A* soon = next.from == nullptr ? a : next.from;
        if (next.from != nullptr) next.from += segments[s].depth;
        for (int64_t d = 0; d < segments[s].depth; ++d) {
          prefetch(a + in.lanes[0], depth_step, b, soon, next.offsets, d);
          multiply_row(a, in.lanes, b, acc);
          a += depth_step;
          b += kNextColumns;
        }
      }
      // Without this the compiler keeps these sums on the stack until the last segment. It then
      // copies each sum once more for each stretch of rows, and these copies span cache lines.
      asm("" : "+r"(sums));
      add_to_memory(acc, begins, sums);
      begins = false;
    }
  }

 private:
  static constexpr int kStep = R::kVectorBytes / sizeof(A);
  static constexpr int kAhead = 8;  // rows to prefetch ahead: columns come from the outer caches
  static constexpr bool kChannels = kDepthStep == 1 || kDepthStep == kPlanes;
  static constexpr int64_t kNextColumns = kChannels ? R::kColumns : R::kPack * R::kColumns;

  // What row d of a segment prefetches. `lane` is the row of the first lane, `b` that of the
  // columns.
  static ATROUSX_ALWAYS_INLINE void prefetch(const A* lane, int64_t depth_step, const A* b,
                                             const A* soon, const int64_t* offsets, int64_t d) {
    for (int byte = 0; byte < R::kVectors * R::kVectorBytes; byte += 64)
      __builtin_prefetch(reinterpret_cast<const char*>(b + kAhead * kNextColumns) + byte);
    if constexpr (kDepthStep != 1) __builtin_prefetch(lane + kAhead * depth_step);
    if constexpr (kDepthStep == kPlanes) __builtin_prefetch(lane + kSlab * depth_step, 0, 2);
    if constexpr (kDepthStep == 1)
      for (int l = 0; l < R::kLanes; l += kLine<A>)
        __builtin_prefetch(soon + offsets[l + d % kLine<A>] + d / kLine<A> * kLine<A>, 0, 2);
  }

  static ATROUSX_ALWAYS_INLINE void multiply_row(const A* a, const int64_t* lanes, const A* b,
                                                 Sums& acc) {
    Vector w[R::kVectors];
    for (int v = 0; v < R::kVectors; ++v) w[v] = *reinterpret_cast<const Vector*>(b + v * kStep);
    // The addresses are loaded again for each row, because no registers are left for them.
    const int64_t* at = lanes;
    asm("" : "+r"(at));
    for (int l = 0; l < kLanesUsed; ++l) {
      const A lane = a[at[l]];
      if constexpr (R::kPack == 1) {
        for (int v = 0; v < R::kVectors; ++v) acc[l][v] += lane * w[v];
      } else {
        // Inline assembly, because the target of run_on does not include AVX512-BF16. It includes
        // only what every AVX-512 CPU of CpuIsa::kAvx512 has.
        const Bits pair = Bits{} + std::bit_cast<int32_t>(lane);
        for (int v = 0; v < R::kVectors; ++v) {
          Vector sum = acc[l][v];
          asm("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(pair), "v"(w[v]));
          acc[l][v] = sum;
        }
      }
    }
  }

  static ATROUSX_ALWAYS_INLINE void add_to_memory(const Sums& acc, bool begins, A* sums) {
    for (int l = 0; l < kLanesUsed; ++l)
      for (int v = 0; v < R::kVectors; ++v) {
        Vector* const sum = reinterpret_cast<Vector*>(sums + l * R::kColumns + v * kStep);
        *sum = begins ? acc[l][v] : *sum + acc[l][v];
      }
  }
};

// MultiplyLanes for any number of lanes. Each number has its own loop, so the last piece of a tile
// does not multiply zeros.
template <typename R, int64_t kDepthStep>
void multiply_lanes(int64_t lanes_used, Factors<typename R::A> factors, const SegmentList& segments,
                    Prefetch<typename R::A> next, typename R::A* sums) {
  using A = typename R::A;
  using Loop = void (*)(Factors<A>, const SegmentList*, Prefetch<A>, A*);
  static constexpr auto loops = []<size_t... kIndex>(std::index_sequence<kIndex...>) {
    return std::array<Loop, R::kLanes>{
        run_on<R::kIsa, MultiplyLanes<R, static_cast<int>(kIndex) + 1, kDepthStep>, Factors<A>,
               const SegmentList*, Prefetch<A>, A*>...};
  }(std::make_index_sequence<R::kLanes>{});
  loops[lanes_used - 1](factors, &segments, next, sums);
}

// 0, kStep, 2 kStep, ...: the offsets of lanes, or of prefetches, at equal distances.
template <int kCount, int64_t kStep>
constexpr auto kEquallySpaced = [] {
  std::array<int64_t, kCount> offsets{};
  for (int i = 0; i < kCount; ++i) offsets[i] = i * kStep;
  return offsets;
}();

// Cuts `lanes` into pieces of at most `most` lanes, as few and as equal as possible.
struct LanePieces {
  int64_t lanes, count;

  LanePieces(int64_t lanes_, int64_t most) : lanes(lanes_), count(ceil_div(lanes_, most)) {}
  int64_t first(int64_t piece) const { return piece * lanes / count; }
  int64_t size(int64_t piece) const { return first(piece + 1) - first(piece); }
};

inline int64_t cpu_workers(int64_t tasks) {
  return std::min<int64_t>(tasks, torch::stable::get_num_threads());
}

// Calls body(task, worker) for each task, with worker < cpu_workers(tasks). Threads take tasks one
// by one, because tasks differ in cost: they have different live taps. No result depends on which
// thread runs a task.
template <typename F>
void for_each_task(int64_t tasks, F&& body) {
  std::atomic<int64_t> next{0};
  torch::stable::parallel_for(0, cpu_workers(tasks), 1, [&](int64_t begin, int64_t end) {
    for (int64_t worker = begin; worker < end; ++worker)
      for (int64_t task; (task = next.fetch_add(1)) < tasks;) body(task, worker);
  });
}

}  // namespace atrousx
