// The host twins of csrc/ptx.cuh, one warp at a time; with a planted missing wait.
#include "arrays.h"
#include "ptx.cuh"

namespace {

namespace py = pybind11;
constexpr int kLanes = 32;

template <bool kTransposed>
__global__ void load_matrices_kernel(const uint16_t* matrices,  // [4, 8, 8]
                                     uint32_t* registers) {     // [32, 4]
  ATROUSX_SHARED(uint16_t, rows, 4 * 8 * 8);
  for (int i = 0; i < 8; ++i) rows[threadIdx.x * 8 + i] = matrices[threadIdx.x * 8 + i];
  __syncthreads();  // the matrices are complete
  uint32_t r[4];
  atrousx::load_matrices<kTransposed>(rows + threadIdx.x * 8, r);
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
  atrousx::multiply_matrices<T>(s, left, right);
  for (int e = 0; e < 4; ++e) sums[threadIdx.x * 4 + e] = s[e];
}

// Reverses two groups of 32 x 4 floats, each copied asynchronously; reads them when at most
// kUnderWay groups may be. Lanes from `lanes` on copy nothing: they get zeros.
template <int kUnderWay>
__global__ void async_reverse_kernel(const float* input,  // [2, 32, 4]
                                     float* output,       // [2, 32, 4]
                                     int lanes, int shift) {
  ATROUSX_SHARED(float, tile, 2 * kLanes * 4);
  const int thread = threadIdx.x;
  for (int group = 0; group < 2; ++group) {
    const int at = (group * kLanes + thread) * 4;
    atrousx::async_copy_16(tile + at + shift, input + at, thread < lanes);
    atrousx::async_copy_commit();
  }
  if constexpr (kUnderWay < 2) atrousx::async_copy_wait<kUnderWay>();
  __syncthreads();  // what has been waited for is complete
  for (int i = 0; i < 8; ++i) {
    const int at = i / 4 * kLanes * 4 + thread * 4 + i % 4;
    output[at] = tile[i / 4 * kLanes * 4 + (kLanes - 1 - thread) * 4 + i % 4];
  }
}

// Reverses the negatives of 2 x 32 x 4 floats and copies the floats themselves to where these lay;
// without the barrier, perhaps before they have been read.
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
  if constexpr (kWithBarrier) __syncthreads();  // everyone has read
  for (int group = 0; group < 2; ++group) {
    const int at = (group * kLanes + thread) * 4;
    atrousx::async_copy_16(tile + at, input + at, true);
  }
  atrousx::async_copy_commit();
  for (int i = 0; i < 8; ++i) output[i / 4 * kLanes * 4 + thread * 4 + i % 4] = read[i];
  atrousx::async_copy_wait<0>();
}

py::array async_overwrite(const py::array_t<float>& input, bool with_barrier) {
  emulator::Buffer<float> in(input), out(2 * kLanes * 4);
  emulator::launch(1, kLanes, 0,
                   with_barrier ? async_overwrite_kernel<true> : async_overwrite_kernel<false>,
                   in.data(), out.data());
  return out.to_array({2, kLanes, 4}, input.dtype());
}

py::array load_matrices(const py::array_t<uint16_t>& matrices, bool transposed) {
  emulator::Buffer<uint16_t> in(matrices);
  emulator::Buffer<uint32_t> out(kLanes * 4);
  emulator::launch(1, kLanes, 0,
                   transposed ? load_matrices_kernel<true> : load_matrices_kernel<false>, in.data(),
                   out.data());
  return out.to_array({kLanes, 4}, py::dtype::of<uint32_t>());
}

py::array multiply(const std::string& type, const py::array_t<uint32_t>& a,
                   const py::array_t<uint32_t>& b, const py::array_t<float>& sums) {
  emulator::Buffer<uint32_t> left(a), right(b);
  emulator::Buffer<float> s(sums);
  const auto kernel = type == "float16"    ? multiply_kernel<atrousx::Half>
                      : type == "bfloat16" ? multiply_kernel<atrousx::BFloat16>
                                           : multiply_kernel<float>;
  emulator::launch(1, kLanes, 0, kernel, left.data(), right.data(), s.data());
  return s.to_array({kLanes, 4}, sums.dtype());
}

py::array async_reverse(const py::array_t<float>& input, int under_way, int lanes, int shift) {
  emulator::Buffer<float> in(input), out(2 * kLanes * 4);
  const auto kernel = under_way == 0   ? async_reverse_kernel<0>
                      : under_way == 1 ? async_reverse_kernel<1>
                                       : async_reverse_kernel<2>;
  emulator::launch(1, kLanes, 0, kernel, in.data(), out.data(), lanes, shift);
  return out.to_array({2, kLanes, 4}, input.dtype());
}

}  // namespace

void bind_ptx(py::module_& m) {
  m.def("load_matrices", &load_matrices);
  m.def("multiply_matrices", &multiply);
  m.def("async_reverse", &async_reverse);
  m.def("async_overwrite", &async_overwrite);
  m.def("round_to_tf32", &atrousx::round_to_tf32);
}
