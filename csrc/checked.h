// Arithmetic on sizes that callers give: what would leave 64 bits raises. Used once, where
// arguments become a geometry; kernels and plans compute from checked sizes and check nothing.
#pragma once

#include <cstdint>

#include <torch/headeronly/util/Exception.h>

namespace atrousx {

// Strides, paddings, dilations and taps, at most: sums and products of two of them, and of one and
// a map's extent, then stay within 64 bits. The Python side has the same limit.
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

// The number of elements of a tensor, which must fit the memory that 64 bits address whatever the
// dtype. As its strides have them, empty dimensions count as one: offsets are products of strides.
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
