// The product of two gathered panels on tensor cores. All three passes share it:
//   sums[lane][column] = sum over depth of lanes[lane][depth] * columns[depth][column]
// Sums are float32. Depth is processed in stages of kStageDepthBytes. Asynchronous copies run
// kStages - 1 stages ahead.
//
// A panel lies in shared memory in 16-byte vectors, in one of two orders:
//   depth fastest  a row is the depth of one lane in the stage (forward, grad-input)
//   lanes fastest  a row is all lanes at one depth             (grad-weight)
// The vectors of a row are permuted by an exclusive or with the row's number. Eight rows that are
// read at the same vector then use all banks, and so do the vectors of one row while it is written.
#pragma once

#include "cuda/device.cuh"
#include "cuda/ptx.cuh"

namespace atrousx {

constexpr int kTensorThreads = 128;  // four warps, two by two over the tile
constexpr int kTensorLanes = 128;
constexpr int kWarpLanes = kTensorLanes / 2;
constexpr int kLaneBlocks = kWarpLanes / 16;
constexpr int kStages = 3;
constexpr int kStageDepthBytes = 128;
constexpr int kVectorBytes = 16;
// A step of a product takes 32 bytes of depth: 16 half values or 8 TF32 ones.
constexpr int kSteps = kStageDepthBytes / 32;

template <typename T>
constexpr int kVector = kVectorBytes / static_cast<int>(sizeof(T));
template <typename T>
constexpr int kStageDepth = kStageDepthBytes / static_cast<int>(sizeof(T));

// The offset of a lane or depth that does not exist. Its values count as zeros.
constexpr int64_t kNowhere = INT64_MIN;

enum class PanelOrder { kDepthFastest, kLanesFastest };

// A stage holds the panel of kTensorLanes lanes, then the panel of kColumns columns.
template <int kColumns>
constexpr int kStageBytes = (kTensorLanes + kColumns) * kStageDepthBytes;
template <int kColumns>
constexpr int kTensorSharedBytes = kStages * kStageBytes<kColumns>;
// Blocks per multiprocessor: as many as leave enough registers for the sums.
template <int kColumns>
constexpr int kTensorBlocks = kColumns == 32 ? 3 : 2;

// The sums of a thread: 16x8 blocks in the layout of multiply_matrices.
template <int kColumns>
using TensorSums = float[kLaneBlocks][kColumns / 16][4];

// The position of this thread's sums in the tile: sums[i][j][e] is at (lane(i) + (e / 2) * 8,
// column(j) + e % 2).
template <int kColumns>
struct TensorPlace {
  static constexpr int kWarpColumns = kColumns / 2;

  static __device__ __forceinline__ int warp_lane() {
    return static_cast<int>(threadIdx.x) / 64 * kWarpLanes;
  }
  static __device__ __forceinline__ int warp_column() {
    return static_cast<int>(threadIdx.x) / 32 % 2 * kWarpColumns;
  }
  static __device__ __forceinline__ int lane(int block) {
    return warp_lane() + block * 16 + static_cast<int>(threadIdx.x) % 32 / 4;
  }
  static __device__ __forceinline__ int column(int block) {
    return warp_column() + block * 8 + static_cast<int>(threadIdx.x) % 4 * 2;
  }
};

// The number by which the vectors of a panel's row are permuted. For TF32 with lanes fastest, four
// rows are read together, two vectors from each. Otherwise eight rows are, one vector from each.
template <typename T, PanelOrder kOrder>
__device__ __forceinline__ int row_turn(int row) {
  const bool by_fours = kOrder == PanelOrder::kLanesFastest && sizeof(T) == 4;
  return by_fours ? row % 4 * 2 : row % 8;
}

// Loads 16 lanes (or columns) at one step of depth: block `block` of the warp's lanes, which start
// at `warp_first`, a multiple of 16. For the left operand of multiply_matrices, the registers hold
// lanes 0-7 and 8-15 of the step's first half, then of its second half. For the right operand,
// registers 0 and 2 are the first eight columns, 1 and 3 the others. Permutations depend on the
// thread alone, so that blocks and steps are constant offsets to a few addresses.
template <typename T, PanelOrder kOrder, int kLanes>
__device__ __forceinline__ void load_fragment(const unsigned char* panel, int warp_first, int block,
                                              int step, uint32_t (&registers)[4]) {
  constexpr int kRowBytes = kLanes * static_cast<int>(sizeof(T));
  const int thread = static_cast<int>(threadIdx.x) % 32;
  if constexpr (kOrder == PanelOrder::kDepthFastest) {
    const int lane = warp_first + block * 16 + thread / 8 % 2 * 8 + thread % 8;
    const int vector = (step * 2 + thread / 16) ^ row_turn<T, kOrder>(thread % 8);
    load_matrices<false>(panel + lane * kStageDepthBytes + vector * kVectorBytes, registers);
  } else if constexpr (sizeof(T) == 2) {
    static_assert(kLanes == 128, "a warp's lanes start at a multiple of eight vectors");
    const int depth = step * 16 + thread / 16 * 8 + thread % 8;
    const int vector =
        warp_first / kVector<T> + ((block * 2 + thread / 8 % 2) ^ row_turn<T, kOrder>(thread % 8));
    load_matrices<true>(panel + depth * kRowBytes + vector * kVectorBytes, registers);
  } else {
    // Transposing loads exist only for 16-bit elements. TF32 words are read one by one.
    ATROUSX_UNROLL
    for (int q = 0; q < 4; ++q) {
      const int depth = step * 8 + q / 2 * 4 + thread % 4;
      const int vector = warp_first / kVector<T> + thread / 16 +
                         ((block * 4 + q % 2 * 2) ^ row_turn<T, kOrder>(thread % 4));
      registers[q] = *reinterpret_cast<const uint32_t*>(panel + depth * kRowBytes +
                                                        vector * kVectorBytes + thread / 4 % 4 * 4);
    }
  }
  if constexpr (sizeof(T) == 4) {
    ATROUSX_UNROLL
    for (int q = 0; q < 4; ++q) registers[q] = round_to_tf32(registers[q]);
  }
}

template <typename T, PanelOrder kOrder, int kColumns>
__device__ __forceinline__ void multiply_stage(const unsigned char* stage,
                                               TensorSums<kColumns>& sums) {
  using Place = TensorPlace<kColumns>;
  const unsigned char* columns = stage + kTensorLanes * kStageDepthBytes;
  // With single words, the fragments of all steps at once would leave too few registers for the
  // sums.
  constexpr bool kByWords = kOrder == PanelOrder::kLanesFastest && sizeof(T) == 4;
  ATROUSX_UNROLL_BY(kByWords ? 1 : kSteps)
  for (int step = 0; step < kSteps; ++step) {
    uint32_t a[kLaneBlocks][4];
    ATROUSX_UNROLL
    for (int i = 0; i < kLaneBlocks; ++i)
      load_fragment<T, kOrder, kTensorLanes>(stage, Place::warp_lane(), i, step, a[i]);
    ATROUSX_UNROLL
    for (int j = 0; j < kColumns / 32; ++j) {
      uint32_t b[4];
      load_fragment<T, kOrder, kColumns>(columns, Place::warp_column(), j, step, b);
      const uint32_t left[2] = {b[0], b[2]}, right[2] = {b[1], b[3]};
      ATROUSX_UNROLL
      for (int i = 0; i < kLaneBlocks; ++i) {
        multiply_matrices<T>(sums[i][2 * j], a[i], left);
        multiply_matrices<T>(sums[i][2 * j + 1], a[i], right);
      }
    }
  }
}

// Adds all stages to `sums`. feed.load(stage) starts the copies of the next stage. feed.prepare()
// computes the offsets of the next stage that has none. Synchronisation: two barriers before the
// stages, one after, and one per stage.
constexpr int kAhead = kStages - 1;
constexpr int kOffsetStages = kAhead;

template <typename T, PanelOrder kOrder, int kColumns, typename Feed>
__device__ __forceinline__ void multiply_stages(Feed& feed, int stages, unsigned char* memory,
                                                TensorSums<kColumns>& sums) {
  for (int s = 0; s < kAhead; ++s) feed.prepare();
  __syncthreads();  // the offsets of the first stages are known
  for (int s = 0; s < kAhead; ++s) {
    if (s < stages) feed.load(memory + s * kStageBytes<kColumns>);
    async_copy_commit();
  }
  __syncthreads();  // all threads have read the first offsets
  feed.prepare();
  int now = 0, next = kAhead;  // the ring's places to multiply from and to load into
  for (int s = 0; s < stages; ++s) {
    async_copy_wait<kAhead - 1>();
    // Stage s and the offsets of stage s + kAhead are complete. Stage s - 1 has been multiplied and
    // the offsets of stage s + kAhead - 1 have been read, so their places are free.
    __syncthreads();
    if (s + kAhead < stages) feed.load(memory + next * kStageBytes<kColumns>);
    async_copy_commit();  // a group may be empty: the count of groups must go on
    feed.prepare();
    __syncwarp();  // matrix instructions need the whole warp; prepare() may have diverged
    multiply_stage<T, kOrder, kColumns>(memory + now * kStageBytes<kColumns>, sums);
    now = now + 1 == kStages ? 0 : now + 1;
    next = next + 1 == kStages ? 0 : next + 1;
  }
  async_copy_wait<0>();
  __syncthreads();  // all threads have read the ring
}

}  // namespace atrousx
