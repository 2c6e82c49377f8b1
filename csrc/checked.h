// Arithmetic on the sizes that a caller passes. It raises an error where a result does not fit 64
// bits. Operators check their arguments with it once. Kernels and plans then compute with checked
// sizes and do not check again.
#pragma once

#include <cstdint>

#include <torch/headeronly/util/Exception.h>

namespace atrousx {

// The largest stride, padding, dilation or number of taps. A product of two of them then fits 64
// bits, also after the extent of a map is added. The Python side has the same limit.
constexpr int64_t kLargestStep = INT32_MAX;

inline int64_t checked_add(int64_t a, int64_t b) {
  int64_t sum = 0;
  STD_TORCH_CHECK(!__builtin_add_overflow(a, b, &sum), "sizes overflow 64 bits: ", a, " + ", b);
  return sum;
}

inline int64_t checked_mul(int64_t a, int64_t b) {
  int64_t product = 0;
  STD_TORCH_CHECK(!__builtin_mul_overflow(a, b, &product), "sizes overflow 64 bits: ", a, " * ", b);
  return product;
}

// Returns the number of elements of a tensor. Its bytes must fit 64 bits in the largest dtype. An
// empty dimension counts as 1 in this check, as in strides, because strides must fit 64 bits too.
template <typename SizeList>
int64_t checked_numel(const SizeList& sizes) {
  constexpr int64_t kLargestElement = 8;
  int64_t product = kLargestElement;
  bool empty = false;
  for (const int64_t size : sizes) {
    STD_TORCH_CHECK(size >= 0, "sizes must not be negative, got ", size);
    empty = empty || size == 0;
    product = checked_mul(product, size > 0 ? size : 1);
  }
  return empty ? 0 : product / kLargestElement;
}

}  // namespace atrousx
