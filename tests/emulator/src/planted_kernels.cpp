// Kernels with planted faults, on the device in host memory, to show that each fault is detected;
// and correct kernels for comparison.
#include "cuda/device.cuh"
#include "cuda/launch.h"

namespace atrousx {
namespace {

constexpr int kBlock = 64;

// Reverses 64 floats through shared memory. Without the barrier a thread reads a value before
// another thread has written it.
template <bool kWithBarrier>
__global__ void reverse_kernel(const float* input,  // [64]
                               float* output) {     // [64]
  ATROUSX_SHARED(float, tile, kBlock);
  tile[threadIdx.x] = input[threadIdx.x];
  if (kWithBarrier) __syncthreads();
  output[threadIdx.x] = tile[kBlock - 1 - threadIdx.x];
}

// Only half of the threads reach the barrier.
__global__ void divergent_kernel(float* output) {  // [64]
  if (threadIdx.x < kBlock / 2) __syncthreads();
  output[threadIdx.x] = 0;
}

// Stores to one of two static arrays or to dynamic memory, at an offset of `shift` elements.
enum class SharedArray : int64_t { kFirst, kSecond, kDynamic };

__global__ void shared_overrun_kernel(SharedArray which, int64_t shift,
                                      float* output) {  // [64]
  ATROUSX_SHARED(float, first, kBlock);
  ATROUSX_SHARED(float, second, kBlock);
  ATROUSX_DYNAMIC_SHARED(float, dynamic);
  float* const array = which == SharedArray::kFirst    ? first
                       : which == SharedArray::kSecond ? second
                                                       : dynamic;
  array[threadIdx.x + shift] = 1;
  __syncthreads();
  output[threadIdx.x] = array[kBlock - 1 - threadIdx.x];
}

// The sum over a warp, in every lane. The last warp of a 40-thread block has 8 lanes.
__global__ void warp_sum_kernel(const int* input,  // [threads]
                                int* sums,         // [threads]
                                int* ballots) {    // [threads], bits: lanes with an odd input
  const unsigned int last = blockDim.x - threadIdx.x / 32 * 32;
  const unsigned int mask = last >= 32 ? 0xffffffffu : (1u << last) - 1;
  int sum = input[threadIdx.x];
  for (int step = 16; step > 0; step /= 2) {
    const int other = __shfl_down_sync(mask, sum, step);
    if (threadIdx.x % 32 + step < last) sum += other;
  }
  sums[threadIdx.x] = __shfl_sync(mask, sum, 0);
  ballots[threadIdx.x] = static_cast<int>(__ballot_sync(mask, input[threadIdx.x] % 2 != 0));
}

// Adds 1. The behaviour is undefined for the largest int.
__global__ void next_kernel(const int* input, int* output) { *output = *input + 1; }

Tensor reverse(const Tensor& input, bool with_barrier) {
  const LaunchContext context(input.get_device_index());
  const Tensor output = torch::stable::new_empty(input, {kBlock});
  launch({"planted reverse", 1, kBlock, context.stream()},
         with_barrier ? reverse_kernel<true> : reverse_kernel<false>, reads<float>(input),
         writes<float>(output));
  return output;
}

Tensor divergent(const Tensor& like, int64_t threads) {
  const LaunchContext context(like.get_device_index());
  const Tensor output = torch::stable::new_empty(like, {threads});
  launch({"planted divergence", 1, static_cast<unsigned int>(threads), context.stream()},
         divergent_kernel, writes<float>(output));
  return output;
}

Tensor shared_overrun(const Tensor& like, int64_t which, int64_t shift) {
  const LaunchContext context(like.get_device_index());
  const Tensor output = torch::stable::new_empty(like, {kBlock});
  launch({"planted overrun", 1, kBlock, context.stream(), kBlock * sizeof(float)},
         shared_overrun_kernel, static_cast<SharedArray>(which), shift, writes<float>(output));
  return output;
}

std::tuple<Tensor, Tensor> warp_sum(const Tensor& input) {
  const LaunchContext context(input.get_device_index());
  const Tensor sums = torch::stable::new_empty(input, {input.numel()});
  const Tensor ballots = torch::stable::new_empty(input, {input.numel()});
  launch({"planted sum", 1, static_cast<unsigned int>(input.numel()), context.stream()},
         warp_sum_kernel, reads<int>(input), writes<int>(sums), writes<int>(ballots));
  return {sums, ballots};
}

Tensor next(const Tensor& input) {
  const LaunchContext context(input.get_device_index());
  const Tensor output = torch::stable::new_empty(input, {1});
  launch({"planted overflow", 1, 1, context.stream()}, next_kernel, reads<int>(input),
         writes<int>(output));
  return output;
}

}  // namespace
}  // namespace atrousx

STABLE_TORCH_LIBRARY_FRAGMENT(atrousx_planted, m) {
  m.def("reverse(Tensor input, bool with_barrier) -> Tensor");
  m.def("divergent(Tensor like, int threads) -> Tensor");
  m.def("shared_overrun(Tensor like, int which, int shift) -> Tensor");
  m.def("warp_sum(Tensor input) -> (Tensor, Tensor)");
  m.def("next(Tensor input) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(atrousx_planted, ATROUSX_CUDA_KEY, m) {
  m.impl("reverse", TORCH_BOX(&atrousx::reverse));
  m.impl("divergent", TORCH_BOX(&atrousx::divergent));
  m.impl("shared_overrun", TORCH_BOX(&atrousx::shared_overrun));
  m.impl("warp_sum", TORCH_BOX(&atrousx::warp_sum));
  m.impl("next", TORCH_BOX(&atrousx::next));
}
