// Depthwise forward and grad-input on the CPU in channels_last, for rows of three taps and unit
// steps. A row loads a pixel once for the three destinations that use it.
//
// A walk goes along the pixels of a row that lie the dilation apart, for a few channels. The
// weights of these stay in registers. Each step adds the pixel's products to three sums: of the
// destinations to which the pixel is the first, the second and the third tap. Then it stores the
// sum that is complete. This takes one load and a third of a store for three multiply-adds;
// SumPixelTaps takes four loads.
#pragma once

#include <vector>

#include "atrous_conv2d/cpu/depthwise/channels_last.h"
#include "atrous_conv2d/plan.h"
#include "cpu/lanes.h"

namespace atrousx {

// The elements that one load reads, as vectors of the accumulation type. For a half type, one
// vector has the even elements and one the odd ones, because this needs no permutation.
template <typename T, int kLanes>
struct Strip {
  using A = Accumulate<T>;
  using Vector = Lanes<A, kLanes>;
  static constexpr int kVectors = sizeof(A) / sizeof(T), kElements = kVectors * kLanes;
  // For a half type: two neighbours per lane, with the alignment of one element.
  using Pairs = LanesAt<uint32_t, kLanes, alignof(T)>;

  static ATROUSX_ALWAYS_INLINE void load(const T* from, Vector* to) {
    if constexpr (kVectors == 1) {
      to[0] = in_register(load_raw<Vector>(from));
    } else {
      const Pairs pairs = in_register(load_raw<Pairs>(from));
      to[0] = HalfBits<kLanes>::widen_even(pairs, T{});
      to[1] = HalfBits<kLanes>::widen_odd(pairs, T{});
    }
  }
  static ATROUSX_ALWAYS_INLINE void store(T* to, const Vector* from) {
    if constexpr (kVectors == 1)
      *reinterpret_cast<Vector*>(to) = from[0];
    else
      *reinterpret_cast<Pairs*>(to) = HalfBits<kLanes>::round_pairs(from[0], from[1], T{});
  }
};

// The channels of a walk: two vectors, or one if two and the weights of nine taps would need too
// many registers. With one, the weights fill half of the registers.
template <typename T>
struct WalkWidth {
  int parts, vectors, lanes;  // strips, vectors of a strip, lanes of a vector

  constexpr explicit WalkWidth(int bytes)
      : parts(bytes == 64 && sizeof(T) >= sizeof(float) ? 2 : 1),
        vectors(sizeof(Accumulate<T>) / sizeof(T)),
        lanes(bytes / static_cast<int>(sizeof(Accumulate<T>))) {}

  constexpr int channels() const { return parts * vectors * lanes; }
};

// Destinations of a row that lie the dilation apart, and the steps at which there is a source. At
// step j destination i reads the source for its tap j - i.
struct Phase {
  int64_t column, count;  // of the destinations
  int64_t source;         // column of the source at step 0; it may lie before the map
  int64_t first, end;     // steps with a source
};

inline std::vector<Phase> phases_of(const TapAxis& axis) {
  const int64_t step = std::abs(axis.step);
  const int64_t offset = axis.offset + (axis.step < 0 ? (axis.taps - 1) * axis.step : 0);
  std::vector<Phase> phases;
  for (int64_t p = 0; p < min_of(step, axis.destinations); ++p) {
    const int64_t source = p + offset, count = ceil_div(axis.destinations - p, step);
    const int64_t steps =
        source < axis.sources ? min_of(ceil_div(axis.sources - source, step), count + 2) : 0;
    const int64_t first = source < 0 ? ceil_div(-source, step) : 0;
    phases.push_back({p, count, source, min_of(first, steps), steps});
  }
  return phases;
}

// A row of destinations and the lines of the map that it reads.
template <typename T>
struct WalkRow {
  const T* source;  // [columns][all channels], of the first line with live taps
  T* out;           // [columns][all channels]
  int64_t channels, dilation;
  int64_t live, line_step;  // number of lines with live taps, and the distance between them
  int64_t ahead;            // from the first of these to the last line that the next row reads
  int64_t next_out;         // from the channels written to those that the next walk writes
  bool relu;
};

template <typename A>
struct WalkWeights {
  const A* taps;  // [live][3][vectors][lanes]
  const A* bias;  // [vectors][lanes]
};

template <int kBytes>
struct WalkColumns {
  template <typename T, typename A>
  static ATROUSX_ALWAYS_INLINE void run(WalkRow<T> row, WalkWeights<A> weights, const Phase* phases,
                                        int64_t count) {
    if (row.live == 3) return all<3>(row, weights, phases, count);
    if (row.live == 2) return all<2>(row, weights, phases, count);
    all<1>(row, weights, phases, count);
  }

 private:
  template <int kLines, typename T, typename A>
  static ATROUSX_ALWAYS_INLINE void all(const WalkRow<T>& row, const WalkWeights<A>& weights,
                                        const Phase* phases, int64_t count) {
    Sums<T, kLines> sums(row, weights);
    for (const Phase* phase = phases; phase < phases + count; ++phase) sums.along(*phase);
  }

  template <typename T, int kLines>
  class Sums {
    using A = Accumulate<T>;
    static constexpr WalkWidth<T> kWidth{kBytes};
    static constexpr int kParts = kWidth.parts, kLanes = kWidth.lanes;
    static constexpr int kVectors = kParts * kWidth.vectors;
    using Part = Strip<T, kLanes>;
    using Vector = typename Part::Vector;

    const WalkRow<T>& row_;
    const A* const bias_;
    Vector weights_[kLines][3][kVectors];
    Vector sums_[3][kVectors];  // sums_[t]: the destination for which the step's source is tap t

   public:
    ATROUSX_ALWAYS_INLINE Sums(const WalkRow<T>& row, const WalkWeights<A>& weights)
        : row_(row), bias_(weights.bias) {
      for (int r = 0; r < kLines; ++r)
        for (int t = 0; t < 3; ++t)
          for (int v = 0; v < kVectors; ++v)
            weights_[r][t][v] =
                load_raw<Vector>(weights.taps + ((r * 3 + t) * kVectors + v) * kLanes);
    }

    // Goes along a phase. Sums of destinations before the first and after the last are dropped.
    ATROUSX_ALWAYS_INLINE void along(const Phase& phase) {
      const int64_t step = row_.dilation * row_.channels;
      const int64_t end = row_.live > 0 ? phase.end : 0, first = min_of(phase.first, end);
      const T* source = row_.source + phase.source * row_.channels + first * step;
      T* out = row_.out + phase.column * row_.channels - 2 * step;
      for (int v = 0; v < kVectors; ++v) sums_[1][v] = sums_[2][v] = Vector{};
      begin();
      pass(out, 0, first, step);
      int64_t j = first;
      for (; j < min_of<int64_t>(2, end); ++j, source += step) {
        add(source);
        advance();
      }
      for (; j < end; ++j, source += step) {
        add(source);
        store(out + j * step);
        advance();
      }
      pass(out, j, phase.count + 2, step);
    }

   private:
    // Takes steps that have no source.
    ATROUSX_ALWAYS_INLINE void pass(T* out, int64_t j, int64_t end, int64_t step) {
      for (; j < end; ++j) {
        if (j >= 2) store(out + j * step);
        advance();
      }
    }

    ATROUSX_ALWAYS_INLINE void begin() {
      for (int v = 0; v < kVectors; ++v) sums_[0][v] = load_raw<Vector>(bias_ + v * kLanes);
    }

    ATROUSX_ALWAYS_INLINE void advance() {
      for (int v = 0; v < kVectors; ++v) {
        sums_[2][v] = sums_[1][v];
        sums_[1][v] = sums_[0][v];
      }
      begin();
    }

    ATROUSX_ALWAYS_INLINE void add(const T* source) {
      for (int r = 0; r < kLines; ++r) {
        Vector found[kVectors];
        for (int p = 0; p < kParts; ++p)
          Part::load(source + r * row_.line_step + p * Part::kElements, found + p * Part::kVectors);
        for (int t = 2; t >= 0; --t)
          for (int v = 0; v < kVectors; ++v) sums_[t][v] += weights_[r][t][v] * found[v];
      }
      for (int p = 0; p < kParts; ++p)
        __builtin_prefetch(source + row_.ahead + p * Part::kElements, 0, 2);
    }

    ATROUSX_ALWAYS_INLINE void store(T* to) {
      if (row_.relu)
        for (int v = 0; v < kVectors; ++v) sums_[2][v] = at_least(sums_[2][v], Vector{});
      for (int p = 0; p < kParts; ++p) {
        Part::store(to + p * Part::kElements, sums_[2] + p * Part::kVectors);
        __builtin_prefetch(to + row_.next_out + p * Part::kElements, 0, 2);
      }
    }
  };
};

}  // namespace atrousx
