// Kernels with planted errors, to show that the executor catches them, and correct ones beside
// them.
#include "arrays.h"
#include "device.cuh"

namespace {

constexpr int kBlock = 64;

// Reverses 64 floats through shared memory; without the barrier a thread reads what another has not
// written yet.
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

// Writes `extra` elements past the end of output or of shared memory.
__global__ void overrun_kernel(float* output,  // [64]
                               int extra, bool shared) {
  ATROUSX_SHARED(float, tile, kBlock);
  tile[threadIdx.x + (shared ? extra : 0)] = 1;
  output[threadIdx.x + (shared ? 0 : extra)] = tile[threadIdx.x];
}

// Sum over a warp, in every lane; the last warp of a 40-thread block has 8 lanes.
__global__ void warp_sum_kernel(const int* input,         // [threads]
                                int* sums,                // [threads]
                                unsigned int* ballots) {  // [threads], lanes with an odd input
  const unsigned int last = blockDim.x - threadIdx.x / 32 * 32;
  const unsigned int mask = last >= 32 ? 0xffffffffu : (1u << last) - 1;
  int sum = input[threadIdx.x];
  for (int step = 16; step > 0; step /= 2) {
    const int other = __shfl_down_sync(mask, sum, step);
    if (threadIdx.x % 32 + step < last) sum += other;
  }
  sums[threadIdx.x] = __shfl_sync(mask, sum, 0);
  ballots[threadIdx.x] = __ballot_sync(mask, input[threadIdx.x] % 2 != 0);
}

}  // namespace

void bind_planted(pybind11::module_& m) {
  namespace py = pybind11;
  m.def("reverse", [](const py::array_t<float>& input, bool with_barrier) {
    emulator::Buffer<float> in(input), out(kBlock);
    emulator::launch(1, kBlock, 0, with_barrier ? reverse_kernel<true> : reverse_kernel<false>,
                     in.data(), out.data());
    return out.to_array({kBlock}, input.dtype());
  });
  m.def("divergent", [] {
    emulator::Buffer<float> out(kBlock);
    emulator::launch(1, kBlock, 0, divergent_kernel, out.data());
  });
  m.def("overrun", [](int extra, bool shared) {
    emulator::Buffer<float> out(kBlock);
    emulator::launch(1, kBlock, 0, overrun_kernel, out.data(), extra, shared);
  });
  m.def("warp_sum", [](const py::array_t<int>& input) {
    emulator::Buffer<int> in(input), sums(in.size());
    emulator::Buffer<unsigned int> ballots(in.size());
    const auto threads = static_cast<unsigned int>(in.size());
    emulator::launch(1, threads, 0, warp_sum_kernel, in.data(), sums.data(), ballots.data());
    return py::make_tuple(sums.to_array({input.size()}, input.dtype()),
                          ballots.to_array({input.size()}, py::dtype::of<unsigned int>()));
  });
  m.def("too_many_threads", [] {
    emulator::Buffer<float> out(2048);
    emulator::launch(1, 2048, 0, divergent_kernel, out.data());
  });
}
