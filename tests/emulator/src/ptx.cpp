// Runs the host twins of csrc/cuda/ptx.cuh, one warp at a time, on the device in host memory; also
// with a planted missing wait. 16-bit elements are passed as int16, registers as int32.
#include "cuda/ptx.cuh"

#include "cuda/launch.h"

namespace atrousx {
namespace {

constexpr int kLanes = 32;

template <bool kTransposed>
__global__ void load_matrices_kernel(const uint16_t* matrices,  // [4, 8, 8]
                                     uint32_t* registers) {     // [32, 4]
  ATROUSX_SHARED(uint16_t, rows, 4 * 8 * 8);
  for (int i = 0; i < 8; ++i) rows[threadIdx.x * 8 + i] = matrices[threadIdx.x * 8 + i];
  __syncthreads();  // the matrices are complete
  uint32_t r[4];
  load_matrices<kTransposed>(rows + threadIdx.x * 8, r);
  for (int q = 0; q < 4; ++q) registers[threadIdx.x * 4 + q] = r[q];
}

template <typename T>
__global__ void multiply_kernel(const uint32_t* a,  // [32, 4]
                                const uint32_t* b,  // [32, 2]
                                float* sums) {      // [32, 4], added to
  const uint32_t left[4] = {a[threadIdx.x * 4], a[threadIdx.x * 4 + 1], a[threadIdx.x * 4 + 2],
                            a[threadIdx.x * 4 + 3]};
  const uint32_t right[2] = {b[threadIdx.x * 2], b[threadIdx.x * 2 + 1]};
  float s[4];
  for (int e = 0; e < 4; ++e) s[e] = sums[threadIdx.x * 4 + e];
  multiply_matrices<T>(s, left, right);
  for (int e = 0; e < 4; ++e) sums[threadIdx.x * 4 + e] = s[e];
}

// Reverses two groups of 32 x 4 floats, each copied asynchronously. It reads them while up to
// kUnderWay groups may still be pending. Lanes from `lanes` on copy nothing: they get zeros.
template <int kUnderWay>
__global__ void async_reverse_kernel(const float* input,  // [2, 32, 4]
                                     float* output,       // [2, 32, 4]
                                     int lanes, int shift) {
  ATROUSX_SHARED(float, tile, 2 * kLanes * 4);
  const int thread = threadIdx.x;
  for (int group = 0; group < 2; ++group) {
    const int at = (group * kLanes + thread) * 4;
    async_copy_16(tile + at + shift, input + at, thread < lanes);
    async_copy_commit();
  }
  if constexpr (kUnderWay < 2) async_copy_wait<kUnderWay>();
  __syncthreads();  // the groups that were waited for are complete
  for (int i = 0; i < 8; ++i) {
    const int at = i / 4 * kLanes * 4 + thread * 4 + i % 4;
    output[at] = tile[i / 4 * kLanes * 4 + (kLanes - 1 - thread) * 4 + i % 4];
  }
}

// Reverses the negatives of 2 x 32 x 4 floats, and overwrites them with the floats themselves.
// Without the barrier they may be overwritten before they have been read.
template <bool kWithBarrier>
__global__ void async_overwrite_kernel(const float* input,  // [2, 32, 4]
                                       float* output) {     // [2, 32, 4]
  ATROUSX_SHARED(float, tile, 2 * kLanes * 4);
  const int thread = threadIdx.x;
  for (int i = thread; i < 2 * kLanes * 4; i += kLanes) tile[i] = -input[i];
  __syncthreads();  // the tile is complete
  float read[8];
  for (int i = 0; i < 8; ++i)
    read[i] = tile[i / 4 * kLanes * 4 + (kLanes - 1 - thread) * 4 + i % 4];
  if constexpr (kWithBarrier) __syncthreads();  // all threads have read
  for (int group = 0; group < 2; ++group) {
    const int at = (group * kLanes + thread) * 4;
    async_copy_16(tile + at, input + at, true);
  }
  async_copy_commit();
  for (int i = 0; i < 8; ++i) output[i / 4 * kLanes * 4 + thread * 4 + i % 4] = read[i];
  async_copy_wait<0>();
}

__global__ void round_to_tf32_kernel(const uint32_t* bits,  // [32]
                                     uint32_t* rounded) {   // [32]
  rounded[threadIdx.x] = round_to_tf32(bits[threadIdx.x]);
}

// Runs one warp. It reads `from` and writes a new tensor of the same dtype and sizes.
template <typename T, typename... Parameters>
Tensor run(void (*kernel)(const T*, T*, Parameters...), const Tensor& from, Parameters... rest) {
  const LaunchContext context(from.get_device_index());
  const Tensor to = torch::stable::empty_like(from);
  launch({"ptx", 1, kLanes, context.stream()}, kernel, reads<T>(from), writes<T>(to), rest...);
  return to;
}

Tensor load_matrices_op(const Tensor& matrices, bool transposed) {
  const LaunchContext context(matrices.get_device_index());
  const Tensor registers = torch::stable::new_empty(matrices, {kLanes, 4}, ScalarType::Int);
  launch({"ptx", 1, kLanes, context.stream()},
         transposed ? load_matrices_kernel<true> : load_matrices_kernel<false>,
         reads<uint16_t>(matrices), writes<uint32_t>(registers));
  return registers;
}

// type: 0 is float16, 1 bfloat16, 2 TF32.
Tensor multiply_op(int64_t type, const Tensor& a, const Tensor& b, const Tensor& sums) {
  const LaunchContext context(a.get_device_index());
  const Tensor result = torch::stable::clone(sums);
  const auto kernel = type == 0   ? multiply_kernel<Half>
                      : type == 1 ? multiply_kernel<BFloat16>
                                  : multiply_kernel<float>;
  launch({"ptx", 1, kLanes, context.stream()}, kernel, reads<uint32_t>(a), reads<uint32_t>(b),
         writes<float>(result));
  return result;
}

Tensor async_reverse_op(const Tensor& input, int64_t under_way, int64_t lanes, int64_t shift) {
  const auto kernel = under_way == 0   ? async_reverse_kernel<0>
                      : under_way == 1 ? async_reverse_kernel<1>
                                       : async_reverse_kernel<2>;
  return run<float>(kernel, input, static_cast<int>(lanes), static_cast<int>(shift));
}

Tensor async_overwrite_op(const Tensor& input, bool with_barrier) {
  return run<float>(with_barrier ? async_overwrite_kernel<true> : async_overwrite_kernel<false>,
                    input);
}

Tensor round_to_tf32_op(const Tensor& bits) { return run<uint32_t>(round_to_tf32_kernel, bits); }

}  // namespace
}  // namespace atrousx

STABLE_TORCH_LIBRARY(atrousx_ptx, m) {
  m.def("load_matrices(Tensor matrices, bool transposed) -> Tensor");
  m.def("multiply_matrices(int type, Tensor a, Tensor b, Tensor sums) -> Tensor");
  m.def("async_reverse(Tensor input, int under_way, int lanes, int shift) -> Tensor");
  m.def("async_overwrite(Tensor input, bool with_barrier) -> Tensor");
  m.def("round_to_tf32(Tensor bits) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(atrousx_ptx, ATROUSX_CUDA_KEY, m) {
  m.impl("load_matrices", TORCH_BOX(&atrousx::load_matrices_op));
  m.impl("multiply_matrices", TORCH_BOX(&atrousx::multiply_op));
  m.impl("async_reverse", TORCH_BOX(&atrousx::async_reverse_op));
  m.impl("async_overwrite", TORCH_BOX(&atrousx::async_overwrite_op));
  m.impl("round_to_tf32", TORCH_BOX(&atrousx::round_to_tf32_op));
}
