// Packing for the matrix products on the CPU. It gathers elements of any dtype and strides into
// dense panels of the accumulation type:
//   panel[d * kWidth + lane] = source[rows.from[d] + lane_offsets[lane]]
// There are three AVX-512 versions. Lanes that are neighbours in memory are copied. Lanes that lie
// in a few runs are loaded together. Rows that are neighbours in memory are transposed in
// registers, 16 x 16. Without AVX-512, and for double, a portable loop packs everything.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <type_traits>

#include "cpu/dispatch.h"
#include "portable.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace atrousx {

// The rows of a panel. They lie kWidth apart, or at the offsets `to`.
struct PanelRows {
  const int64_t* from;  // [depth] source offsets
  int64_t depth;
  const int64_t* to = nullptr;  // [depth] panel offsets

  ATROUSX_ALWAYS_INLINE int64_t row(int64_t d, int64_t width) const {
    return to == nullptr ? d * width : to[d];
  }
};

// A source whose elements are pairs of bfloat16, as the bits of a float (see RegisterTile). A pair
// is the number at an offset and the number `distance` behind it. If has_partner is false, the
// second number is 0.
struct PairsApart {
  const BFloat16* data;
  int64_t distance;
  bool has_partner = true;

  PairsApart operator+(int64_t offset) const { return {data + offset, distance, has_partner}; }
  float operator[](int64_t offset) const {
    const uint32_t high = has_partner ? data[offset + distance].x : 0;
    return std::bit_cast<float>(data[offset].x | high << 16);
  }
};
// The same for pairs whose numbers are neighbours. Offsets count pairs.
struct PairsTogether {
  const BFloat16* data;

  PairsTogether operator+(int64_t offset) const { return {data + 2 * offset}; }
  float operator[](int64_t offset) const { return PairsApart{data, 1}[2 * offset]; }
};

// Lanes from `count` on become zero. Source is `const T*`, PairsApart or PairsTogether.
template <int kWidth>
struct PackPanel {
  template <typename Source, typename A>
  static ATROUSX_ALWAYS_INLINE void run(Source source, PanelRows rows, const int64_t* lane_offsets,
                                        int64_t count, A* panel) {
    for (int64_t d = 0; d < rows.depth; ++d) {
      const Source from = source + rows.from[d];
      A* to = panel + rows.row(d, kWidth);
      for (int64_t l = 0; l < count; ++l) to[l] = static_cast<A>(from[lane_offsets[l]]);
      for (int64_t l = count; l < kWidth; ++l) to[l] = A(0);
    }
  }
};

#if defined(__x86_64__)
#pragma GCC diagnostic push
#if !defined(__clang__)
// GCC 12 warns about undefined operands in its own <immintrin.h>.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
namespace avx512 {

#define ATROUSX_AVX512 [[gnu::target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]]

// Loads the elements of `mask` as float32. The others are zero, and their memory is not read.
ATROUSX_AVX512 inline __m512 load(const float* from, __mmask16 mask) {
  return _mm512_maskz_loadu_ps(mask, from);
}
ATROUSX_AVX512 inline __m512i low_bits(const BFloat16* from, __mmask16 mask) {
  return _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, from));
}
ATROUSX_AVX512 inline __m512i high_bits(const BFloat16* from, __mmask16 mask) {
  return _mm512_slli_epi32(low_bits(from, mask), 16);
}
ATROUSX_AVX512 inline __m512 load(const BFloat16* from, __mmask16 mask) {
  return _mm512_castsi512_ps(high_bits(from, mask));
}
ATROUSX_AVX512 inline __m512 load(const Half* from, __mmask16 mask) {
  return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, from));
}

ATROUSX_AVX512 inline __m512 load(PairsApart from, __mmask16 mask) {
  __m512i pairs = low_bits(from.data, mask);
  if (from.has_partner) pairs = _mm512_or_si512(pairs, high_bits(from.data + from.distance, mask));
  return _mm512_castsi512_ps(pairs);
}
ATROUSX_AVX512 inline __m512 load(PairsTogether from, __mmask16 mask) {
  return _mm512_castsi512_ps(_mm512_maskz_loadu_epi32(mask, from.data));
}

// Prefetches the cache line of an element.
template <typename T>
ATROUSX_AVX512 inline void prefetch(const T* at) {
  _mm_prefetch(reinterpret_cast<const char*>(at), _MM_HINT_T0);
}
ATROUSX_AVX512 inline void prefetch(PairsTogether at) { prefetch(at.data); }
ATROUSX_AVX512 inline void prefetch(PairsApart at) {
  prefetch(at.data);
  if (at.has_partner) prefetch(at.data + at.distance);
}

// Returns the mask of the first `count` of 16 lanes. `count` may be negative or above 16.
ATROUSX_AVX512 inline __mmask16 first_lanes(int64_t count) {
  return count >= 16 ? 0xffff : count <= 0 ? 0 : static_cast<__mmask16>((1u << count) - 1);
}

// Joins the lower or the upper halves of each quarter of a and b.
ATROUSX_AVX512 inline __m512 low(__m512 a, __m512 b) {
  return _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(a), _mm512_castps_pd(b)));
}
ATROUSX_AVX512 inline __m512 high(__m512 a, __m512 b) {
  return _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(a), _mm512_castps_pd(b)));
}

// Replaces transpose_lanes (cpu/transpose.h), for which GCC would spill registers in the loops
// below.
ATROUSX_AVX512 inline void transpose(__m512 (&r)[16]) {
  __m512 t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
  }
  // After this loop quarter q of r[4 i + j] holds column 4 q + j of rows 4 i to 4 i + 3.
  for (int i = 0; i < 16; i += 4) {
    r[i] = low(t[i], t[i + 2]);
    r[i + 1] = high(t[i], t[i + 2]);
    r[i + 2] = low(t[i + 1], t[i + 3]);
    r[i + 3] = high(t[i + 1], t[i + 3]);
  }
  for (int j = 0; j < 4; ++j) {
    const __m512 even_top = _mm512_shuffle_f32x4(r[j], r[4 + j], 0x88);
    const __m512 odd_top = _mm512_shuffle_f32x4(r[j], r[4 + j], 0xdd);
    const __m512 even_bottom = _mm512_shuffle_f32x4(r[8 + j], r[12 + j], 0x88);
    const __m512 odd_bottom = _mm512_shuffle_f32x4(r[8 + j], r[12 + j], 0xdd);
    t[j] = _mm512_shuffle_f32x4(even_top, even_bottom, 0x88);
    t[8 + j] = _mm512_shuffle_f32x4(even_top, even_bottom, 0xdd);
    t[4 + j] = _mm512_shuffle_f32x4(odd_top, odd_bottom, 0x88);
    t[12 + j] = _mm512_shuffle_f32x4(odd_top, odd_bottom, 0xdd);
  }
  for (int i = 0; i < 16; ++i) r[i] = t[i];
}

// Up to 16 lanes as runs of neighbours in memory. Lane l of run r is at offsets[r] + l.
struct LaneRuns {
  int count = 0;
  __mmask16 masks[16] = {};
  int64_t offsets[16] = {};

  LaneRuns(const int64_t* lane_offsets, int64_t lanes) {
    for (int64_t l = 0; l < lanes; ++l) {
      if (l == 0 || lane_offsets[l] != lane_offsets[l - 1] + 1) {
        masks[count] = 0;
        offsets[count++] = lane_offsets[l] - l;
      }
      masks[count - 1] |= static_cast<__mmask16>(1u << l);
    }
  }
};

// Returns how many rows from d on are neighbours in the source, at most 16.
inline int64_t depth_run(const PanelRows& rows, int64_t d) {
  const int64_t most = std::min<int64_t>(16, rows.depth - d);
  int64_t run = 1;
  while (run < most && rows.from[d + run] == rows.from[d] + run) ++run;
  return run;
}

// Packs lanes that are neighbours in memory. Lanes from `count` on become zero.
template <int kWidth, typename Source>
ATROUSX_AVX512 void pack_neighbours(Source source, PanelRows rows, int64_t first_lane,
                                    int64_t count, float* panel) {
  for (int64_t d = 0; d < rows.depth; ++d) {
    const Source from = source + rows.from[d] + first_lane;
    float* to = panel + rows.row(d, kWidth);
    for (int64_t l = 0; l < kWidth; l += 16)
      _mm512_mask_storeu_ps(to + l, first_lanes(kWidth - l),
                            load(from + l, first_lanes(count - l)));
  }
}

// Packs at most 16 lanes of a panel that is kWidth wide. Writes `stored` lanes, of which those from
// `count` on become zero.
template <int kWidth, typename Source>
ATROUSX_AVX512 void pack_lanes(Source source, PanelRows rows, const int64_t* lane_offsets,
                               int64_t count, int64_t stored, float* panel) {
  const __mmask16 written = first_lanes(stored);
  constexpr int kFewRuns = 4;       // loading so few runs costs less than a transposition
  constexpr int64_t kLeastRun = 4;  // with fewer rows a transposition does not pay
  constexpr int64_t kAhead = 12;    // rows to prefetch ahead
  const LaneRuns runs(lane_offsets, count);
  for (int64_t d = 0; d < rows.depth;) {
    const int64_t depth = runs.count <= kFewRuns ? 1 : depth_run(rows, d);
    if (depth >= kLeastRun) {
      __m512 r[16];
      const __mmask16 mask = first_lanes(depth);
      const Source from = source + rows.from[d];
      for (int64_t l = 0; l < 16; ++l)
        r[l] = l < count ? load(from + lane_offsets[l], mask) : _mm512_setzero_ps();
      transpose(r);
      for (int64_t i = 0; i < 16; ++i)
        if (i < depth) _mm512_mask_storeu_ps(panel + rows.row(d + i, kWidth), written, r[i]);
      d += depth;
    } else {
      const Source from = source + rows.from[d];
      // A hardware prefetcher does not predict rows that are far apart.
      const Source ahead = source + rows.from[std::min(d + kAhead, rows.depth - 1)];
      prefetch(ahead + runs.offsets[0]);
      if (runs.count > 1) prefetch(ahead + (runs.offsets[runs.count - 1] + count));
      __m512 v = load(from + runs.offsets[0], runs.masks[0]);
      for (int r = 1; r < runs.count; ++r)
        v = _mm512_or_ps(v, load(from + runs.offsets[r], runs.masks[r]));
      _mm512_mask_storeu_ps(panel + rows.row(d++, kWidth), written, v);
    }
  }
}

// Packs `count` lanes. Writes kWidth lanes, of which those from `count` on become zero.
template <int kWidth, typename Source>
void pack_panel(Source source, PanelRows rows, const int64_t* lane_offsets, int64_t count,
                float* panel) {
  int64_t neighbours = 1;
  while (neighbours < count && lane_offsets[neighbours] == lane_offsets[0] + neighbours)
    ++neighbours;
  if (neighbours >= count)
    return pack_neighbours<kWidth>(source, rows, count > 0 ? lane_offsets[0] : 0, count, panel);
  for (int64_t l = 0; l < kWidth; l += 16)
    pack_lanes<kWidth>(source, rows, lane_offsets + l, std::clamp<int64_t>(count - l, 0, 16),
                       std::min<int64_t>(kWidth - l, 16), panel + l);
}

}  // namespace avx512
#pragma GCC diagnostic pop
#endif

template <int kWidth, typename Source, typename A>
void pack_panel(Source source, PanelRows rows, const int64_t* lane_offsets, int64_t count,
                A* panel) {
#if defined(__x86_64__)
  if constexpr (std::is_same_v<A, float>) {
    if (cpu_isa() == CpuIsa::kAvx512)
      return avx512::pack_panel<kWidth>(source, rows, lane_offsets, count, panel);
  }
#endif
  run_best<PackPanel<kWidth>>(source, rows, lane_offsets, count, panel);
}

}  // namespace atrousx
