// Forward and grad-input on tensor cores (compute capability 8.0): float16, bfloat16, and float32
// rounded to TF32. Maps are read in channels_last order and weights as rows over (tap, channel),
// both in whole 16-byte vectors. Other operands are packed first (pack_kernels.cuh). Only live taps
// are multiplied. Sums are float32.
#pragma once

#include "atrous_conv2d/cuda/tensorcore/tensorcore_product.cuh"
#include "atrous_conv2d/plan.h"

namespace atrousx {

// Element strides of the tensors of a gathering pass. Channels of a source, and source channels of
// a weight, are contiguous. All other strides are multiples of kVector. The strides of a weight
// within a group are at most kMostWeightStride.
struct TensorGatherStrides {
  using HoldsNoAddress = void;
  Strides4 source;
  int64_t source_group;
  WeightStrides weight;
  Strides4 destination;
};

// Copies the panels of a gathering pass, stage by stage. Depth is all source channels of the first
// live tap, then of the next. A stage may end within a tap, or hold many taps of few channels.
template <typename T, int kColumns>
struct GatherFeed {
  static constexpr int kRowsAtOnce = kTensorThreads / 8;  // eight vectors in a row

  const T* source;         // at this thread's next tap and channel
  const T* weight;         // likewise, at its first column
  const int64_t* offsets;  // [kTensorLanes], shared memory: each lane's source, or kNowhere
  // Steps from the end of a tap's channels to the next tap in its row, or to the next row's first
  // tap.
  int64_t source_step, source_row_step;
  int weight_step, weight_row_step;
  int column_stride;      // between columns kRowsAtOnce apart
  int columns;            // how many of this thread's columns exist
  int taps_in_row, tap;   // live taps per row, and the next one
  int channels, channel;  // channels of the group, and this thread's next one
  int left;               // vectors of depth from there to the end

  // Moves from the first channel of the first live tap to this thread's own vector.
  __device__ __forceinline__ void start(int64_t depth) {
    const int vector = static_cast<int>(threadIdx.x) % 8;
    tap = 0;
    channel = 0;
    left = static_cast<int>(depth / kVector<T>) - vector;
    go_on(vector * kVector<T>);
  }

  __device__ __forceinline__ void prepare() {}

  __device__ __forceinline__ void load(unsigned char* stage) {
    const int row = static_cast<int>(threadIdx.x) / 8, vector = static_cast<int>(threadIdx.x) % 8;
    // Rows that are kRowsAtOnce apart have the same permutation.
    const int turn = row_turn<T, PanelOrder::kDepthFastest>(row);
    unsigned char* to = stage + row * kStageDepthBytes + (vector ^ turn) * kVectorBytes;
    const bool inside = left > 0;
    ATROUSX_UNROLL
    for (int i = 0; i < kTensorLanes / kRowsAtOnce; ++i) {
      const int64_t offset = offsets[row + i * kRowsAtOnce];
      const bool present = inside && offset != kNowhere;
      async_copy_16(to + i * kRowsAtOnce * kStageDepthBytes, present ? source + offset : source,
                    present);
    }
    to += kTensorLanes * kStageDepthBytes;
    ATROUSX_UNROLL
    for (int i = 0; i < kColumns / kRowsAtOnce; ++i) {
      const bool present = inside && i < columns;
      async_copy_16(to + i * kRowsAtOnce * kStageDepthBytes,
                    present ? weight + i * column_stride : weight, present);
    }
    left -= 8;
    go_on(kStageDepth<T>);
  }

  __device__ __forceinline__ void go_on(int depth) {
    channel += depth;
    source += depth;
    weight += depth;
    while (channel >= channels) {
      channel -= channels;
      const bool last = ++tap == taps_in_row;
      if (last) tap = 0;
      source += last ? source_row_step : source_step;
      weight += last ? weight_row_step : weight_step;
    }
  }
};

// What a job reads: both operands of a group, and where the lanes of its tile begin in the source.
template <typename T>
struct GatherSources {
  const T *source, *weight;
  const int64_t* lanes;
};

template <typename T, int kColumns>
__device__ __forceinline__ GatherFeed<T, kColumns> gather_feed(const GatherSources<T>& from,
                                                               const Tile& tile,
                                                               const GatherShape& shape,
                                                               const TensorGatherStrides& strides,
                                                               int64_t first_column) {
  using Feed = GatherFeed<T, kColumns>;
  const int64_t column = first_column + threadIdx.x / 8;
  const int64_t columns_left = min_of<int64_t>(shape.outer - column, kColumns);
  const int64_t row_taps = tile.columns.taps.count;
  const int64_t weight_step = tile.columns.taps.step * strides.weight.w;
  Feed feed{
      from.source,
      from.weight + tile.rows.taps.first * strides.weight.h +
          tile.columns.taps.first * strides.weight.w +
          (columns_left > 0 ? column : first_column) * strides.weight.outer,
      from.lanes,
      tile.tap_offset(0, 1, strides.source) - shape.inner,
      tile.tap_offset(1, 1 - row_taps, strides.source) - shape.inner,
      static_cast<int>(weight_step - shape.inner),
      static_cast<int>(tile.rows.taps.step * strides.weight.h + (1 - row_taps) * weight_step -
                       shape.inner),
      static_cast<int>(Feed::kRowsAtOnce * strides.weight.outer),
      static_cast<int>(ceil_div<int64_t>(max_of<int64_t>(columns_left, 0), Feed::kRowsAtOnce)),
      static_cast<int>(row_taps),
      0,
      static_cast<int>(shape.inner),
      0,
      0};
  feed.start(tile.live_taps() * shape.inner);
  return feed;
}

template <typename T>
struct alignas(2 * sizeof(T)) Pair {
  T values[2];
};
template <typename T>
struct alignas(kVectorBytes) Vector {
  T values[kVector<T>];
};

// The size of a rounded tile in shared memory.
template <typename T, int kColumns>
constexpr int kTileBytes = kTensorLanes * (kColumns + kVector<T>)*static_cast<int>(sizeof(T));

// Applies the epilogue to the sums and rounds them to a [kTensorLanes, kColumns] tile in shared
// memory. Its rows are one vector longer, so that eight lanes write to different banks. `channel`
// is the channel of column 0. `residual_lanes` are the lanes' offsets, kNowhere for lanes that do
// not exist.
template <typename T, int kColumns>
__device__ __forceinline__ void round_sums(const TensorSums<kColumns>& sums,
                                           const Epilogue<T>& epilogue, int64_t channel,
                                           const int64_t* residual_lanes, int columns, T* rounded) {
  using Place = TensorPlace<kColumns>;
  constexpr int kPitch = kColumns + kVector<T>;
  ATROUSX_UNROLL
  for (int i = 0; i < kLaneBlocks; ++i) ATROUSX_UNROLL
  for (int half = 0; half < 2; ++half) {
    const int lane = Place::lane(i) + half * 8;
    if (residual_lanes[lane] == kNowhere) continue;
    ATROUSX_UNROLL
    for (int j = 0; j < kColumns / 16; ++j) {
      Pair<T> pair{};
      ATROUSX_UNROLL
      for (int e = 0; e < 2; ++e) {
        const int column = Place::column(j) + e;
        if (column >= columns) continue;
        const int64_t k = channel + column;
        pair.values[e] = epilogue.finish(sums[i][j][2 * half + e], k,
                                         residual_lanes[lane] + k * epilogue.residual_strides.c);
      }
      *reinterpret_cast<Pair<T>*>(rounded + lane * kPitch + Place::column(j)) = pair;
    }
  }
}

// Writes the rounded tile: in whole vectors where channels are contiguous, otherwise pixel after
// pixel.
template <typename T, int kColumns>
__device__ __forceinline__ void store_rounded(const T* rounded, const int64_t* offsets, int columns,
                                              int64_t channel_stride, bool vectors,
                                              T* destination) {
  constexpr int kPitch = kColumns + kVector<T>;
  const int thread = static_cast<int>(threadIdx.x);
  if (vectors) {
    constexpr int kRowVectors = kColumns / kVector<T>;
    for (int i = thread; i < kTensorLanes * kRowVectors; i += kTensorThreads) {
      const int lane = i / kRowVectors, column = i % kRowVectors * kVector<T>;
      if (offsets[lane] == kNowhere || column >= columns) continue;
      *reinterpret_cast<Vector<T>*>(destination + offsets[lane] + column) =
          *reinterpret_cast<const Vector<T>*>(rounded + lane * kPitch + column);
    }
    return;
  }
  const bool by_channel = channel_stride == 1;
  for (int i = thread; i < kTensorLanes * kColumns; i += kTensorThreads) {
    const int lane = by_channel ? i / kColumns : i % kTensorLanes;
    const int column = by_channel ? i % kColumns : i / kTensorLanes;
    if (offsets[lane] == kNowhere || column >= columns) continue;
    destination[offsets[lane] + column * channel_stride] = rounded[lane * kPitch + column];
  }
}

// Whether outputs can be stored as whole vectors of channels.
template <typename T>
__device__ __forceinline__ bool stores_vectors(const T* destination, int64_t outer,
                                               const Strides4& strides) {
  const auto start = static_cast<int64_t>(reinterpret_cast<uintptr_t>(destination) / sizeof(T));
  return strides.c == 1 && (outer | strides.n | strides.h | strides.w | start) % kVector<T> == 0;
}

// Channels [first, first + count).
struct TileChannels {
  int64_t first;
  int count;
};

// Where the lanes of a tile are written, and where their residuals are read. `vectors`: in whole
// vectors of channels.
template <typename T>
struct TileDestination {
  T* data;
  const int64_t *lanes, *residual_lanes;
  int64_t channel_stride;
  bool vectors;
};

// The end of a job: writes the sums to some channels of the destination. It reuses the ring's
// memory. Synchronisation: two barriers.
template <typename T, int kColumns>
__device__ __forceinline__ void finish_tile(const TensorSums<kColumns>& sums,
                                            const Epilogue<T>& epilogue, TileChannels channels,
                                            const TileDestination<T>& to, unsigned char* memory) {
  T* rounded = reinterpret_cast<T*>(memory);
  round_sums<T, kColumns>(sums, epilogue, channels.first, to.residual_lanes, channels.count,
                          rounded);
  __syncthreads();  // the tile is complete
  store_rounded<T, kColumns>(rounded, to.lanes, channels.count, to.channel_stride, to.vectors,
                             to.data + channels.first * to.channel_stride);
  __syncthreads();  // all threads have stored; the next job overwrites lanes and tile
}

// The static shared memory of the kernel below: three lists of lanes.
constexpr int kGatherStaticBytes = 3 * kTensorLanes * static_cast<int>(sizeof(int64_t));

// Forward and grad-input. Who: a block owns one tile of the plan (up to kTensorLanes destination
// pixels with the same live taps) times kColumns destination channels of a group; blocks take such
// jobs in turn. Reads: for every live tap, the pixels' sources and the channels' weights, by
// asynchronous copies. Writes: its own destinations, once, through the ring's memory.
// Synchronisation: the barriers of multiply_stages and of finish_tile. The first barrier of
// multiply_stages also completes the lists of lanes.
template <typename T, int kColumns>
__global__ void __launch_bounds__(kTensorThreads, kTensorBlocks<kColumns>)
    atrous_conv2d_gather_tensorcore_kernel(
        const T* source,  // [N, source rows, columns, groups, inner]
        const T* weight,  // [groups, outer, KH, KW, inner]
        Epilogue<T> epilogue,
        T* destination,  // [N, groups * outer, rows, columns], any strides
        TapPlan plan, GatherShape shape, TensorGatherStrides strides) {
  static_assert(kTensorSharedBytes<kColumns> + kGatherStaticBytes <= kSharedLimit);
  static_assert(kTileBytes<T, kColumns> <= kTensorSharedBytes<kColumns>, "finish_tile reuses it");
  ATROUSX_DYNAMIC_SHARED(unsigned char, memory);
  ATROUSX_SHARED(int64_t, source_lanes, kTensorLanes);
  ATROUSX_SHARED(int64_t, destination_lanes, kTensorLanes);
  ATROUSX_SHARED(int64_t, residual_lanes, kTensorLanes);
  const int64_t blocks = ceil_div<int64_t>(shape.outer, kColumns);
  const int64_t jobs = plan.tiles() * shape.groups * blocks;
  const Strides4& to = strides.destination;
  const bool vectors = stores_vectors(destination, shape.outer, to);
  for (int64_t job = blockIdx.x; job < jobs; job += gridDim.x) {
    const int64_t first = job % blocks * kColumns, group = job / blocks % shape.groups;
    const Tile tile = plan.tile(job / blocks / shape.groups, shape.batch);
    {
      const bool inside = static_cast<int64_t>(threadIdx.x) < tile.pixels;
      const Tile::Pixel pixel = tile.pixel(inside ? threadIdx.x : 0);
      source_lanes[threadIdx.x] = inside ? tile.source_offset(pixel, strides.source) : kNowhere;
      destination_lanes[threadIdx.x] = inside ? tile.destination_offset(pixel, to) : kNowhere;
      residual_lanes[threadIdx.x] =
          inside ? tile.destination_offset(pixel, epilogue.residual_strides) : kNowhere;
    }
    auto feed = gather_feed<T, kColumns>({source + group * strides.source_group,
                                          weight + group * strides.weight.group, source_lanes},
                                         tile, shape, strides, first);
    const int stages =
        static_cast<int>(ceil_div<int64_t>(tile.live_taps() * shape.inner, kStageDepth<T>));
    TensorSums<kColumns> sums = {};
    multiply_stages<T, PanelOrder::kDepthFastest, kColumns>(feed, stages, memory, sums);
    finish_tile<T, kColumns>(sums, epilogue,
                             {group * shape.outer + first,
                              static_cast<int>(min_of<int64_t>(shape.outer - first, kColumns))},
                             {destination, destination_lanes, residual_lanes, to.c, vectors},
                             memory);
  }
}

}  // namespace atrousx
