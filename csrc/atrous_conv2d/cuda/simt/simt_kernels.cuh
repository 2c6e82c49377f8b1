// General kernels of atrous convolution, for any dtype, strides, groups and layout. All passes are
// one product of tiles (simt_product.cuh) whose operands are found by offset. No map is copied
// first, and padding is never read. For groups that are too narrow see direct/direct_kernels.cuh.
#pragma once

#include "atrous_conv2d/cuda/grad_weight/grad_weight_parts.h"
#include "atrous_conv2d/cuda/simt/simt_product.cuh"

namespace atrousx {

// Forward and grad-input. Who: a block owns one tile of the plan (up to kProductLanes destination
// pixels with the same live taps) times kColumns destination channels of a group; blocks take such
// jobs in turn. Reads: for every live tap and source channel, the pixels' sources and the channels'
// weights. Writes: its own destinations, once. Synchronisation: one barrier, then those of
// multiply_panels and for_each_sum. After the last one the next job may begin.
template <typename T, int kColumns>
__global__ void __launch_bounds__(kProductThreads, kProductBlocks)
    atrous_conv2d_gather_kernel(const T* source,  // [N, groups * inner, source rows, columns]
                                const T* weight,  // [groups, outer, KH, KW, inner] in some order
                                Epilogue<T> epilogue,
                                T* destination,  // [N, groups * outer, rows, columns]
                                TapPlan plan, GatherShape shape, Strides4 source_strides,
                                WeightStrides weight_strides, Strides4 destination_strides) {
  using A = Accumulate<T>;
  ATROUSX_SHARED(Quad<A>, panels, 2 * kPanelQuads<kColumns>);
  ATROUSX_SHARED(Tile, tile, 1);
  ATROUSX_SHARED(int64_t, source_lanes, kProductLanes);
  ATROUSX_SHARED(int64_t, destination_lanes, kProductLanes);
  ATROUSX_SHARED(int64_t, residual_lanes, kProductLanes);
  ATROUSX_SHARED(int64_t, weight_columns, kColumns);
  ATROUSX_SHARED(int64_t, source_depth, kTableDepth);
  ATROUSX_SHARED(int64_t, weight_depth, kTableDepth);
  const int thread = static_cast<int>(threadIdx.x);
  const bool lanes_first = destination_strides.c != 1;
  const ThreadPlace place(lanes_first);
  const int64_t blocks = ceil_div<int64_t>(shape.outer, kColumns);
  const int64_t jobs = plan.tiles() * shape.groups * blocks;
  for (int64_t job = blockIdx.x; job < jobs; job += gridDim.x) {
    const int64_t first = job % blocks * kColumns, group = job / blocks % shape.groups;
    if (thread == 0) *tile = plan.tile(job / blocks / shape.groups, shape.batch);
    __syncthreads();  // the tile is known; it stays valid for the job
    const Tile::Pixel pixel = tile->pixel(min_of<int64_t>(thread, tile->pixels - 1));
    source_lanes[place_of<kLaneThreads>(thread)] = tile->source_offset(pixel, source_strides);
    destination_lanes[thread] = tile->destination_offset(pixel, destination_strides);
    residual_lanes[thread] = tile->destination_offset(pixel, epilogue.residual_strides);
    if (thread < kColumns)
      weight_columns[place_of<kColumnThreads>(thread)] =
          min_of<int64_t>(first + thread, shape.outer - 1) * weight_strides.outer;
    const int64_t depth = tile->live_taps() * shape.inner;
    const auto find_offsets = [&](int64_t d) {
      const int64_t last = min_of(d, depth - 1);
      const int64_t channel = last % shape.inner, live = last / shape.inner;
      const int64_t i = live / tile->columns.taps.count, j = live % tile->columns.taps.count;
      source_depth[thread] = tile->tap_offset(i, j, source_strides) + channel * source_strides.c;
      weight_depth[thread] = tile->rows.taps.at(i) * weight_strides.h +
                             tile->columns.taps.at(j) * weight_strides.w +
                             channel * weight_strides.inner;
    };
    ProductSums<A, kColumns> sums = {};
    multiply_panels<T, kColumns>({{source + group * shape.inner * source_strides.c, source_lanes,
                                   source_depth, source_strides.c == 1},
                                  {weight + group * weight_strides.group, weight_columns,
                                   weight_depth, weight_strides.inner < weight_strides.outer}},
                                 depth, find_offsets, place, panels, sums);
    const int64_t pixels = tile->pixels;
    for_each_sum<A, kColumns>(
        sums, place, lanes_first, panels, [&](int lane, int column, const A& sum) {
          if (lane >= pixels || first + column >= shape.outer) return;
          const int64_t k = group * shape.outer + first + column;
          destination[destination_lanes[lane] + k * destination_strides.c] =
              epilogue.finish(sum, k, residual_lanes[lane] + k * epilogue.residual_strides.c);
        });
  }
}

// Grad-weight, in parts. Who: a block owns, for one part of the pixels, kProductLanes of the
// weights of an output (neighbouring channels of one tap, or of all taps) times kColumns outputs of
// a group. Reads: input and grad_output at these pixels. Writes: its own elements of `parts`. Taps
// that are dead at the part's pixels get zeros; their products are discarded. Synchronisation: as
// above. The parts are fixed and atrous_conv2d_sum_parts_kernel sums them in order, so the result
// is deterministic.
template <typename T, int kColumns>
__global__ void __launch_bounds__(kProductThreads, kProductBlocks)
    atrous_conv2d_grad_weight_kernel(const T* grad_output,  // [N, K, OH, OW]
                                     const T* input,        // [N, C, H, W]
                                     Accumulate<T>* parts,  // [parts, taps, K, C / groups]
                                     GradWeightParts cut, GatherShape shape,
                                     Strides4 grad_output_strides, Strides4 input_strides) {
  using A = Accumulate<T>;
  ATROUSX_SHARED(Quad<A>, panels, 2 * kPanelQuads<kColumns>);
  ATROUSX_SHARED(Tile, tile, 1);
  ATROUSX_SHARED(int64_t, input_lanes, kProductLanes);
  ATROUSX_SHARED(int64_t, grad_columns, kColumns);
  ATROUSX_SHARED(int64_t, input_depth, kTableDepth);
  ATROUSX_SHARED(int64_t, grad_depth, kTableDepth);
  const int thread = static_cast<int>(threadIdx.x);
  const ThreadPlace place(true);
  const int64_t jobs = cut.jobs(shape);
  for (int64_t job = blockIdx.x; job < jobs; job += gridDim.x) {
    const GradWeightJob at = cut.job(job, shape);
    if (thread == 0) *tile = cut.tile(at, shape);
    __syncthreads();  // the tile is known; it stays valid for the job
    const GradWeightRow own = cut.row(at, thread, *tile, shape);
    input_lanes[place_of<kLaneThreads>(thread)] = own.live ? own.offset(*tile, input_strides) : 0;
    if (thread < kColumns)
      grad_columns[place_of<kColumnThreads>(thread)] =
          min_of<int64_t>(at.first_output + thread, shape.outer - 1) * grad_output_strides.c;
    const auto find_offsets = [&](int64_t d) {
      const Tile::Pixel pixel = tile->pixel(min_of(d, tile->pixels - 1));
      input_depth[thread] = tile->source_offset(pixel, input_strides);
      grad_depth[thread] = tile->destination_offset(pixel, grad_output_strides);
    };
    ProductSums<A, kColumns> sums = {};
    multiply_panels<T, kColumns>({{input + at.group * shape.inner * input_strides.c, input_lanes,
                                   input_depth, input_strides.c != 1},
                                  {grad_output + at.group * shape.outer * grad_output_strides.c,
                                   grad_columns, grad_depth, grad_output_strides.c != 1}},
                                 tile->live_taps() > 0 ? tile->pixels : 0, find_offsets, place,
                                 panels, sums);
    for_each_sum<A, kColumns>(
        sums, place, true, panels, [&](int /*lane*/, int column, const A& sum) {
          const int64_t output = at.first_output + column;
          if (own.exists && output < shape.outer)
            parts[cut.element(at, own, output, shape)] = own.live ? sum : A(0);
        });
  }
}

}  // namespace atrousx
