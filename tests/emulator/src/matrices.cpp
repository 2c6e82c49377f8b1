// The matrix product of a warp.
#include "emulator.h"
#include "portable.h"

namespace emulator {

namespace {

struct Operands {
  uint32_t a[4], b[2];
};

// Unpacks the values in a register of 4 bytes. Returns their number.
int unpack(MatrixType type, uint32_t bits, float (&values)[2]) {
  if (type == MatrixType::kTf32) {
    values[0] = from_bits<float>(to_bits(bits & 0xffffe000u));  // the product ignores the rest
    return 1;
  }
  for (int e = 0; e < 2; ++e) {
    const auto half = static_cast<uint16_t>(bits >> 16 * e);
    values[e] = type == MatrixType::kHalf
                    ? static_cast<float>(atrousx::Half(half, atrousx::Half::from_bits()))
                    : static_cast<float>(atrousx::BFloat16(half, atrousx::BFloat16::from_bits()));
  }
  return 2;
}

}  // namespace

void multiply_matrices(MatrixType type, float* sums, const uint32_t* a, const uint32_t* b,
                       const char* site) {
  Operands own;
  std::memcpy(own.a, a, sizeof(own.a));
  std::memcpy(own.b, b, sizeof(own.b));
  const Contribution* lanes = warp_exchange(~uint32_t{0}, to_bits(own), site);
  const unsigned int group = lane() / 4, member = lane() % 4;
  for (unsigned int m = 0; m < 4; ++m) {
    const auto left = from_bits<Operands>(lanes[4 * group + m]);
    float rows[4][2];
    int count = 0;
    for (int r = 0; r < 4; ++r) count = unpack(type, left.a[r], rows[r]);
    for (unsigned int column = 0; column < 2; ++column) {
      const auto right = from_bits<Operands>(lanes[4 * (2 * member + column) + m]);
      for (unsigned int half = 0; half < 2; ++half) {
        float by[2];
        unpack(type, right.b[half], by);
        for (int e = 0; e < count; ++e) {
          sums[column] += rows[2 * half][e] * by[e];
          sums[2 + column] += rows[2 * half + 1][e] * by[e];
        }
      }
    }
  }
}

}  // namespace emulator
