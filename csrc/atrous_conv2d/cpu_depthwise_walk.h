// Depthwise forward and grad-input on the CPU in channels_last, for rows of three taps and unit
// steps: what a pixel holds is loaded once a row for the three destinations that it is summed into.
//
// A walk goes along the pixels of a row that lie the dilation apart, with a few channels, whose
// weights stay in registers. At every step it adds what it finds to three sums, of the
// destinations to which this is the first tap, the second and the third, and stores the last one: a
// load and a third of a store for three multiply-adds where SumPixelTaps takes four loads.
//
// A task's rows lie the dilation apart, too, and it goes through them with a part of the channels:
// two of a row's three lines are then still in L2, whatever the dilation. The third is prefetched
// while the row before is summed.
#pragma once

#include <vector>

#include "../cpu_lanes.h"
#include "../tensor.h"
#include "cpu_depthwise.h"
#include "plan.h"

namespace atrousx {

// What one load brings of T, and how it lies in vectors of the accumulation type: of a half type
// the even elements and the odd ones, which takes no permutation.
template <typename T, int kLanes>
struct Strip {
  using A = Accumulate<T>;
  using Vector = Lanes<A, kLanes>;
  static constexpr int kVectors = sizeof(A) / sizeof(T), kElements = kVectors * kLanes;

  static ATROUSX_ALWAYS_INLINE void load(const T* from, Vector* to) {
    if constexpr (kVectors == 1) {
      to[0] = in_register(load_raw<Vector>(from));
    } else {
      const auto pairs = in_register(load_raw<Lanes<uint32_t, kLanes>>(from));
      to[0] = HalfBits<kLanes>::widen_even(pairs, T{});
      to[1] = HalfBits<kLanes>::widen_odd(pairs, T{});
    }
  }
  static ATROUSX_ALWAYS_INLINE void store(T* to, const Vector* from) {
    if constexpr (kVectors == 1)
      *reinterpret_cast<Vector*>(to) = from[0];
    else
      *reinterpret_cast<Lanes<uint32_t, kLanes>*>(to) =
          HalfBits<kLanes>::round_pairs(from[0], from[1], T{});
  }
};

// The channels of a walk: two vectors of them, or one where that fills half of the registers with
// the weights of nine taps.
template <typename T>
struct WalkWidth {
  int parts, vectors, lanes;  // strips, vectors of a strip, lanes of a vector

  constexpr explicit WalkWidth(int bytes)
      : parts(bytes == 64 && sizeof(T) >= sizeof(float) ? 2 : 1),
        vectors(sizeof(Accumulate<T>) / sizeof(T)),
        lanes(bytes / static_cast<int>(sizeof(Accumulate<T>))) {}

  constexpr int channels() const { return parts * vectors * lanes; }
};

// Destinations of a row that lie the dilation apart, and the steps at which there is a source: at
// step j destination i finds the source of its tap j - i.
struct Phase {
  int64_t column, count;  // of destinations
  int64_t source;         // the column of step 0, which may lie before the first
  int64_t first, end;     // steps
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
  int64_t live, line_step;  // lines with live taps, and how far apart they are
  int64_t ahead;            // from the first of them to the line that the next row needs, too
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
    Vector sums_[3][kVectors];  // sums_[t]: of the destination to which the step's source is tap t

   public:
    ATROUSX_ALWAYS_INLINE Sums(const WalkRow<T>& row, const WalkWeights<A>& weights)
        : row_(row), bias_(weights.bias) {
      for (int r = 0; r < kLines; ++r)
        for (int t = 0; t < 3; ++t)
          for (int v = 0; v < kVectors; ++v)
            weights_[r][t][v] =
                load_raw<Vector>(weights.taps + ((r * 3 + t) * kVectors + v) * kLanes);
    }

    // Sums of destinations before the first one and past the last are dropped.
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
    // Steps without a source.
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

// The rows of an axis in an order in which those that lie `step` apart follow one another.
inline int64_t row_of_phase(int64_t i, int64_t rows, int64_t step) {
  const int64_t least = rows / step, longer = rows % step;  // so many phases have a row more
  const int64_t in_longer = longer * (least + 1);
  if (i < in_longer) return i % (least + 1) * step + i / (least + 1);
  return (i - in_longer) % least * step + longer + (i - in_longer) / least;
}

// All of a call that its tasks share.
template <typename T>
class PixelWalks {
  using A = Accumulate<T>;
  // Of a pixel. What a row of a task needs, four lines of 65 such pixels, fills a third of L2.
  static constexpr int64_t kChunkBytes = 1536;

 public:
  PixelWalks(const GatherShape& shape, const T* source, const T* weight, const WeightStrides& ws,
             DirectEnd<T> ending, T* destination)
      : shape_(shape),
        source_(source),
        weight_(weight),
        ws_(ws),
        ending_(ending),
        destination_(destination),
        phases_(phases_of(shape.columns)),
        row_step_(min_of(std::abs(shape.rows.step), shape.rows.destinations)) {
    const int64_t whole = shape.groups / channels_ * channels_;
    chunks_ = ceil_div<int64_t>(whole * sizeof(T), kChunkBytes);
  }

  static bool fit(const GatherShape& shape) {
    const auto unit = [](const TapAxis& axis) { return axis.scale == 1 && axis.divisor == 1; };
    return unit(shape.rows) && unit(shape.columns) && shape.columns.taps == 3 &&
           shape.rows.taps <= 3 && shape.groups >= WalkWidth<T>(vector_bytes()).channels();
  }

  void run() const {
    const int64_t rows = shape_.batch * shape_.rows.destinations;
    const int64_t work = shape_.columns.destinations * shape_.groups / chunks_ * shape_.taps();
    torch::stable::parallel_for(0, chunks_ * rows, rows_per_task(work),
                                [&](int64_t begin, int64_t end) {
                                  std::vector<A> packed;
                                  for (int64_t i = begin; i < end; ++i) {
                                    const Chunk own = chunk(i / rows);
                                    if (i == begin || i % rows == 0) pack(own, packed);
                                    sum_row(own, i % rows, packed.data());
                                  }
                                });
  }

 private:
  // Channels [first, first + count).
  struct Chunk {
    int64_t first, count;
  };

  Chunk chunk(int64_t i) const {
    const int64_t all = shape_.groups / channels_, first = i * all / chunks_ * channels_;
    const int64_t end = i + 1 < chunks_ ? (i + 1) * all / chunks_ * channels_ : shape_.groups;
    return {first, end - first};
  }
  int64_t walks(const Chunk& chunk) const { return ceil_div(chunk.count, channels_); }
  // The first channel of a walk; the last walk may overlap the one before it.
  int64_t walk(const Chunk& chunk, int64_t w) const {
    return chunk.first + min_of(w * channels_, chunk.count - channels_);
  }

  // To [walks][taps and a bias][vectors][lanes].
  void pack(const Chunk& chunk, std::vector<A>& packed) const {
    packed.resize(walks(chunk) * (shape_.taps() + 1) * channels_);
    A* to = packed.data();
    const auto each = [&](auto value) {
      for (int part = 0; part < width_.parts; ++part)
        for (int v = 0; v < width_.vectors; ++v)
          for (int lane = 0; lane < width_.lanes; ++lane)
            *to++ = value((part * width_.lanes + lane) * width_.vectors + v);
    };
    const bool mirrored = shape_.columns.step < 0;
    for (int64_t w = 0; w < walks(chunk); ++w) {
      const int64_t c = walk(chunk, w);
      for (int64_t kh = 0; kh < shape_.rows.taps; ++kh)
        for (int64_t kw = 0; kw < 3; ++kw) {
          const T* from = weight_ + c * ws_.group + kh * ws_.h + (mirrored ? 2 - kw : kw) * ws_.w;
          each([&](int64_t i) { return static_cast<A>(from[i * ws_.group]); });
        }
      each([&](int64_t i) { return ending_.first(c + i); });
    }
  }

  // The row of the map that destination row `row` reads last, or -1.
  int64_t last_line(int64_t row) const {
    int64_t last = -1;
    for (int64_t kh = 0; kh < shape_.rows.taps; ++kh)
      last = max_of(last, shape_.rows.source(row, kh));
    return last;
  }

  void sum_row(const Chunk& chunk, int64_t i, const A* packed) const {
    const TapAxis &rows = shape_.rows, &columns = shape_.columns;
    const int64_t n = i / rows.destinations, next = (i + 1) % rows.destinations;
    const int64_t row = row_of_phase(i % rows.destinations, rows.destinations, row_step_);
    const int64_t next_row = row_of_phase(next, rows.destinations, row_step_);
    const int64_t line_size = columns.sources * shape_.groups;
    const int64_t row_size = columns.destinations * shape_.groups;
    int64_t kh = 0, live = 0;
    while (kh < rows.taps && rows.source(row, kh) < 0) ++kh;
    while (kh + live < rows.taps && rows.source(row, kh + live) >= 0) ++live;
    const int64_t line = live > 0 ? rows.source(row, kh) : 0;
    for (int64_t w = 0; w < walks(chunk); ++w, packed += (shape_.taps() + 1) * channels_) {
      const int64_t c = walk(chunk, w);
      const bool last = w + 1 == walks(chunk);
      const int64_t next_out =
          last ? (next_row - row) * row_size + chunk.first - c : walk(chunk, w + 1) - c;
      run_with_lanes<WalkColumns>(
          WalkRow<T>{source_ + (n * rows.sources + line) * line_size + c,
                     destination_ + (n * rows.destinations + row) * row_size + c, shape_.groups,
                     std::abs(columns.step), live, rows.step * line_size,
                     (last_line(next_row) - line) * line_size, next_out, ending_.relu},
          WalkWeights<A>{packed + kh * 3 * channels_, packed + shape_.taps() * channels_},
          phases_.data(), static_cast<int64_t>(phases_.size()));
    }
  }

  const WalkWidth<T> width_{vector_bytes()};
  const int64_t channels_ = width_.channels();  // of a walk
  const GatherShape& shape_;
  const T *source_, *weight_;
  const WeightStrides& ws_;
  const DirectEnd<T> ending_;
  T* const destination_;
  const std::vector<Phase> phases_;
  const int64_t row_step_;
  int64_t chunks_;
};

}  // namespace atrousx
