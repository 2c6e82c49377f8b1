// Multiply-adds in registers alone: the most that a core computes in float32. Compiled and called
// by timing.py. 12 sums hide the latency of two units that each take 4 or 5 cycles.
#if defined(__AVX512F__)
constexpr int kBytes = 64;
#else
constexpr int kBytes = 32;
#endif
typedef float Vector __attribute__((vector_size(kBytes)));

// Returns the operations done; what they gave is written, so that they happen.
extern "C" double fma_peak(long rounds, float* result) {
  constexpr int kSums = 12, kLanes = kBytes / 4;
  Vector sums[kSums];
  // Each begins elsewhere, and nobody knows where before it runs: the compiler would compute equal
  // ones once, and one that begins at 1, where this sequence stays, not at all.
#pragma GCC unroll 12
  for (int i = 0; i < kSums; ++i) sums[i] = Vector{} + (*result + static_cast<float>(i));
  Vector factor = Vector{} + 0.999f, term = Vector{} + 0.001f;
  // Rounding keeps the compiler from leaping over rounds.
  for (long round = 0; round < rounds; ++round)
#pragma GCC unroll 12
    for (int i = 0; i < kSums; ++i) sums[i] = sums[i] * factor + term;
#pragma GCC unroll 12
  for (int i = 0; i < kSums; ++i) *result += sums[i][0];
  return 2.0 * kSums * kLanes * static_cast<double>(rounds);
}
