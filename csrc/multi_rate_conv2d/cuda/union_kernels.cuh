// Summed branches on tensor cores: one convolution over the union of their taps. It sums in
// registers and rounds once. Separate passes for the branches would round the sum once per pass.
#pragma once

#include "atrous_conv2d/cuda/tensorcore/tensorcore_kernels.cuh"
#include "multi_rate_conv2d/cuda/union_plan.h"

namespace atrousx {

// The addresses of the passes' weights, each from the pass's first tap on: [outer, taps, inner] in
// whole vectors.
template <typename T>
struct UnionWeights {
  struct Pass {
    const T* values;
    int64_t outer, h, w;
  };
  Pass passes[UnionPlan::kMaxPasses];
};

// The work of one pass in a tile.
template <typename T>
struct UnionSegment {
  const T* weight;                       // of its first live tap
  int64_t outer;                         // from one column's weights to the next's
  int64_t source;                        // from a pixel to the source of its first live tap
  int64_t source_step, source_row_step;  // steps of sources, as in GatherFeed
  int weight_step, weight_row_step;
  int taps_in_row, taps;
};

template <typename T>
__device__ __forceinline__ UnionSegment<T> union_segment(
    const UnionPlan& plan, const typename UnionWeights<T>::Pass& weight, int pass,
    const UnionTile& tile, const Strides4& strides, int64_t inner) {
  const UnionTaps &rows = plan.rows[pass], &columns = plan.columns[pass];
  int first_row = 0, row_count = 0, first_column = 0, column_count = 0;
  rows.live(tile.row, plan.height, first_row, row_count);
  columns.live(tile.column, plan.width, first_column, column_count);
  const int64_t source_step = columns.step * strides.w;
  return {weight.values + first_row * weight.h + first_column * weight.w,
          weight.outer,
          (rows.offset + int64_t{first_row} * rows.step) * strides.h +
              (columns.offset + int64_t{first_column} * columns.step) * strides.w,
          source_step - inner,
          rows.step * strides.h - (column_count - 1) * source_step - inner,
          static_cast<int>(weight.w - inner),
          static_cast<int>(weight.h - (column_count - 1) * weight.w - inner),
          column_count,
          row_count * column_count};
}

// The stages of a pass. Every pass starts a new stage.
template <typename T>
__device__ __forceinline__ int union_stages(const UnionSegment<T>& segment, int64_t inner) {
  return static_cast<int>(ceil_div<int64_t>(segment.taps * inner, kStageDepth<T>));
}

// Copies the panels of all passes, one after the other. See GatherFeed.
template <typename T, int kColumns>
struct UnionFeed {
  using Feed = GatherFeed<T, kColumns>;

  Feed feed;
  const T* source;
  const UnionSegment<T>* segments;  // [passes], shared memory
  int segment;                      // the next pass
  int stages_left;                  // of the current pass
  int column;                       // this thread's first

  __device__ __forceinline__ void prepare() {}

  __device__ __forceinline__ void load(unsigned char* stage) {
    if (stages_left == 0) open();
    feed.load(stage);
    --stages_left;
  }

  // A pass with live taps is left, because load() is called once per counted stage.
  __device__ __forceinline__ void open() {
    while (segments[segment].taps == 0) ++segment;
    const UnionSegment<T>& s = segments[segment++];
    feed.source = source + s.source;
    feed.weight = s.weight + column * s.outer;
    feed.source_step = s.source_step;
    feed.source_row_step = s.source_row_step;
    feed.weight_step = s.weight_step;
    feed.weight_row_step = s.weight_row_step;
    feed.column_stride = static_cast<int>(Feed::kRowsAtOnce * s.outer);
    feed.taps_in_row = s.taps_in_row;
    feed.start(int64_t{s.taps} * feed.channels);
    stages_left = union_stages<T>(s, feed.channels);
  }
};

// The static shared memory of the kernel below: three lists of lanes, and the segments.
template <typename T>
constexpr int kUnionStaticBytes = static_cast<int>(3 * kTensorLanes * sizeof(int64_t)) +
                                  UnionPlan::kMaxPasses * static_cast<int>(sizeof(UnionSegment<T>));

// Sum of branches. Who: a block owns one tile of the plan (up to kTensorLanes pixels at which all
// passes have the same live taps) times kColumns outputs; blocks take such jobs in turn. Reads: for
// every live tap of every pass, the pixels' sources and the outputs' weights, by asynchronous
// copies. Writes: its own destinations, once. Synchronisation: one barrier for the segments, then
// those of multiply_stages and finish_tile.
template <typename T, int kColumns>
__global__ void __launch_bounds__(kTensorThreads, 2)
    multi_rate_sum_tensorcore_kernel(const T* source,  // [N, H, W, inner]
                                     UnionWeights<T> weights, Epilogue<T> epilogue,
                                     T* destination,  // [N, outer, H, W], any strides
                                     UnionPlan plan, int64_t batch, int64_t outer, int64_t inner,
                                     Strides4 source_strides, Strides4 destination_strides) {
  static_assert(kTensorSharedBytes<kColumns> + kUnionStaticBytes<T> <= kSharedLimit);
  static_assert(kTileBytes<T, kColumns> <= kTensorSharedBytes<kColumns>, "finish_tile reuses it");
  ATROUSX_DYNAMIC_SHARED(unsigned char, memory);
  ATROUSX_SHARED(int64_t, source_lanes, kTensorLanes);
  ATROUSX_SHARED(int64_t, destination_lanes, kTensorLanes);
  ATROUSX_SHARED(int64_t, residual_lanes, kTensorLanes);
  ATROUSX_SHARED(UnionSegment<T>, segments, UnionPlan::kMaxPasses);
  const int64_t blocks = ceil_div<int64_t>(outer, kColumns);
  const bool vectors = stores_vectors(destination, outer, destination_strides);
  const int thread = static_cast<int>(threadIdx.x);
  for (int64_t job = blockIdx.x; job < plan.tiles() * blocks; job += gridDim.x) {
    const int64_t first = job % blocks * kColumns;
    const UnionTile tile = union_tile(plan, static_cast<int>(job / blocks), batch);
    {
      const bool inside = thread < tile.pixels;
      const UnionTile::Pixel p = tile.pixel(inside ? thread : 0);
      const auto offset = [&](const Strides4& strides) {
        return inside ? strides.offset(p.n, 0, p.row, p.column) : kNowhere;
      };
      source_lanes[thread] = offset(source_strides);
      destination_lanes[thread] = offset(destination_strides);
      residual_lanes[thread] = offset(epilogue.residual_strides);
    }
    if (thread < plan.passes)
      segments[thread] =
          union_segment<T>(plan, weights.passes[thread], thread, tile, source_strides, inner);
    __syncthreads();  // segments and lanes are known; they stay valid for the job
    int stages = 0;
    for (int pass = 0; pass < plan.passes; ++pass) stages += union_stages(segments[pass], inner);
    const int own = static_cast<int>(first) + thread / 8;
    const int left = static_cast<int>(min_of<int64_t>(outer - own, kColumns));
    UnionFeed<T, kColumns> feed{};
    feed.feed.offsets = source_lanes;
    feed.feed.columns = ceil_div(max_of(left, 0), GatherFeed<T, kColumns>::kRowsAtOnce);
    feed.feed.channels = static_cast<int>(inner);
    feed.source = source;
    feed.segments = segments;
    feed.column = left > 0 ? own : static_cast<int>(first);
    TensorSums<kColumns> sums = {};
    multiply_stages<T, PanelOrder::kDepthFastest, kColumns>(feed, stages, memory, sums);
    finish_tile<T, kColumns>(
        sums, epilogue, {first, static_cast<int>(min_of<int64_t>(outer - first, kColumns))},
        {destination, destination_lanes, residual_lanes, destination_strides.c, vectors}, memory);
  }
}

}  // namespace atrousx
