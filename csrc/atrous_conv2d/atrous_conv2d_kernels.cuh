// Kernels of atrous convolution that serve everything: any dtype, strides, groups and layout. All
// passes are one product of tiles,
//   sums[lane][column] = sum over depth of a[a_depth[d] + a_lane[lane]] * b[b_depth[d] + b_column]
// whose operands are found by offset: nothing is copied out beforehand, and padding never appears.
// Groups too narrow for it have atrous_conv2d_direct_kernels.cuh.
#pragma once

#include "../device.cuh"
#include "plan.h"

namespace atrousx {

// A block of kProductThreads sums kTile x kTile products over depth, kPanelDepth at a time; a
// thread holds kThreadSums x kThreadSums of them, kThreadGrid apart.
constexpr int kTile = 64;
constexpr int kPanelDepth = 16;
constexpr int kThreadSums = 4;
constexpr int kThreadGrid = kTile / kThreadSums;
constexpr int kProductThreads = kThreadGrid * kThreadGrid;
// One more than a tile: threads that write along depth then meet different memory banks.
constexpr int kPanelPitch = kTile + 1;
// The offset of a lane, column or depth that does not exist: it counts as zeros.
constexpr int64_t kNowhere = INT64_MIN;

// One operand of the product: where it is and which way neighbouring threads should read it.
template <typename T>
struct Operand {
  const T* values;
  const int64_t* lane_offsets;   // [kTile], shared memory
  const int64_t* depth_offsets;  // [kPanelDepth], shared memory
  bool depth_is_contiguous;
};

// Copies an operand's next kPanelDepth x kTile values into shared memory, widened.
template <typename T, typename A>
__device__ __forceinline__ void load_panel(const Operand<T>& operand, A* panel) {
  for (int i = threadIdx.x; i < kPanelDepth * kTile; i += kProductThreads) {
    const int d = operand.depth_is_contiguous ? i % kPanelDepth : i / kTile;
    const int l = operand.depth_is_contiguous ? i / kPanelDepth : i % kTile;
    const int64_t depth = operand.depth_offsets[d], lane = operand.lane_offsets[l];
    panel[d * kPanelPitch + l] =
        depth == kNowhere || lane == kNowhere ? A(0) : static_cast<A>(operand.values[depth + lane]);
  }
}

// This thread's place in the tile; `lanes_first` lets neighbouring threads own neighbouring lanes.
struct ThreadPlace {
  int lane, column;

  __device__ __forceinline__ explicit ThreadPlace(bool lanes_first)
      : lane(lanes_first ? threadIdx.x % kThreadGrid : threadIdx.x / kThreadGrid),
        column(lanes_first ? threadIdx.x / kThreadGrid : threadIdx.x % kThreadGrid) {}
};

template <typename A>
__device__ __forceinline__ void multiply_panels(const A* lanes,    // [kPanelDepth, kPanelPitch]
                                                const A* columns,  // [kPanelDepth, kPanelPitch]
                                                const ThreadPlace& place,
                                                A (&sums)[kThreadSums][kThreadSums]) {
  for (int d = 0; d < kPanelDepth; ++d) {
    A a[kThreadSums], b[kThreadSums];
    for (int i = 0; i < kThreadSums; ++i) {
      a[i] = lanes[d * kPanelPitch + place.lane + i * kThreadGrid];
      b[i] = columns[d * kPanelPitch + place.column + i * kThreadGrid];
    }
    for (int i = 0; i < kThreadSums; ++i)
      for (int j = 0; j < kThreadSums; ++j) sums[i][j] += a[i] * b[j];
  }
}

// Forward and grad-input. Who: a block owns one tile of the plan (up to kTile destination pixels
// with the same live taps) times kTile destination channels of a group; blocks take such jobs in
// turn. Reads: for every live tap and source channel, the pixels' sources and the channels'
// weights, through shared memory. Writes: its own destinations, once. Synchronisation: two
// barriers per panel and two per job, each named below.
template <typename T>
__global__ void __launch_bounds__(kProductThreads, 2)
    atrous_conv2d_gather_kernel(const T* source,  // [N, groups * inner, source rows, columns]
                                const T* weight,  // any strides, see WeightStrides
                                Epilogue<T> epilogue,
                                T* destination,  // [N, groups * outer, rows, columns]
                                TapPlan plan, GatherShape shape, Strides4 source_strides,
                                WeightStrides weight_strides, Strides4 destination_strides) {
  using A = Accumulate<T>;
  ATROUSX_SHARED(A, lanes, kPanelDepth * kPanelPitch);
  ATROUSX_SHARED(A, columns, kPanelDepth * kPanelPitch);
  ATROUSX_SHARED(int64_t, source_lanes, kTile);
  ATROUSX_SHARED(int64_t, destination_lanes, kTile);
  ATROUSX_SHARED(int64_t, residual_lanes, kTile);
  ATROUSX_SHARED(int64_t, weight_columns, kTile);
  ATROUSX_SHARED(int64_t, source_depth, kPanelDepth);
  ATROUSX_SHARED(int64_t, weight_depth, kPanelDepth);
  const int thread = threadIdx.x;
  const ThreadPlace place(destination_strides.c != 1);
  const int64_t blocks = ceil_div<int64_t>(shape.outer, kTile);
  const int64_t jobs = plan.tiles() * shape.groups * blocks;
  for (int64_t job = blockIdx.x; job < jobs; job += gridDim.x) {
    const int64_t first = job % blocks * kTile, group = job / blocks % shape.groups;
    const Tile tile = plan.tile(job / blocks / shape.groups, shape.batch);
    if (thread < kTile) {
      const bool inside = thread < tile.pixels;
      const Tile::Pixel pixel = tile.pixel(inside ? thread : 0);
      source_lanes[thread] = inside ? tile.source_offset(pixel, source_strides) : kNowhere;
      destination_lanes[thread] =
          inside ? tile.destination_offset(pixel, destination_strides) : kNowhere;
      residual_lanes[thread] = tile.destination_offset(pixel, epilogue.residual_strides);
      weight_columns[thread] =
          first + thread < shape.outer ? (first + thread) * weight_strides.outer : kNowhere;
    }
    __syncthreads();  // lanes and columns of the job are known, to its end
    const Operand<T> from{source + group * shape.inner * source_strides.c, source_lanes,
                          source_depth, source_strides.c == 1};
    const Operand<T> by{weight + group * weight_strides.group, weight_columns, weight_depth,
                        weight_strides.inner < weight_strides.outer};
    A sums[kThreadSums][kThreadSums] = {};
    const int64_t depth = tile.live_taps() * shape.inner;
    for (int64_t start = 0; start < depth; start += kPanelDepth) {
      if (thread < kPanelDepth) {
        const int64_t d = start + thread, channel = d % shape.inner, live = d / shape.inner;
        const int64_t i = live / tile.columns.taps.count, j = live % tile.columns.taps.count;
        source_depth[thread] =
            d < depth ? tile.tap_offset(i, j, source_strides) + channel * source_strides.c
                      : kNowhere;
        weight_depth[thread] = d < depth ? tile.rows.taps.at(i) * weight_strides.h +
                                               tile.columns.taps.at(j) * weight_strides.w +
                                               channel * weight_strides.inner
                                         : kNowhere;
      }
      __syncthreads();  // the panel's depth is known; the previous panels have been multiplied
      load_panel(from, lanes);
      load_panel(by, columns);
      __syncthreads();  // both panels are complete; the depth may be overwritten
      multiply_panels(lanes, columns, place, sums);
    }
    for (int i = 0; i < kThreadSums; ++i)
      for (int j = 0; j < kThreadSums; ++j) {
        const int lane = place.lane + i * kThreadGrid;
        const int64_t pixel = destination_lanes[lane];
        const int64_t channel = first + place.column + j * kThreadGrid;
        if (pixel == kNowhere || channel >= shape.outer) continue;
        const int64_t k = group * shape.outer + channel;
        const int64_t residual = residual_lanes[lane] + k * epilogue.residual_strides.c;
        destination[pixel + k * destination_strides.c] = epilogue.finish(sums[i][j], k, residual);
      }
    __syncthreads();  // everyone has stored; the next job overwrites lanes and columns
  }
}

// Grad-weight, in parts. Who: a block owns, for one tap and one part of its live pixels, kTile
// input channels times kTile output channels of a group. Reads: those channels of input and
// grad_output at these pixels, through shared memory. Writes: its own elements of `parts`.
// Synchronisation: two barriers per panel and two per job. Fixed parts, summed in order by the
// next kernel, are what makes the result deterministic.
template <typename T>
__global__ void __launch_bounds__(kProductThreads, 2)
    atrous_conv2d_grad_weight_kernel(const T* grad_output,  // [N, K, OH, OW]
                                     const T* input,        // [N, C, H, W]
                                     Accumulate<T>* parts,  // [splits, taps, K, C / groups]
                                     int64_t splits, GatherShape shape,
                                     Strides4 grad_output_strides, Strides4 input_strides) {
  using A = Accumulate<T>;
  ATROUSX_SHARED(A, lanes, kPanelDepth * kPanelPitch);
  ATROUSX_SHARED(A, columns, kPanelDepth * kPanelPitch);
  ATROUSX_SHARED(int64_t, input_lanes, kTile);
  ATROUSX_SHARED(int64_t, grad_columns, kTile);
  ATROUSX_SHARED(int64_t, input_depth, kPanelDepth);
  ATROUSX_SHARED(int64_t, grad_depth, kPanelDepth);
  const int thread = threadIdx.x;
  const ThreadPlace place(true);
  const int64_t channel_tiles = ceil_div<int64_t>(shape.inner, kTile);
  const int64_t output_tiles = ceil_div<int64_t>(shape.outer, kTile);
  const int64_t taps = shape.rows.taps * shape.columns.taps;
  const int64_t jobs = splits * shape.groups * taps * output_tiles * channel_tiles;
  for (int64_t job = blockIdx.x; job < jobs; job += gridDim.x) {
    const int64_t first_channel = job % channel_tiles * kTile;
    const int64_t first_output = job / channel_tiles % output_tiles * kTile;
    const int64_t rest = job / channel_tiles / output_tiles;
    const int64_t tap = rest % taps, group = rest / taps % shape.groups;
    const int64_t split = rest / taps / shape.groups;
    const TapSpan rows = shape.rows.span(tap / shape.columns.taps);
    const TapSpan across = shape.columns.span(tap % shape.columns.taps);
    const int64_t pixels = shape.batch * rows.destinations.count * across.destinations.count;
    const int64_t part = ceil_div(pixels, splits);
    const int64_t end = min_of(pixels, (split + 1) * part);
    if (thread < kTile) {
      const int64_t channel = first_channel + thread, output = first_output + thread;
      input_lanes[thread] =
          channel < shape.inner ? (group * shape.inner + channel) * input_strides.c : kNowhere;
      grad_columns[thread] =
          output < shape.outer ? (group * shape.outer + output) * grad_output_strides.c : kNowhere;
    }
    __syncthreads();  // lanes and columns of the job are known, to its end
    const Operand<T> from{input, input_lanes, input_depth, input_strides.c != 1};
    const Operand<T> by{grad_output, grad_columns, grad_depth, grad_output_strides.c != 1};
    A sums[kThreadSums][kThreadSums] = {};
    for (int64_t start = split * part; start < end; start += kPanelDepth) {
      if (thread < kPanelDepth) {
        const int64_t p = start + thread;
        const int64_t column = p % across.destinations.count, line = p / across.destinations.count;
        const int64_t row = line % rows.destinations.count, n = line / rows.destinations.count;
        input_depth[thread] =
            p < end ? input_strides.offset(n, 0, rows.source_first + row * rows.source_step,
                                           across.source_first + column * across.source_step)
                    : kNowhere;
        grad_depth[thread] = p < end ? grad_output_strides.offset(n, 0, rows.destinations.at(row),
                                                                  across.destinations.at(column))
                                     : kNowhere;
      }
      __syncthreads();  // the panel's pixels are known; the previous panels have been multiplied
      load_panel(from, lanes);
      load_panel(by, columns);
      __syncthreads();  // both panels are complete; the pixels may be overwritten
      multiply_panels(lanes, columns, place, sums);
    }
    A* to = parts + (split * taps + tap) * shape.groups * shape.outer * shape.inner;
    for (int i = 0; i < kThreadSums; ++i)
      for (int j = 0; j < kThreadSums; ++j) {
        const int64_t channel = first_channel + place.lane + i * kThreadGrid;
        const int64_t output = first_output + place.column + j * kThreadGrid;
        if (channel < shape.inner && output < shape.outer)
          to[(group * shape.outer + output) * shape.inner + channel] = sums[i][j];
      }
    __syncthreads();  // everyone has left the panels; the next job overwrites lanes and columns
  }
}

// Who: one thread owns the weights of an output and an input channel, in a grid-stride loop. Reads:
// their parts, in order. Writes: its elements of grad_weight, one for each tap, which lie side by
// side in a contiguous weight; in a channels_last one, those of neighbouring threads do.
// Synchronisation: none.
template <typename T>
__global__ void atrous_conv2d_sum_parts_kernel(
    const Accumulate<T>* parts,  // [splits, taps, K, C / groups]
    T* grad_weight,              // [K, C / groups, KH, KW]
    int64_t splits, GatherShape shape, Strides4 strides) {
  const int64_t pairs = shape.groups * shape.outer * shape.inner;
  const int64_t weights = shape.rows.taps * shape.columns.taps * pairs;
  for (int64_t i = global_thread(); i < pairs; i += global_threads()) {
    T* to = grad_weight + strides.offset(i / shape.inner, i % shape.inner, 0, 0);
    const Accumulate<T>* from = parts + i;
    for (int64_t kh = 0; kh < shape.rows.taps; ++kh)
      for (int64_t kw = 0; kw < shape.columns.taps; ++kw, from += pairs) {
        Accumulate<T> sum(0);
        for (int64_t s = 0; s < splits; ++s) sum += from[s * weights];
        to[kh * strides.h + kw * strides.w] = static_cast<T>(sum);
      }
  }
}

}  // namespace atrousx
