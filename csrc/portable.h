// Shared by host and device code: function qualifiers, accumulation types, 64-bit index arithmetic.
// This file does not use libtorch, because kernels may use only the header-only scalar types of
// PyTorch.
#pragma once

#include <cstdint>
#include <type_traits>

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#if defined(__CUDACC__)
#define ATROUSX_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define ATROUSX_HOST_DEVICE inline __attribute__((always_inline))
#endif

namespace atrousx {

using Half = c10::Half;
using BFloat16 = c10::BFloat16;

// Half types are multiplied and summed in float32, float32 and float64 in their own type.
template <typename T>
using Accumulate = std::conditional_t<std::is_same_v<T, double>, double, float>;

// a / b rounded up, for b > 0. No intermediate result is larger than a, so nothing overflows.
template <typename Int>
ATROUSX_HOST_DEVICE constexpr Int ceil_div(Int a, Int b) {
  return a > 0 ? (a - 1) / b + 1 : a / b;
}

template <typename T>
ATROUSX_HOST_DEVICE constexpr T min_of(T a, T b) {
  return b < a ? b : a;
}

template <typename T>
ATROUSX_HOST_DEVICE constexpr T max_of(T a, T b) {
  return a < b ? b : a;
}

// Element strides of a 4-D tensor. Every offset is computed in 64 bits, because a batch of logits
// with more than 2^31 elements still fits the memory of a GPU.
struct Strides4 {
  using HoldsNoAddress = void;
  int64_t n, c, h, w;

  ATROUSX_HOST_DEVICE constexpr int64_t offset(int64_t in, int64_t ic, int64_t ih,
                                               int64_t iw) const {
    return in * n + ic * c + ih * h + iw * w;
  }
};

}  // namespace atrousx
