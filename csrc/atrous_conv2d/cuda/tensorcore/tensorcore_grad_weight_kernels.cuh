// Grad-weight on tensor cores (compute capability 8.0): float16, bfloat16, and float32 rounded to
// TF32. Maps are read in channels_last order, in whole 16-byte vectors. Only live pixels are
// multiplied. Sums are float32.
#pragma once

#include "atrous_conv2d/cuda/grad_weight/grad_weight_parts.h"
#include "atrous_conv2d/cuda/tensorcore/tensorcore_product.cuh"

namespace atrousx {

// Element strides of the maps of a grad-weight and of their groups. Channels are contiguous.
struct TensorGradWeightStrides {
  using HoldsNoAddress = void;
  Strides4 grad_output, input;
  int64_t grad_output_group, input_group;
};

// The pixels of a part, numbered across the batch. A step of kStageDepth pixels is stored in
// images, rows and columns: adding it with carries avoids a division per pixel.
struct PixelWalk {
  Tile tile;
  int image_step, row_step, column_step;
};

template <typename T>
__device__ __forceinline__ PixelWalk pixel_walk(const Tile& tile) {
  PixelWalk walk{tile, 0, 0, 0};
  const int64_t rows = tile.rows.destinations.count, columns = tile.columns.destinations.count;
  if (rows * columns == 0) return walk;
  walk.column_step = static_cast<int>(kStageDepth<T> % columns);
  walk.row_step = static_cast<int>(kStageDepth<T> / columns % rows);
  walk.image_step = static_cast<int>(kStageDepth<T> / columns / rows);
  return walk;
}

// Copies the panels of a grad-weight, stage by stage: kStageDepth pixels, each with its channels of
// grad_output (the lanes) and of input (the columns). Values that all threads share are in shared
// memory, because the sums need the registers.
template <typename T>
struct GradWeightFeed {
  static constexpr int kRowVectors = kTensorLanes / kVector<T>;
  static constexpr int kRowsAtOnce = kTensorThreads / kRowVectors;
  static constexpr int kPanelBytes = kTensorLanes * kStageDepthBytes;

  const T* operands[2];   // grad_output and input, at this thread's channels
  bool inside[2];         // whether those exist
  const PixelWalk* walk;  // shared memory
  const TensorGradWeightStrides& strides;
  int64_t* offsets;      // [kOffsetStages][2][kStageDepth], shared memory: pixels, or kNowhere
  int n, row, column;    // of threads below kStageDepth: the pixel of the next offsets
  int64_t left;          // pixels from there to the end of the part
  int prepared, loaded;  // the next places of the ring of offsets

  __device__ __forceinline__ void start(int64_t depth) {
    left = depth - threadIdx.x;
    if (left <= 0) return;
    const Tile::Pixel pixel = walk->tile.pixel(threadIdx.x);
    column = static_cast<int>(pixel.column);
    row = static_cast<int>(pixel.row);
    n = static_cast<int>(pixel.n);
  }

  __device__ __forceinline__ void prepare() {
    if (threadIdx.x < kStageDepth<T>) {
      int64_t* to = offsets + prepared * 2 * kStageDepth<T> + threadIdx.x;
      to[0] = kNowhere;
      to[kStageDepth<T>] = kNowhere;
      if (left > 0) {
        const Tile::Pixel pixel{n, row, column};
        to[0] = walk->tile.destination_offset(pixel, strides.grad_output);
        to[kStageDepth<T>] = walk->tile.source_offset(pixel, strides.input);
      }
      advance();
    }
    prepared = prepared + 1 == kOffsetStages ? 0 : prepared + 1;
  }

  __device__ __forceinline__ void advance() {
    left -= kStageDepth<T>;
    if (left <= 0) return;
    const int columns = static_cast<int>(walk->tile.columns.destinations.count);
    const int rows = static_cast<int>(walk->tile.rows.destinations.count);
    column += walk->column_step;
    if (column >= columns) column -= columns, ++row;
    row += walk->row_step;
    if (row >= rows) row -= rows, ++n;
    n += walk->image_step;
  }

  __device__ __forceinline__ void load(unsigned char* stage) {
    const int row = static_cast<int>(threadIdx.x) / kRowVectors;
    const int vector = static_cast<int>(threadIdx.x) % kRowVectors;
    const int64_t* from = offsets + loaded * 2 * kStageDepth<T>;
    ATROUSX_UNROLL
    for (int operand = 0; operand < 2; ++operand) ATROUSX_UNROLL
    for (int i = 0; i < kStageDepth<T> / kRowsAtOnce; ++i) {
      const int depth = row + i * kRowsAtOnce;
      const int64_t offset = from[operand * kStageDepth<T> + depth];
      const bool present = inside[operand] && offset != kNowhere;
      const int turned = vector ^ row_turn<T, PanelOrder::kLanesFastest>(depth);
      async_copy_16(stage + operand * kPanelBytes + (depth * kRowVectors + turned) * kVectorBytes,
                    present ? operands[operand] + offset : operands[operand], present);
    }
    loaded = loaded + 1 == kOffsetStages ? 0 : loaded + 1;
  }
};

// Writes a job's sums to its part, and zeros for taps that are dead at its pixels.
__device__ __forceinline__ void store_part(const TensorSums<kTensorLanes>& sums,
                                           const GradWeightParts& cut, const GradWeightJob& job,
                                           const Tile& tile, const GatherShape& shape,
                                           float* parts) {
  using Place = TensorPlace<kTensorLanes>;
  ATROUSX_UNROLL
  for (int j = 0; j < kTensorLanes / 16; ++j) {
    // Rows are padded to whole vectors, so two neighbours belong to one tap.
    const GradWeightRow row = cut.row(job, Place::column(j), tile, shape);
    if (!row.exists) continue;
    ATROUSX_UNROLL
    for (int i = 0; i < kLaneBlocks; ++i) ATROUSX_UNROLL
    for (int half = 0; half < 2; ++half) {
      const int64_t output = job.first_output + Place::lane(i) + half * 8;
      if (output >= shape.outer) continue;
      float* to = parts + cut.element(job, row, output, shape);
      ATROUSX_UNROLL
      for (int e = 0; e < 2; ++e)
        if (row.channel + e < shape.inner) to[e] = row.live ? sums[i][j][2 * half + e] : 0.0f;
    }
  }
}

// The static shared memory of the kernel below: the ring of offsets and the walk.
template <typename T>
constexpr int kGradWeightStaticBytes =
    static_cast<int>(kOffsetStages * 2 * kStageDepth<T> * sizeof(int64_t) + sizeof(PixelWalk));

// Grad-weight, in parts. Who: a block owns, for one part of the pixels, kTensorLanes output
// channels of a group times as many weights of each (neighbouring channels of one tap, or of
// several taps). Reads: grad_output and input at these pixels, by asynchronous copies; zeros for
// taps that are dead there. Writes: its own elements of `parts`. Synchronisation: the barriers of
// multiply_stages, and two per job. atrous_conv2d_sum_parts_kernel sums the parts in order, so the
// result is deterministic.
template <typename T>
__global__ void __launch_bounds__(kTensorThreads, 2)
    atrous_conv2d_grad_weight_tensorcore_kernel(const T* grad_output,  // [N, OH, OW, groups, outer]
                                                const T* input,        // [N, H, W, groups, inner]
                                                float* parts,  // [parts, taps, K, C / groups]
                                                GradWeightParts cut, GatherShape shape,
                                                TensorGradWeightStrides strides) {
  static_assert(kTensorSharedBytes<kTensorLanes> + kGradWeightStaticBytes<T> <= kSharedLimit);
  ATROUSX_DYNAMIC_SHARED(unsigned char, memory);
  ATROUSX_SHARED(int64_t, offsets, kOffsetStages * 2 * kStageDepth<T>);
  ATROUSX_SHARED(PixelWalk, walk, 1);
  const int64_t jobs = cut.jobs(shape);
  const int vector = static_cast<int>(threadIdx.x) % GradWeightFeed<T>::kRowVectors * kVector<T>;
  for (int64_t number = blockIdx.x; number < jobs; number += gridDim.x) {
    const GradWeightJob job = cut.job(number, shape);
    if (threadIdx.x == 0) *walk = pixel_walk<T>(cut.tile(job, shape));
    __syncthreads();  // the walk is known; it stays valid for the job
    const Tile& tile = walk->tile;
    const int64_t output = job.first_output + vector;
    const GradWeightRow row = cut.row(job, vector, tile, shape);
    const bool inside[2] = {output < shape.outer, row.live};
    GradWeightFeed<T> feed{
        {grad_output + job.group * strides.grad_output_group + (inside[0] ? output : 0),
         input + job.group * strides.input_group +
             (inside[1] ? row.offset(tile, strides.input) : 0)},
        {inside[0], inside[1]},
        walk,
        strides,
        offsets,
        0,
        0,
        0,
        0,
        0,
        0};
    const int64_t pixels = tile.live_taps() > 0 ? tile.pixels : 0;
    feed.start(pixels);
    TensorSums<kTensorLanes> sums = {};
    multiply_stages<T, PanelOrder::kLanesFastest, kTensorLanes>(
        feed, static_cast<int>(ceil_div<int64_t>(pixels, kStageDepth<T>)), memory, sums);
    store_part(sums, cut, job, tile, shape, parts);
    __syncthreads();  // all threads have stored; the next job overwrites the walk
  }
}

}  // namespace atrousx
