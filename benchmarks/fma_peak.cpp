// Multiply-adds in registers only: the highest float32 speed of a core. timing.py compiles and
// calls this. 12 sums hide the latency of two units that each take 4 or 5 cycles.
#if defined(__AVX512F__)
constexpr int kBytes = 64;
#else
constexpr int kBytes = 32;
#endif
typedef float Vector __attribute__((vector_size(kBytes)));

// Returns the number of operations. The result is written so that the compiler keeps the work.
extern "C" double fma_peak(long rounds, float* result) {
  constexpr int kSums = 12, kLanes = kBytes / 4;
  Vector sums[kSums];
  // Each sum starts with a different value that is unknown at compile time. Otherwise the compiler
  // would compute equal sums once, and skip one that starts at 1, the fixed point of this sequence.
#pragma GCC unroll 12
  for (int i = 0; i < kSums; ++i) sums[i] = Vector{} + (*result + static_cast<float>(i));
  Vector factor = Vector{} + 0.999f, term = Vector{} + 0.001f;
  // Rounding prevents the compiler from combining rounds.
  for (long round = 0; round < rounds; ++round)
#pragma GCC unroll 12
    for (int i = 0; i < kSums; ++i) sums[i] = sums[i] * factor + term;
#pragma GCC unroll 12
  for (int i = 0; i < kSums; ++i) *result += sums[i][0];
  return 2.0 * kSums * kLanes * static_cast<double>(rounds);
}
