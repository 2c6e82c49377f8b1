// Launches with planted faults, on the device in host memory, to show that each fault is detected;
// and correct launches for comparison. They use csrc/cuda/launch.h as the operators do, or bypass
// it where it would prevent the fault.
#include "cuda/device.cuh"
#include "cuda/launch.h"
#include "upsample_cross_entropy/cuda/forward_kernels.cuh"

namespace atrousx {
namespace {

// A launch accepts no address without its owner, and only launch.h can create an owner.
template <typename... Arguments>
concept Launchable = requires(void (*kernel)(const float*), const Arguments&... arguments) {
  launch(Launch{}, kernel, arguments...);
};
static_assert(Launchable<Held<const float*>>);
static_assert(!Launchable<const float*> && !Launchable<std::vector<const float*>>);
static_assert(!std::is_constructible_v<Held<const float*>, const float*, std::nullopt_t>);
static_assert(!std::is_constructible_v<Held<const float*>, const float*, Tensor>);

constexpr int kBlockSumThreads = 64;

// to[i] = from[i + shift]
__global__ void copy_kernel(const float* from, float* to, int64_t count, int64_t shift) {
  for (int64_t i = global_thread(); i < count; i += global_threads()) to[i] = from[i + shift];
}

// A block copies its own elements. It does not loop over elements beyond the grid.
__global__ void copy_once_kernel(const float* from, float* to, int64_t count) {
  const int64_t i = global_thread();
  if (i < count) to[i] = from[i];
}

// It sums twice, so that the second sum could overwrite what slower threads still read of the
// first.
__global__ void block_sum_kernel(const double* from,  // [threads]
                                 double* sums) {      // [2, threads]
  ATROUSX_SHARED(double, room, kBlockSumThreads);
  const double value = from[threadIdx.x];
  sums[threadIdx.x] = block_sum(value, room, blockDim.x);
  sums[blockDim.x + threadIdx.x] = block_sum(2 * value, room, blockDim.x);
}

// Dynamic shared memory of a size known at the launch, and 2,560 bytes of static shared memory.
template <bool kOptsIn>  // the launches that do not opt in need another kernel
__global__ void shared_kernel(float* to) {
  ATROUSX_SHARED(float, fixed, 640);
  ATROUSX_DYNAMIC_SHARED(float, dynamic);
  fixed[threadIdx.x] = dynamic[threadIdx.x] = 1;
  to[threadIdx.x] = fixed[threadIdx.x] + dynamic[threadIdx.x];
}

struct alignas(16) Four {
  float v[4];
};

__global__ void vector_kernel(const float* from, Four* to) {
  *to = *reinterpret_cast<const Four*>(from);
}

// The block has 40 threads: its second warp has 8 lanes.
__global__ void mask_kernel(float* to, uint32_t mask) {
  const float value = __shfl_sync(threadIdx.x < 32 ? 0xffffffffu : mask, 1.0f, 0);
  to[threadIdx.x] = value;
}

// Copies `input`. `fault` selects how the launch is wrong.
Tensor copy(const Tensor& input, int64_t fault) {
  enum : int64_t { kNone, kGrid, kBeyond, kBefore };
  const LaunchContext context(input.get_device_index());
  const Tensor output = torch::stable::new_empty(input, {input.numel()});
  const int64_t count = input.numel();
  const unsigned int blocks = fault == kGrid ? 0 : grid_for(count);
  launch({"planted copy", blocks, kThreads, context.stream()}, copy_kernel, reads<float>(input),
         writes<float>(output), count,
         fault == kBeyond   ? int64_t{1}
         : fault == kBefore ? int64_t{-1}
                            : int64_t{0});
  return output;
}

// Copies from an address that launch() would refuse: freed memory, or host memory.
Tensor copy_unowned(const Tensor& input, bool host) {
  const LaunchContext context(input.get_device_index());
  const Tensor output = torch::stable::new_empty(input, {input.numel()});
  const std::vector<float> heap(input.numel());
  const float* from = heap.data();
  if (!host) from = data<float>(torch::stable::clone(input));
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(grid_for(input.numel()));
  config.blockDim = dim3(kThreads);
  check_cuda(cudaLaunchKernelEx(&config, copy_kernel, from, writes<float>(output).value(),
                                input.numel(), int64_t{0}),
             "planted copy");
  return output;
}

// Launches exactly `blocks` blocks.
Tensor copy_once(const Tensor& input, int64_t blocks) {
  const LaunchContext context(input.get_device_index());
  const Tensor output = torch::stable::new_empty(input, {input.numel()});
  launch({"planted copy", static_cast<unsigned int>(blocks), kThreads, context.stream()},
         copy_once_kernel, reads<float>(input), writes<float>(output), input.numel());
  return output;
}

Tensor block_sums(const Tensor& input) {
  const LaunchContext context(input.get_device_index());
  const Tensor output = torch::stable::new_empty(input, {2, input.numel()});
  launch({"planted sums", 1, static_cast<unsigned int>(input.numel()), context.stream()},
         block_sum_kernel, reads<double>(input), writes<double>(output));
  return output;
}

// Reads through an arena, which owns the address only if `owned`.
Tensor arena_copy(const Tensor& input, bool owned) {
  const LaunchContext context(input.get_device_index());
  const Tensor output = torch::stable::new_empty(input, {input.numel()});
  Arena arena(input);
  const float* from = owned ? arena.reads<float>(input) : data<float>(input);
  launch({"planted arena", grid_for(input.numel()), kThreads, context.stream()}, copy_kernel,
         arena.lend(from), arena.lend(arena.writes<float>(output)), arena.lend(input.numel()),
         arena.lend(int64_t{0}));
  return output;
}

Tensor shared(const Tensor& input, int64_t bytes, bool opt_in) {
  const LaunchContext context(input.get_device_index());
  const Tensor output = torch::stable::new_empty(input, {32});
  if (opt_in) {
    launch({"planted shared memory", 1, 32, context.stream(), bytes}, shared_kernel<true>,
           writes<float>(output));
    return output;
  }
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(1);
  config.blockDim = dim3(32);
  config.dynamicSmemBytes = static_cast<size_t>(bytes);
  check_cuda(cudaLaunchKernelEx(&config, shared_kernel<false>, writes<float>(output).value()),
             "planted shared memory");
  return output;
}

Tensor vector(const Tensor& input, int64_t first) {
  const LaunchContext context(input.get_device_index());
  const Tensor output = torch::stable::new_empty(input, {4});
  launch({"planted vector", 1, 1, context.stream()}, vector_kernel, reads<float>(input) + first,
         writes<Four>(output));
  return output;
}

Tensor mask(const Tensor& input, int64_t mask) {
  const LaunchContext context(input.get_device_index());
  const Tensor output = torch::stable::new_empty(input, {40});
  launch({"planted mask", 1, 40, context.stream()}, mask_kernel, writes<float>(output),
         static_cast<uint32_t>(mask));
  return output;
}

// Follows a device pointer on the host.
double peek(const Tensor& input) { return *static_cast<const float*>(input.const_data_ptr()); }

}  // namespace
}  // namespace atrousx

STABLE_TORCH_LIBRARY(atrousx_planted, m) {
  m.def("copy(Tensor input, int fault) -> Tensor");
  m.def("copy_unowned(Tensor input, bool host) -> Tensor");
  m.def("copy_once(Tensor input, int blocks) -> Tensor");
  m.def("block_sums(Tensor input) -> Tensor");
  m.def("arena_copy(Tensor input, bool owned) -> Tensor");
  m.def("shared(Tensor input, int bytes, bool opt_in) -> Tensor");
  m.def("vector(Tensor input, int first) -> Tensor");
  m.def("mask(Tensor input, int mask) -> Tensor");
  m.def("peek(Tensor input) -> float");
}

STABLE_TORCH_LIBRARY_IMPL(atrousx_planted, ATROUSX_CUDA_KEY, m) {
  m.impl("copy", TORCH_BOX(&atrousx::copy));
  m.impl("copy_unowned", TORCH_BOX(&atrousx::copy_unowned));
  m.impl("copy_once", TORCH_BOX(&atrousx::copy_once));
  m.impl("block_sums", TORCH_BOX(&atrousx::block_sums));
  m.impl("arena_copy", TORCH_BOX(&atrousx::arena_copy));
  m.impl("shared", TORCH_BOX(&atrousx::shared));
  m.impl("vector", TORCH_BOX(&atrousx::vector));
  m.impl("mask", TORCH_BOX(&atrousx::mask));
  m.impl("peek", TORCH_BOX(&atrousx::peek));
}
