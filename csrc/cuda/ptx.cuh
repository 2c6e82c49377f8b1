// The only file with inline PTX: asynchronous copies, matrix fragments from shared memory, and
// matrix products of a warp. All need compute capability 8.0. Below them are their host twins,
// which follow the fragment layouts of the PTX manual ("Matrix Fragments for mma.m16n8k16", "...
// for mma.m16n8k8", "ldmatrix").
//
// In those layouts a lane is (group, member) = (lane / 4, lane % 4), and a register holds 4 bytes:
// two half values or one TF32 value.
#pragma once

#include "cuda/device.cuh"

namespace atrousx {

#if defined(__CUDACC__)

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
// Launchers run these kernels only from code compiled for 8.0 or later. In older code they trap.
#define ATROUSX_PTX(...) __trap()
#else
#define ATROUSX_PTX(...) asm volatile(__VA_ARGS__)
#endif

__device__ __forceinline__ uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// Starts a copy of 16 bytes from global to shared memory that bypasses the L1 cache. If not
// `present`, it reads nothing and writes zeros. Both addresses are multiples of 16.
__device__ __forceinline__ void async_copy_16(void* to, const void* from, bool present) {
  const int bytes = present ? 16 : 0;
  ATROUSX_PTX("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from),
              "r"(bytes) : "memory");
}

// Closes the group of copies that this thread has started since the last commit.
__device__ __forceinline__ void async_copy_commit() {
  ATROUSX_PTX("cp.async.commit_group;" :: : "memory");
}

// Waits until at most kGroups of this thread's groups are pending. Before a thread reads copies of
// other threads, a barrier must follow.
template <int kGroups>
__device__ __forceinline__ void async_copy_wait() {
  ATROUSX_PTX("cp.async.wait_group %0;" ::"n"(kGroups) : "memory");
}

// Loads four 8x8 matrices of 16-bit elements. Lanes 8q .. 8q + 7 pass the addresses of the eight
// 16-byte rows of matrix q. Register q of a lane receives elements 2 member and 2 member + 1 of row
// `group` or, if transposed, of column `group`.
template <bool kTransposed>
__device__ __forceinline__ void load_matrices(const void* row, uint32_t (&registers)[4]) {
  uint32_t (&r)[4] = registers;
  if constexpr (kTransposed)
    ATROUSX_PTX(
        "ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];" : "=r"(r[0]),
        "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared_address(row)) : "memory");
  else
    ATROUSX_PTX("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];" : "=r"(r[0]),
                "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared_address(row)) : "memory");
}

// Rounds a float32 to TF32 (10 bits of mantissa), to nearest, ties away from zero. Returns its
// bits.
__device__ __forceinline__ uint32_t round_to_tf32(uint32_t bits) {
  uint32_t rounded = 0;
  ATROUSX_PTX("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(__uint_as_float(bits)));
  return rounded;
}

#define ATROUSX_MMA(shape_and_types)                                                              \
  ATROUSX_PTX("mma.sync.aligned." shape_and_types                                                 \
              " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" : "+f"(sums[0]), \
              "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]),      \
              "r"(a[3]), "r"(b[0]), "r"(b[1]))

// sums[16][8] += a[16][k] * b[k][8], where k is 32 bytes of T: 16 half values or 8 TF32 values.
template <typename T>
__device__ __forceinline__ void multiply_matrices(float (&sums)[4], const uint32_t (&a)[4],
                                                  const uint32_t (&b)[2]) {
  if constexpr (std::is_same_v<T, Half>)
    ATROUSX_MMA("m16n8k16.row.col.f32.f16.f16.f32");
  else if constexpr (std::is_same_v<T, BFloat16>)
    ATROUSX_MMA("m16n8k16.row.col.f32.bf16.bf16.f32");
  else
    ATROUSX_MMA("m16n8k8.row.col.f32.tf32.tf32.f32");
}
#undef ATROUSX_MMA

#else  // host twins

inline void async_copy_16(void* to, const void* from, bool present) {
  emulator::async_copy(to, from, present);
}
inline void async_copy_commit() { emulator::commit_async_copies(); }
template <int kGroups>
inline void async_copy_wait() {
  emulator::wait_async_copies(kGroups);
}

template <bool kTransposed>
inline void load_matrices(const void* row, uint32_t (&registers)[4]) {
  const emulator::Contribution* rows =
      emulator::warp_exchange(~uint32_t{0}, emulator::to_bits(row), ATROUSX_SITE);
  const unsigned int group = emulator::lane() / 4, member = emulator::lane() % 4;
  for (unsigned int q = 0; q < 4; ++q) {
    uint16_t pair[2];
    for (unsigned int e = 0; e < 2; ++e) {
      const unsigned int r = kTransposed ? 2 * member + e : group;
      const unsigned int column = kTransposed ? group : 2 * member + e;
      const auto* from = emulator::from_bits<const char*>(rows[8 * q + r]);
      std::memcpy(&pair[e], from + 2 * column, sizeof(uint16_t));
    }
    std::memcpy(&registers[q], pair, sizeof(pair));
  }
}

inline uint32_t round_to_tf32(uint32_t bits) {
  const bool finite = (bits & 0x7f800000u) != 0x7f800000u;
  return (finite ? bits + 0x1000u : bits) & 0xffffe000u;
}

// The name by which the executor knows each type.
template <typename T>
constexpr emulator::MatrixType kMatrixType =
    std::is_same_v<T, Half>       ? emulator::MatrixType::kHalf
    : std::is_same_v<T, BFloat16> ? emulator::MatrixType::kBFloat16
                                  : emulator::MatrixType::kTf32;

template <typename T>
inline void multiply_matrices(float (&sums)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  emulator::multiply_matrices(kMatrixType<T>, sums, a, b, ATROUSX_SITE);
}

#endif

}  // namespace atrousx
