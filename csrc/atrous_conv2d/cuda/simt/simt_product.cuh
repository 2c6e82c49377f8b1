// The product of two gathered panels by ordinary multiply-adds. All three passes share it:
//   sums[lane][column] = sum over depth of lanes[lane][depth] * columns[depth][column]
// Sums are float32, or float64 for float64. This product is used where tensor cores cannot be. A
// sum has kTableDepth products; these sums are then added up. One long sum in order would have a
// rounding error several times as large.
//
// Depth is processed in panels of kPanelDepth. While one panel is multiplied, the values of the
// next are loaded to registers. Shared memory holds two panels, so one barrier per panel is enough.
//
// A thread sums lanes that are kLaneThreads apart and columns that are kColumnThreads apart, so
// that neighbouring threads store neighbouring elements. A panel holds lanes in another order, by
// their *place*: the four lanes that a thread multiplies together are side by side. A thread then
// reads 16 bytes at a time. The 32 neighbouring places that a warp writes are in 32 different
// banks.
#pragma once

#include "cuda/device.cuh"

namespace atrousx {

constexpr int kProductThreads = 128;
constexpr int kProductLanes = 128;
constexpr int kPanelDepth = 8;
constexpr int kLaneThreads = 16, kColumnThreads = kProductThreads / kLaneThreads;
constexpr int kLaneSums = kProductLanes / kLaneThreads;
template <int kColumns>
constexpr int kColumnSums = kColumns / kColumnThreads;
// Depths whose offsets are computed at once, one by each thread. Their products form one sum.
constexpr int kTableDepth = kProductThreads;
static_assert(kTableDepth % kPanelDepth == 0);

// Columns of a tile. Sums of float64 take twice the registers.
template <typename T>
constexpr int kWideColumns = sizeof(Accumulate<T>) == 8 ? 32 : 64;

// Blocks per multiprocessor: as many as leave enough registers for the sums.
constexpr int kProductBlocks = 2;

template <typename A>
struct alignas(16) Quad {
  A values[4];
};

// The place of a lane (or column) in a panel, for threads that own every kThreads-th lane.
template <int kThreads>
__device__ __forceinline__ int place_of(int lane) {
  return lane / (4 * kThreads) * (4 * kThreads) + lane % kThreads * 4 + lane / kThreads % 4;
}

// A row of a panel has one quad more than its lanes need. Threads that write along depth then use
// different banks.
template <int kLanes>
constexpr int kRowQuads = kLanes / 4 + 1;
template <int kColumns>
constexpr int kPanelQuads = kPanelDepth * (kRowQuads<kProductLanes> + kRowQuads<kColumns>);

// One operand. Its value at a lane and a depth is values[lanes[place] + depths[depth]].
template <typename T, int kLanes>
struct Operand {
  static constexpr int kCount = kPanelDepth * kLanes / kProductThreads;  // of a thread in a panel

  const T* values;
  const int64_t* lanes;   // [kLanes], shared memory, by place; missing lanes repeat others
  const int64_t* depths;  // [kTableDepth], shared memory
  bool along_depth;       // whether values are closer together along depth

  // The depth and the place of this thread's `i`th value in a panel.
  template <bool kAlongDepth>
  static __device__ __forceinline__ int depth(int i) {
    const int thread = static_cast<int>(threadIdx.x);
    return kAlongDepth ? thread % kPanelDepth : thread / kLanes + i * (kProductThreads / kLanes);
  }
  template <bool kAlongDepth>
  static __device__ __forceinline__ int place(int i) {
    constexpr int kThreads = kLanes == kProductLanes ? kLaneThreads : kColumnThreads;
    const int thread = static_cast<int>(threadIdx.x);
    return kAlongDepth ? thread / kPanelDepth + i * (kProductThreads / kPanelDepth)
                       : place_of<kThreads>(thread % kLanes);
  }

  // Loads the panel that starts at `at` in the table. Beyond the last `left` depths it holds zeros.
  __device__ __forceinline__ void load(int at, int left, T (&held)[kCount]) const {
    if (along_depth)
      load_as<true>(at, left, held);
    else
      load_as<false>(at, left, held);
  }
  template <bool kAlongDepth>
  __device__ __forceinline__ void load_as(int at, int left, T (&held)[kCount]) const {
    // All values of this thread have the same depth, or the same lane.
    const T* from = values + (kAlongDepth ? depths[at + depth<true>(0)] : lanes[place<false>(0)]);
    ATROUSX_UNROLL
    for (int i = 0; i < kCount; ++i) {
      const int d = depth<kAlongDepth>(i);
      const int64_t offset = kAlongDepth ? lanes[place<true>(i)] : depths[at + d];
      held[i] = d < left ? from[offset] : T(0);
    }
  }

  template <typename A>
  __device__ __forceinline__ void store(const T (&held)[kCount], Quad<A>* panel) const {
    if (along_depth)
      store_as<true>(held, reinterpret_cast<A*>(panel));
    else
      store_as<false>(held, reinterpret_cast<A*>(panel));
  }
  template <bool kAlongDepth, typename A>
  __device__ __forceinline__ void store_as(const T (&held)[kCount], A* panel) const {
    ATROUSX_UNROLL
    for (int i = 0; i < kCount; ++i)
      panel[depth<kAlongDepth>(i) * 4 * kRowQuads<kLanes> + place<kAlongDepth>(i)] =
          static_cast<A>(held[i]);
  }
};

// The first lane and column of this thread. With `lanes_first` neighbouring threads own
// neighbouring lanes, otherwise neighbouring columns.
struct ThreadPlace {
  int lane, column;

  __device__ __forceinline__ explicit ThreadPlace(bool lanes_first)
      : lane(static_cast<int>(lanes_first ? threadIdx.x % kLaneThreads
                                          : threadIdx.x / kColumnThreads)),
        column(static_cast<int>(lanes_first ? threadIdx.x / kLaneThreads
                                            : threadIdx.x % kColumnThreads)) {}
};

// The sums of a thread: sums[i][j] is at (lane + i * kLaneThreads, column + j * kColumnThreads).
template <typename A, int kColumns>
using ProductSums = A[kLaneSums][kColumnSums<kColumns>];

template <typename A, int kColumns>
__device__ __forceinline__ void move_sums(ProductSums<A, kColumns>& from,
                                          ProductSums<A, kColumns>& to) {
  ATROUSX_UNROLL
  for (int i = 0; i < kLaneSums; ++i) ATROUSX_UNROLL
  for (int j = 0; j < kColumnSums<kColumns>; ++j) {
    to[i][j] += from[i][j];
    from[i][j] = A(0);
  }
}

template <typename A, int kColumns>
__device__ __forceinline__ void multiply_panel(const Quad<A>* panel, const ThreadPlace& place,
                                               ProductSums<A, kColumns>& sums) {
  const Quad<A>* lanes = panel + place.lane;
  const Quad<A>* columns = panel + kPanelDepth * kRowQuads<kProductLanes> + place.column;
  ATROUSX_UNROLL
  for (int d = 0; d < kPanelDepth; ++d) {
    Quad<A> a[kLaneSums / 4], b[kColumnSums<kColumns> / 4];
    ATROUSX_UNROLL
    for (int i = 0; i < kLaneSums / 4; ++i)
      a[i] = lanes[d * kRowQuads<kProductLanes> + i * kLaneThreads];
    ATROUSX_UNROLL
    for (int j = 0; j < kColumnSums<kColumns> / 4; ++j)
      b[j] = columns[d * kRowQuads<kColumns> + j * kColumnThreads];
    ATROUSX_UNROLL
    for (int i = 0; i < kLaneSums; ++i) ATROUSX_UNROLL
    for (int j = 0; j < kColumnSums<kColumns>; ++j)
      sums[i][j] += a[i / 4].values[i % 4] * b[j / 4].values[j % 4];
  }
}

// What a block multiplies.
template <typename T, int kColumns>
struct PanelOperands {
  Operand<T, kProductLanes> lanes;
  Operand<T, kColumns> columns;
};

// Adds the products of all `depth` to `sums`. find_offsets(d) writes the depth offsets of both
// operands at d to their tables; each thread computes one depth. Synchronisation: one barrier per
// panel, one per table, one at the end.
template <typename T, int kColumns, typename A, typename FindOffsets>
__device__ __forceinline__ void multiply_panels(const PanelOperands<T, kColumns>& operands,
                                                int64_t depth, const FindOffsets& find_offsets,
                                                const ThreadPlace& place, Quad<A>* memory,
                                                ProductSums<A, kColumns>& sums) {
  const auto& lanes = operands.lanes;
  const auto& columns = operands.columns;
  T held_lanes[Operand<T, kProductLanes>::kCount], held_columns[Operand<T, kColumns>::kCount];
  const auto load = [&](int64_t start) {
    const int at = static_cast<int>(start % kTableDepth);
    if (at == 0) {
      find_offsets(start + threadIdx.x);
      __syncthreads();  // the table is complete
    }
    const int left = static_cast<int>(min_of<int64_t>(depth - start, kPanelDepth));
    lanes.load(at, left, held_lanes);
    columns.load(at, left, held_columns);
  };
  ProductSums<A, kColumns> table_sums = {};
  if (depth > 0) load(0);
  for (int64_t start = 0; start < depth; start += kPanelDepth) {
    Quad<A>* panel = memory + start / kPanelDepth % 2 * kPanelQuads<kColumns>;
    lanes.store(held_lanes, panel);
    columns.store(held_columns, panel + kPanelDepth * kRowQuads<kProductLanes>);
    // The panel is complete and its offsets have been read. The previous panel has been multiplied,
    // so the next one may overwrite it.
    __syncthreads();
    const int64_t next = start + kPanelDepth;
    if (next < depth) load(next);
    multiply_panel<A, kColumns>(panel, place, table_sums);
    if (next % kTableDepth == 0) move_sums<A, kColumns>(table_sums, sums);
  }
  move_sums<A, kColumns>(table_sums, sums);
  __syncthreads();  // all threads have read the panels and the tables
}

// Calls use(lane, column, sum) for every sum of the tile. Sums go through shared memory, so that
// neighbouring threads get neighbouring lanes or columns, and the code of use() exists once for
// many sums. With lanes_first a thread's lane is its own number. Synchronisation: two barriers per
// kRound columns.
template <typename A, int kColumns, typename Use>
__device__ __forceinline__ void for_each_sum(const ProductSums<A, kColumns>& sums,
                                             const ThreadPlace& place, bool lanes_first,
                                             Quad<A>* memory, const Use& use) {
  constexpr int kRound = 2 * kColumnThreads, kPitch = kProductLanes + 4;
  static_assert(kRound * kPitch <= 2 * kPanelQuads<kColumns> * 4, "the panels' memory is reused");
  A* rounds = reinterpret_cast<A*>(memory);
  ATROUSX_UNROLL
  for (int round = 0; round < kColumns / kRound; ++round) {
    ATROUSX_UNROLL
    for (int i = 0; i < kLaneSums; ++i) ATROUSX_UNROLL
    for (int j = 0; j < 2; ++j)
      rounds[(place.column + j * kColumnThreads) * kPitch + place.lane + i * kLaneThreads] =
          sums[i][2 * round + j];
    __syncthreads();  // the round's columns are complete
    ATROUSX_UNROLL_BY(1)
    for (int e = 0; e < kRound; ++e) {
      const int number = e * kProductThreads + static_cast<int>(threadIdx.x);
      const int lane = lanes_first ? static_cast<int>(threadIdx.x) : number / kRound;
      const int column = lanes_first ? e : number % kRound;
      use(lane, round * kRound + column, rounds[column * kPitch + lane]);
    }
    __syncthreads();  // all threads have read them
  }
}

}  // namespace atrousx
