// Checks the operands of minimal filtering before they are transformed (operand_check.h). Also
// keeps the precision that the user asked for, and computes the fingerprint of a weight.
#include "atrous_conv2d/cpu/winograd/operand_check.h"

#include <atomic>
#include <bit>
#include <cmath>
#include <numeric>

#include "atrous_conv2d/arguments.h"
#include "atrous_conv2d/cpu/gemm/microkernel.h"
#include "cpu/lanes.h"

namespace atrousx {
namespace {

constexpr int kTaps = 9;
constexpr int64_t kPiece = 9 * 4096;  // elements of a task; a multiple of the nine taps of a filter

std::atomic<bool> highest_precision{false};

template <int kBytes>
struct MeasureMap {
  template <typename T>
  static ATROUSX_ALWAYS_INLINE void run(const T* from, int64_t count, Magnitudes* to) {
    constexpr int kLanes = kLanesIn<kBytes, float>, kChains = 4;
    using Vector = Lanes<float, kLanes>;
    using Bits = Lanes<int32_t, kLanes>;
    Vector sums[kChains] = {}, squares[kChains] = {};
    Bits largest[kChains] = {};
    int64_t i = 0;
    for (; i + kChains * kLanes <= count; i += kChains * kLanes)
      for (int c = 0; c < kChains; ++c) {
        const Vector v = load_lanes<kLanes>(from + i + c * kLanes);
        // Without the sign, the bits as integers have the same order as the numbers.
        const Bits bits = (Bits)v & 0x7fffffff;
        largest[c] = select_bits(bits > largest[c], bits, largest[c]);
        sums[c] += (Vector)bits;
        squares[c] += v * v;
      }
    Magnitudes all;
    all.count = static_cast<double>(count);
    for (int c = 0; c < kChains; ++c)
      for (int l = 0; l < kLanes; ++l)
        all.add({std::bit_cast<float>(static_cast<int32_t>(largest[c][l])), sums[c][l],
                 squares[c][l], 0});
    for (; i < count; ++i) {
      const double v = std::abs(static_cast<float>(from[i]));
      all.add({v, v, v * v, 0});
    }
    *to = all;
  }
};

// Sums the squares of each tap. The nine taps of a filter are neighbours in memory.
template <int kBytes>
struct MeasureTaps {
  template <typename T>
  static ATROUSX_ALWAYS_INLINE void run(const T* from, int64_t count, double* taps) {
    constexpr int kLanes = kLanesIn<kBytes, float>;
    Lanes<float, kLanes> squares[kTaps] = {};
    int64_t i = 0;
    for (; i + kTaps * kLanes <= count; i += kTaps * kLanes)
      for (int v = 0; v < kTaps; ++v) {
        const auto w = load_lanes<kLanes>(from + i + v * kLanes);
        squares[v] += w * w;
      }
    for (int v = 0; v < kTaps; ++v)
      for (int l = 0; l < kLanes; ++l) taps[(v * kLanes + l) % kTaps] += squares[v][l];
    for (; i < count; ++i) {
      const double w = static_cast<float>(from[i]);
      taps[i % kTaps] += w * w;
    }
  }
};

// Hashes 32-bit words, one step for each word, with a separate state in each lane. Two different
// words never lead from one state to the same next state. A change of a high bit reaches the low
// bits. So the same change in two words does not cancel.
template <int kBytes>
struct HashWords {
  // `from` has the alignment of a half type.
  static ATROUSX_ALWAYS_INLINE void run(const char* from, int64_t count, uint64_t* hash) {
    // The number of lanes is fixed, so that all CPUs give the same hash.
    constexpr int kLanes = 16, kChains = 4;
    using Words = LanesAt<uint32_t, kLanes, 1>;
    Words states[kChains];
    for (int c = 0; c < kChains; ++c) states[c] = Words{} + (0x9e3779b9u + 0x85ebca6bu * c);
    int64_t i = 0;
    for (; i + kChains * kLanes <= count; i += kChains * kLanes)
      for (int c = 0; c < kChains; ++c) {
        const Words mixed =
            (states[c] ^ load_raw<Words>(from + 4 * (i + c * kLanes))) * 0x01000193u;
        states[c] = mixed ^ (mixed >> 15);
      }
    uint64_t all = *hash;
    const auto add = [&](uint64_t word) {
      all = (all ^ word) * 0x9fb21c651e98df25u;
      all ^= all >> 32;
    };
    for (int c = 0; c < kChains; ++c)
      for (int l = 0; l < kLanes; ++l) add(states[c][l]);
    for (; i < count; ++i) {
      uint32_t word;
      std::memcpy(&word, from + 4 * i, sizeof(word));
      add(word);
    }
    *hash = all;
  }
};

// The tensor itself if its elements fill a block of memory, in any order; else a contiguous copy.
Tensor filling(const Tensor& t) {
  std::array<int, 4> dims{0, 1, 2, 3};
  std::sort(dims.begin(), dims.end(), [&](int a, int b) { return t.stride(a) < t.stride(b); });
  int64_t expected = 1;
  for (const int dim : dims) {
    if (t.size(dim) == 1) continue;
    if (t.stride(dim) != expected) return torch::stable::contiguous(t);
    expected *= t.size(dim);
  }
  return t;
}

Magnitudes measure(const Tensor& map) {
  const Tensor dense = filling(map);
  const int64_t count = dense.numel(), pieces = ceil_div(count, kPiece);
  std::vector<Magnitudes> parts(pieces);
  dispatch_floating(dense.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    if constexpr (!std::is_same_v<T, double>)
      for_each_task(pieces, [&](int64_t piece, int64_t) {
        const int64_t first = piece * kPiece;
        run_with_lanes<MeasureMap>(data<T>(dense) + first, std::min(kPiece, count - first),
                                   &parts[piece]);
      });
  });
  Magnitudes all;
  for (const Magnitudes& part : parts) all.add(part);
  return all;
}

// Sums of squares by tap, over all filters.
std::array<double, kTaps> measure_taps(const Tensor& weight) {
  const Tensor dense = torch::stable::contiguous(weight);
  const int64_t count = dense.numel(), pieces = ceil_div(count, kPiece);
  std::vector<std::array<double, kTaps>> parts(pieces);
  dispatch_floating(dense.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    if constexpr (!std::is_same_v<T, double>)
      for_each_task(pieces, [&](int64_t piece, int64_t) {
        const int64_t first = piece * kPiece;
        parts[piece] = {};
        run_with_lanes<MeasureTaps>(data<T>(dense) + first, std::min(kPiece, count - first),
                                    parts[piece].data());
      });
  });
  std::array<double, kTaps> all{};
  for (const auto& part : parts)
    for (int t = 0; t < kTaps; ++t) all[t] += part[t];
  return all;
}

bool is_half(const Tensor& t) { return t.scalar_type() != ScalarType::Float; }

// Whether no number or sum is near overflow or near the subnormal numbers, which have fewer bits.
bool in_range(const Magnitudes& m) {
  return std::isfinite(m.sum) && std::isfinite(m.squares) && m.largest <= 0x1p50 &&
         m.largest >= 0x1p-50;
}

// Whether filters may be transformed. taps() returns their sums of squares by tap.
template <typename Taps>
bool suit(const Magnitudes& m, bool half, const Taps& taps) {
  constexpr double kLeastShare = 1 / 8.0, kLeastTaps = 0.5;
  if (m.largest == 0 && m.sum == 0) return true;
  if (!in_range(m)) return false;
  if (half) return true;
  if (m.share() < kLeastShare) return false;
  const std::array<double, kTaps> of_taps = taps();
  const double sum = std::accumulate(of_taps.begin(), of_taps.end(), 0.0);
  const double squares = std::inner_product(of_taps.begin(), of_taps.end(), of_taps.begin(), 0.0);
  return sum * sum >= kLeastTaps * kTaps * squares;
}

}  // namespace

bool winograd_allowed() { return !highest_precision.load(std::memory_order_relaxed); }

bool winograd_suits_map(const Tensor& map, int64_t terms) {
  constexpr double kLeastShare = 1 / 32.0, kMostPeak = 4;
  const Magnitudes m = measure(map);
  if (m.largest == 0 && m.sum == 0) return true;  // zeros are exact either way
  if (!in_range(m)) return false;
  // Results of a half type are rounded so coarsely that the errors below do not show.
  if (is_half(map)) return true;
  const double peak = m.largest * m.largest * m.count / m.squares;
  return m.share() >= kLeastShare && peak <= kMostPeak * static_cast<double>(terms);
}

bool winograd_suits_filters(const Tensor& weight) {
  const Magnitudes m = measure(weight);
  return suit(m, is_half(weight), [&] { return measure_taps(weight); });
}

TapMagnitudes measure_packed_taps(const float* taps, int64_t count) {
  TapMagnitudes all;
  for (int t = 0; t < kTaps; ++t) run_with_lanes<MeasureMap>(taps + t * count, count, &all[t]);
  return all;
}

bool winograd_suits_taps(const TapMagnitudes& taps, int64_t filters, bool half) {
  Magnitudes m;
  for (const Magnitudes& tap : taps) m.add(tap);
  m.count = static_cast<double>(kTaps * filters);
  return suit(m, half, [&] {
    std::array<double, kTaps> squares;
    for (int t = 0; t < kTaps; ++t) squares[t] = taps[t].squares;
    return squares;
  });
}

namespace {

// These operators have one kernel, which is bound to no device, and return no tensor.
void check_on_cpu(const Tensor& weight) {
  STD_TORCH_CHECK(weight.device().type() == torch::headeronly::DeviceType::CPU,
                  "weight must be on the CPU");
}

// A hash of the weight. Different weights are very unlikely to have the same. It reads at the speed
// of memory.
int64_t fingerprint_cpu(const Tensor& weight) {
  check_on_cpu(weight);
  const Tensor dense = weight.dim() == 4 ? filling(weight) : torch::stable::contiguous(weight);
  const int64_t bytes = dense.numel() * dense.element_size(), words = bytes / 4;
  const auto* from = static_cast<const char*>(dense.const_data_ptr());
  const int64_t pieces = ceil_div(words, kPiece);
  std::vector<uint64_t> parts(pieces + 1, static_cast<uint64_t>(bytes));
  for_each_task(pieces, [&](int64_t piece, int64_t) {
    const int64_t first = piece * kPiece;
    run_with_lanes<HashWords>(from + 4 * first, std::min(kPiece, words - first), &parts[piece]);
  });
  uint32_t last = 0;  // the last half, if their number is odd
  std::memcpy(&last, from + 4 * words, bytes % 4);
  parts[pieces] ^= last;
  uint64_t all = 0;
  for (const uint64_t part : parts) all = (all ^ part) * 0x9fb21c651e98df25u + (all >> 29);
  return static_cast<int64_t>(all);
}

bool suits_filters_cpu(const Tensor& weight) {
  check_on_cpu(weight);
  const Sizes size = sizes4(weight, "weight");
  STD_TORCH_CHECK(size[2] == 3 && size[3] == 3 && weight.scalar_type() != ScalarType::Double,
                  "weight must be 3x3 filters in float32 or a half type");
  return winograd_suits_filters(weight);
}

void set_highest_precision(bool highest) { highest_precision = highest; }

}  // namespace
}  // namespace atrousx

STABLE_TORCH_LIBRARY_IMPL(atrousx, CompositeExplicitAutograd, m) {
  m.impl("_set_highest_precision", TORCH_BOX(&atrousx::set_highest_precision));
  m.impl("_fingerprint", TORCH_BOX(&atrousx::fingerprint_cpu));
  m.impl("_atrous_conv2d_suits_filters", TORCH_BOX(&atrousx::suits_filters_cpu));
}
