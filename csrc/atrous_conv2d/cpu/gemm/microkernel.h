// The CPU's indirect matrix product. Forward, grad-input and grad-weight are all
//   sums[lane][column] = sum over depth of source[lane's address + depth] * columns[depth][column]
// Lanes are read where they lie in a packed map (packed_map.h), by address: no panel is copied per
// tap. Columns come from panels of their own. Both are of the tile's element type, so any strides
// and any dtype feed the same register tile.
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

// The register tile: up to kLanes x kColumns sums, a column vector of kVectorBytes at a time. Each
// instruction set's tile leaves registers for the column vectors and a broadcast lane. A packed
// element holds kPack numbers: one of type A, or, where the CPU multiplies these, two neighbours in
// depth as bfloat16.
template <typename Sum, CpuIsa kSet, int kLaneCount, int kVectorCount, int kVectorSize,
          int kPackedNumbers = 1>
struct RegisterTile {
  using A = Sum;
  static constexpr int kPack = kPackedNumbers;
  static constexpr CpuIsa kIsa = kSet;
  static constexpr int kLanes = kLaneCount, kVectors = kVectorCount, kVectorBytes = kVectorSize;
  static constexpr int kColumns = kVectors * (kVectorBytes / static_cast<int>(sizeof(A)));
};

// Calls f with the register tile for products `columns` wide, of the instruction set in use: the
// one that pads them least, the widest of these.
template <typename A, int kPack = 1, typename F>
void with_register_tile(int64_t columns, F&& f) {
  const auto padded = [&](int64_t width) { return ceil_div(columns, width) * width; };
  switch (cpu_isa()) {
#if defined(__x86_64__)
    case CpuIsa::kAvx512:
      if constexpr (sizeof(A) == 4) {
        // 4 vectors of pairs leave no register for a lane: only a multiply-add takes it from
        // memory.
        if (kPack == 1 && padded(64) <= padded(32) && padded(64) <= padded(24))
          return f(RegisterTile<A, CpuIsa::kAvx512, 7, 4, 64, kPack>{});
        if (padded(24) < padded(32)) return f(RegisterTile<A, CpuIsa::kAvx512, 9, 3, 32, kPack>{});
        return f(RegisterTile<A, CpuIsa::kAvx512, 14, 2, 64, kPack>{});
      } else {
        return f(RegisterTile<A, CpuIsa::kAvx512, 14, 2, 64>{});
      }
    case CpuIsa::kAvx2:
      if constexpr (kPack == 1) return f(RegisterTile<A, CpuIsa::kAvx2, 6, 2, 32>{});
      break;  // no AVX2 multiplies pairs
#endif
    default:
      if constexpr (kPack == 1) return f(RegisterTile<A, CpuIsa::kPortable, 6, 2, 16>{});
  }
}

// Calls f with how many numbers of depth a packed element holds, in a product of T by T.
template <typename T, typename F>
void with_pack(F&& f) {
  if constexpr (std::is_same_v<T, BFloat16>) {
    if (cpu_has_bf16_pairs()) return f(std::integral_constant<int, 2>{});
  }
  f(std::integral_constant<int, 1>{});
}

// A stretch of depth: where it begins in the lanes and in the columns.
struct Segment {
  int64_t source, columns, depth;
};

// What rounding allows of plain products.
template <typename A>
constexpr int64_t kRunning = 512 / sizeof(A);

// Segments of one product; neighbours in both factors become one. After `running` rows or so sums
// go from registers to memory: sums by blocks round less than one running sum. `step`: from a row
// of the lanes to the next, where the loop does not know it. `begins`: there are no sums in memory
// yet to add to.
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

// Elements of a cache line.
template <typename A>
constexpr int kLine = 64 / static_cast<int>(sizeof(A));

constexpr int kSlab = 64;  // elements of a pixel or of a column: of one channel or, packed, of two
constexpr int64_t kPlanes = 0;  // a depth step known only when it runs

// How many addresses a product prefetches from: whole lines of rows.
template <typename R>
constexpr int kNextLanes =
    (R::kLanes + kLine<typename R::A> - 1) / kLine<typename R::A> * kLine<typename R::A>;

// What a product asks for meanwhile, a line or so a row: all at once would fill the CPU's buffers
// of pending loads, and the product would wait.
template <typename A>
struct Prefetch {
  const A* from;           // null: from each segment's source
  const int64_t* offsets;  // [kNextLanes], each of a line for every kLine rows
};

// sums[lane][column] += the product over the segments, or = where that `begins` them, for lanes <
// kLanesUsed.
// Lane l of row d is at lanes[l] + d * kDepthStep from a segment's source. Where that step is one
// element, what `next` says is prefetched meanwhile. Where it is more, depth are pixels: of pairs,
// every second element is one that begins there (packed_map.h). Where it is kPlanes, depth are
// channels that lie `step` apart, and the same rows of the next slab are prefetched.
template <typename R, int kLanesUsed, int64_t kDepthStep>
struct MultiplyLanes {
  using A = typename R::A;
  // The kernel's own vector type: with that of cpu/lanes.h GCC allots the registers of this loop
  // otherwise, and it is slower.
  typedef A Vector __attribute__((vector_size(R::kVectorBytes), aligned(sizeof(A)), may_alias));
  // A pair is broadcast as bits: it is no number.
  typedef int32_t Bits __attribute__((vector_size(R::kVectorBytes)));

  static ATROUSX_ALWAYS_INLINE void run(const A* source, const int64_t* lanes,
                                        const A* columns,  // [.., kColumns], at segments' offsets
                                        const Segment* segments, int64_t count, int64_t running,
                                        int64_t step, bool begins, Prefetch<A> next,
                                        A* sums) {  // [kLanesUsed, kColumns]
    constexpr int kStep = R::kVectorBytes / sizeof(A);
    constexpr int kAhead = 8;  // rows: columns stream from the outer caches
    constexpr bool kChannels = kDepthStep == 1 || kDepthStep == kPlanes;
    constexpr int64_t kNextColumns = kChannels ? R::kColumns : R::kPack * R::kColumns;
    const int64_t depth_step = kDepthStep == kPlanes ? step : kDepthStep;
    for (int64_t s = 0; s < count;) {
      Vector acc[kLanesUsed][R::kVectors] = {};
      for (int64_t rows = 0; s < count && rows < running; ++s) {
        rows += segments[s].depth;
        const A* a = source + segments[s].source;
        const A* b = columns + segments[s].columns;
        const A* soon = next.from == nullptr ? a : next.from;
        if (next.from != nullptr) next.from += segments[s].depth;
        for (int64_t d = 0; d < segments[s].depth; ++d) {
          Vector w[R::kVectors];
          for (int byte = 0; byte < R::kVectors * R::kVectorBytes; byte += 64)
            __builtin_prefetch(reinterpret_cast<const char*>(b + kAhead * kNextColumns) + byte);
          if constexpr (kDepthStep != 1) __builtin_prefetch(a + lanes[0] + kAhead * depth_step);
          if constexpr (kDepthStep == kPlanes)
            __builtin_prefetch(a + lanes[0] + kSlab * depth_step, 0, 2);
          if constexpr (kDepthStep == 1)
            for (int l = 0; l < R::kLanes; l += kLine<A>)
              __builtin_prefetch(soon + next.offsets[l + d % kLine<A>] + d / kLine<A> * kLine<A>, 0,
                                 2);
          for (int v = 0; v < R::kVectors; ++v)
            w[v] = *reinterpret_cast<const Vector*>(b + v * kStep);
          // Addresses are loaded at every step: there are no registers to keep them in.
          const int64_t* at = lanes;
          asm("" : "+r"(at));
          for (int l = 0; l < kLanesUsed; ++l) {
            const A lane = a[at[l]];
            if constexpr (R::kPack == 1) {
              for (int v = 0; v < R::kVectors; ++v) acc[l][v] += lane * w[v];
            } else {
              // Written out: run_on's target names what every AVX-512 CPU has, not this.
              const Bits pair = Bits{} + std::bit_cast<int32_t>(lane);
              for (int v = 0; v < R::kVectors; ++v) {
                Vector sum = acc[l][v];
                asm("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(pair), "v"(w[v]));
                acc[l][v] = sum;
              }
            }
          }
          a += depth_step;
          b += kNextColumns;
        }
      }
      // The compiler would keep these sums on the stack until the last segment, which costs a copy
      // there, at addresses that span cache lines, for every sum and stretch of rows.
      asm("" : "+r"(sums));
      for (int l = 0; l < kLanesUsed; ++l)
        for (int v = 0; v < R::kVectors; ++v) {
          Vector* const sum = reinterpret_cast<Vector*>(sums + l * R::kColumns + v * kStep);
          *sum = begins ? acc[l][v] : *sum + acc[l][v];
        }
      begins = false;
    }
  }
};

// MultiplyLanes for any number of lanes: each number has its own loop, so that a tile's last
// pixels do not multiply zeros.
template <typename R, int64_t kDepthStep>
void multiply_lanes(int64_t lanes_used, const typename R::A* source, const int64_t* lanes,
                    const typename R::A* columns, const SegmentList& segments,
                    Prefetch<typename R::A> next, typename R::A* sums) {
  using A = typename R::A;
  using Loop = void (*)(const A*, const int64_t*, const A*, const Segment*, int64_t, int64_t,
                        int64_t, bool, Prefetch<A>, A*);
  static constexpr auto loops = []<size_t... kIndex>(std::index_sequence<kIndex...>) {
    return std::array<Loop, R::kLanes>{
        run_on<R::kIsa, MultiplyLanes<R, static_cast<int>(kIndex) + 1, kDepthStep>, const A*,
               const int64_t*, const A*, const Segment*, int64_t, int64_t, int64_t, bool,
               Prefetch<A>, A*>...};
  }(std::make_index_sequence<R::kLanes>{});
  loops[lanes_used - 1](source, lanes, columns, segments.items.data(),
                        static_cast<int64_t>(segments.items.size()), segments.running,
                        segments.step, segments.begins, next, sums);
}

// 0, step, 2 step, ...: lanes, or what is prefetched, that lie at equal distances.
template <int kCount, int64_t kStep>
constexpr auto kEquallySpaced = [] {
  std::array<int64_t, kCount> offsets{};
  for (int i = 0; i < kCount; ++i) offsets[i] = i * kStep;
  return offsets;
}();

// A row of `lanes` cut into as few pieces as fit a register tile, as even as can be.
struct LanePieces {
  int64_t lanes, count;

  LanePieces(int64_t lanes_, int64_t most) : lanes(lanes_), count(ceil_div(lanes_, most)) {}
  int64_t first(int64_t piece) const { return piece * lanes / count; }
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
