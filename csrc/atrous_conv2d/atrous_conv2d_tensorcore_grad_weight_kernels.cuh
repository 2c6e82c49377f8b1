// Grad-weight on tensor cores (compute capability 8.0): float16, bfloat16, and float32 rounded to
// TF32, from maps in channels_last order read in whole 16-byte vectors. Only live pixels are
// multiplied; sums are float32.
#pragma once

#include "atrous_conv2d_kernels.cuh"
#include "tensorcore_product.cuh"

namespace atrousx {

// Element strides of the maps of a grad-weight and of their groups; channels lie side by side.
struct TensorGradWeightStrides {
  using HoldsNoAddress = void;
  Strides4 grad_output, input;
  int64_t grad_output_group, input_group;
};

// Where a tap is live, and a step of kStageDepth pixels through that rectangle, drawn across the
// batch, in its own units: added with carries, it spares a division per pixel.
struct TapWalk {
  TapSpan rows, columns;
  int image_step, row_step, column_step;
};

template <typename T>
__device__ __forceinline__ TapWalk tap_walk(const GatherShape& shape, int64_t tap) {
  TapWalk walk{shape.rows.span(tap / shape.columns.taps),
               shape.columns.span(tap % shape.columns.taps), 0, 0, 0};
  const int64_t rows = walk.rows.destinations.count, columns = walk.columns.destinations.count;
  if (rows * columns == 0) return walk;
  walk.column_step = static_cast<int>(kStageDepth<T> % columns);
  walk.row_step = static_cast<int>(kStageDepth<T> / columns % rows);
  walk.image_step = static_cast<int>(kStageDepth<T> / columns / rows);
  return walk;
}

// Copies the panels of a grad-weight, stage by stage: kStageDepth pixels, each with its channels of
// grad_output (the lanes) and of input (the columns). What all threads share lies in shared memory:
// the sums need the registers.
template <typename T>
struct GradWeightFeed {
  static constexpr int kRowVectors = kTensorLanes / kVector<T>;
  static constexpr int kRowsAtOnce = kTensorThreads / kRowVectors;
  static constexpr int kPanelBytes = kTensorLanes * kStageDepthBytes;

  const T* operands[2];  // grad_output and input, at this thread's channels
  bool inside[2];        // whether those exist
  const TapWalk* walk;   // shared memory
  const TensorGradWeightStrides& strides;
  int64_t* offsets;      // [kOffsetStages][2][kStageDepth], shared memory: pixels, or kNowhere
  int n, row, column;    // of threads below kStageDepth: the pixel whose offsets are next
  int64_t left;          // pixels from there to the end of the part
  int prepared, loaded;  // the next places of the ring of offsets

  __device__ __forceinline__ void start(int64_t pixel, int64_t end) {
    left = end - pixel;
    if (left <= 0) return;
    const int64_t columns = walk->columns.destinations.count;
    const int64_t rows = walk->rows.destinations.count;
    column = static_cast<int>(pixel % columns);
    row = static_cast<int>(pixel / columns % rows);
    n = static_cast<int>(pixel / columns / rows);
  }

  __device__ __forceinline__ void prepare() {
    if (threadIdx.x < kStageDepth<T>) {
      const TapSpan &rows = walk->rows, &columns = walk->columns;
      int64_t* to = offsets + prepared * 2 * kStageDepth<T> + threadIdx.x;
      to[0] = kNowhere;
      to[kStageDepth<T>] = kNowhere;
      if (left > 0) {
        to[0] = strides.grad_output.offset(n, 0, rows.destinations.at(row),
                                           columns.destinations.at(column));
        to[kStageDepth<T>] =
            strides.input.offset(n, 0, rows.source_first + row * rows.source_step,
                                 columns.source_first + column * columns.source_step);
      }
      advance();
    }
    prepared = prepared + 1 == kOffsetStages ? 0 : prepared + 1;
  }

  __device__ __forceinline__ void advance() {
    left -= kStageDepth<T>;
    if (left <= 0) return;
    const int columns = static_cast<int>(walk->columns.destinations.count);
    const int rows = static_cast<int>(walk->rows.destinations.count);
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

// Writes those of the sums that lie within `outputs` rows and `channels` columns.
__device__ __forceinline__ void store_part(const TensorSums<kTensorLanes>& sums, float* to,
                                           int64_t outputs, int64_t channels, int64_t pitch) {
  using Place = TensorPlace<kTensorLanes>;
  ATROUSX_UNROLL
  for (int i = 0; i < kLaneBlocks; ++i) ATROUSX_UNROLL
  for (int half = 0; half < 2; ++half) {
    const int k = Place::lane(i) + half * 8;
    if (k >= outputs) continue;
    ATROUSX_UNROLL
    for (int j = 0; j < kTensorLanes / 16; ++j) ATROUSX_UNROLL
    for (int e = 0; e < 2; ++e)
      if (Place::column(j) + e < channels)
        to[k * pitch + Place::column(j) + e] = sums[i][j][2 * half + e];
  }
}

// The static shared memory of the kernel below: the ring of offsets and the walk.
template <typename T>
constexpr int kGradWeightStaticBytes =
    static_cast<int>(kOffsetStages * 2 * kStageDepth<T> * sizeof(int64_t) + sizeof(TapWalk));

// Grad-weight, in parts. Who: a block owns, for one tap and one part of its live pixels,
// kTensorLanes output channels times as many input channels of a group. Reads: those channels of
// grad_output and input at these pixels, by asynchronous copies. Writes: its own elements of
// `parts`. Synchronisation: the barriers of multiply_stages and one per job. Parts have the same
// length for every tap, so that blocks take equally long; taps with few live pixels leave the last
// parts empty. They are summed in order by atrous_conv2d_sum_parts_kernel, which makes the result
// deterministic.
template <typename T>
__global__ void __launch_bounds__(kTensorThreads, 2)
    atrous_conv2d_grad_weight_tensorcore_kernel(const T* grad_output,  // [N, OH, OW, groups, outer]
                                                const T* input,        // [N, H, W, groups, inner]
                                                float* parts,  // [splits, taps, K, C / groups]
                                                int64_t splits, GatherShape shape,
                                                TensorGradWeightStrides strides) {
  static_assert(kTensorSharedBytes<kTensorLanes> + kGradWeightStaticBytes<T> <= kSharedLimit);
  ATROUSX_DYNAMIC_SHARED(unsigned char, memory);
  ATROUSX_SHARED(int64_t, offsets, kOffsetStages * 2 * kStageDepth<T>);
  ATROUSX_SHARED(TapWalk, walk, 1);
  const int64_t channel_tiles = ceil_div<int64_t>(shape.inner, kTensorLanes);
  const int64_t output_tiles = ceil_div<int64_t>(shape.outer, kTensorLanes);
  const int64_t taps = shape.rows.taps * shape.columns.taps;
  const int64_t jobs = splits * shape.groups * taps * output_tiles * channel_tiles;
  const int64_t part =
      ceil_div(shape.batch * shape.rows.destinations * shape.columns.destinations, splits);
  const int vector = static_cast<int>(threadIdx.x) % GradWeightFeed<T>::kRowVectors * kVector<T>;
  for (int64_t job = blockIdx.x; job < jobs; job += gridDim.x) {
    const int64_t first_channel = job % channel_tiles * kTensorLanes;
    const int64_t first_output = job / channel_tiles % output_tiles * kTensorLanes;
    const int64_t rest = job / channel_tiles / output_tiles;
    const int64_t tap = rest % taps, group = rest / taps % shape.groups;
    const int64_t split = rest / taps / shape.groups;
    if (threadIdx.x == 0) *walk = tap_walk<T>(shape, tap);
    __syncthreads();  // the walk of the job is known, to its end
    const int64_t pixels =
        shape.batch * walk->rows.destinations.count * walk->columns.destinations.count;
    const int64_t first = min_of(split * part, pixels), end = min_of(first + part, pixels);
    const int64_t output = first_output + vector, channel = first_channel + vector;
    const bool inside[2] = {output < shape.outer, channel < shape.inner};
    GradWeightFeed<T> feed{
        {grad_output + group * strides.grad_output_group + (inside[0] ? output : 0),
         input + group * strides.input_group + (inside[1] ? channel : 0)},
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
    feed.start(first + threadIdx.x, end);
    TensorSums<kTensorLanes> sums = {};
    multiply_stages<T, PanelOrder::kLanesFastest, kTensorLanes>(
        feed, static_cast<int>(ceil_div<int64_t>(end - first, kStageDepth<T>)), memory, sums);
    store_part(sums,
               parts + (split * taps + tap) * shape.groups * shape.outer * shape.inner +
                   (group * shape.outer + first_output) * shape.inner + first_channel,
               shape.outer - first_output, shape.inner - first_channel, shape.inner);
  }
}

}  // namespace atrousx
