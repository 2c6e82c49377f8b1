// Resampling on the CPU. An output row lies between two input rows, and an output of a row lies
// between two inputs of that row.
#pragma once

#include "upsample_bilinear2d/cpu/axis.h"
#include "upsample_bilinear2d/cpu/blend.h"

namespace atrousx {

// How a row of numbers is resampled along itself. Neighbouring outputs read neighbouring inputs. So
// a vector of outputs takes its inputs from one or two vectors, by a permutation that is the same
// for every row. If outputs lie further apart, each reads its own two inputs. In pixels of a few
// channels each number is treated the same way; its right neighbour is `pixel` numbers further on.
template <typename A>
struct ColumnGroups {
  using Index = std::conditional_t<sizeof(A) == 8, int64_t, int32_t>;
  int64_t pixel, in, out;  // in and out count numbers
  int64_t lanes;
  int registers;               // vectors that the inputs of a group lie in; 0: read one by one
  std::vector<int64_t> lower;  // [out]
  std::vector<int64_t> base;   // [groups] first input of the group
  std::vector<Index> index;    // [groups * lanes] lower inputs, relative to the base
  std::vector<A> weight;       // [groups * lanes]

  ColumnGroups(const CpuAxis<A>& axis, int64_t pixel_, int bytes)
      : pixel(pixel_),
        in(axis.in * pixel),
        out(axis.out * pixel),
        lanes(bytes / static_cast<int64_t>(sizeof(A))),
        registers(0) {
    const int64_t groups = ceil_div(out, lanes);
    lower.resize(out);
    weight.resize(groups * lanes);
    for (int64_t o = 0, j = 0; o < axis.out; ++o)
      for (int64_t c = 0; c < pixel; ++c, ++j) {
        lower[j] = axis.lower[o] * pixel + c;
        weight[j] = axis.weight[o];
      }
    base.resize(groups);
    int64_t span = 0;
    for (int64_t g = 0; g < groups; ++g) {
      int64_t least = lower[g * lanes], most = least;
      for (int64_t j = g * lanes; j < min_of(out, (g + 1) * lanes); ++j) {
        least = min_of(least, lower[j]);
        most = max_of(most, lower[j]);
      }
      base[g] = least;
      span = max_of(span, most - least + 1);
    }
    // Before SSSE3 a vector of 16 bytes has no such permutation.
    if (bytes == 16 || span > 2 * lanes) return;
    registers = span > lanes ? 2 : 1;
    index.resize(groups * lanes);
    for (int64_t g = 0; g < groups; ++g)
      for (int64_t j = g * lanes; j < min_of(out, (g + 1) * lanes); ++j)
        index[j] = static_cast<Index>(lower[j] - base[g]);
  }

  int64_t padded_out() const { return static_cast<int64_t>(weight.size()); }
  // How far a group may reach past the end of its row.
  int64_t reach() const { return 2 * lanes + pixel; }
  // Numbers that a task needs besides its results.
  int64_t room() const { return 2 * padded_out() + in + reach(); }
};

template <typename T>
struct ForwardPlan {
  using A = Accumulate<T>;
  const T* input;  // [N, C, H, W] or [N, H, W, C]
  T* output;       // [N, C, OH, OW] or [N, OH, OW, C]
  int64_t pixel;   // neighbouring numbers that are resampled alike: 1 or C
  CpuAxis<A> rows, columns;

  // Numbers that a task needs besides its results if pixels fill vectors.
  int64_t room() const { return (columns.in + 1) * pixel; }
};

// Computes output rows [begin, end) of maps whose pixels are shorter than a vector.
//
// When it enlarges a map, it resamples every input row along itself once, and blends two such rows
// for each output row. When it shrinks a map, it blends two input rows first, because each is read
// only once.
template <int kBytes>
struct ForwardNarrow {
  template <typename T, typename A>
  static ATROUSX_ALWAYS_INLINE void run(const ForwardPlan<T>* plan, const ColumnGroups<A>* columns,
                                        A* room, int64_t begin, int64_t end) {
    const int64_t out = columns->out, height = plan->rows.out;
    // Two resampled input rows and, in `source`, a widened input row. `held` has the numbers of the
    // two.
    A *line[2] = {room, room + columns->padded_out()}, *source = line[1] + columns->padded_out();
    int64_t held[2] = {-1, -1};
    for (int64_t j = 0; j < columns->reach(); ++j) source[columns->in + j] = A(0);
    // If outputs lie far apart, most of a blended row would not be read.
    const bool blend_first = plan->rows.in >= height && columns->in <= 16 * out;
    for (int64_t r = begin; r < end; ++r) {
      const int64_t wanted = r / height * plan->rows.in + plan->rows.lower[r % height];
      const A weight = plan->rows.weight[r % height];
      T* to = plan->output + r * out;
      if (blend_first) {
        const T* top = plan->input + wanted * columns->in;
        Rows<kBytes>::blend(top, weight > A(0) ? top + columns->in : top, weight, source,
                            columns->in);
        along(columns, static_cast<const A*>(source), line[0]);
        Rows<kBytes>::convert(static_cast<const A*>(line[0]), to, out);
        continue;
      }
      if (held[1] == wanted) {
        std::swap(line[0], line[1]);
        std::swap(held[0], held[1]);
      }
      if (held[0] != wanted) resample(plan->input, wanted, columns, source, line[0]);
      held[0] = wanted;
      if (!(weight > A(0))) {
        Rows<kBytes>::convert(static_cast<const A*>(line[0]), to, out);
        continue;
      }
      if (held[1] != wanted + 1) resample(plan->input, wanted + 1, columns, source, line[1]);
      held[1] = wanted + 1;
      Rows<kBytes>::blend(static_cast<const A*>(line[0]), static_cast<const A*>(line[1]), weight,
                          to, out);
    }
  }

  template <typename T, typename A>
  static ATROUSX_ALWAYS_INLINE void resample(const T* input, int64_t row,
                                             const ColumnGroups<A>* columns, A* source, A* line) {
    const T* from = input + row * columns->in;
    if (columns->registers == 0) return one_by_one(columns, from, line);
    Rows<kBytes>::convert(from, source, columns->in);
    along(columns, static_cast<const A*>(source), line);
  }

  // Resamples one row. It must be allowed to read `source` past its end.
  template <typename A>
  static ATROUSX_ALWAYS_INLINE void along(const ColumnGroups<A>* columns, const A* source,
                                          A* line) {
    if (columns->registers == 0) return one_by_one(columns, source, line);
    if (columns->registers == 1) return permuted<1>(columns, source, line);
    permuted<2>(columns, source, line);
  }

  template <typename T, typename A>
  static ATROUSX_ALWAYS_INLINE void one_by_one(const ColumnGroups<A>* columns, const T* from,
                                               A* line) {
    const int64_t* lower = columns->lower.data();
    const A* weight = columns->weight.data();
    const int64_t out = columns->out, pixel = columns->pixel;
    for (int64_t j = 0; j < out; ++j) {
      const int64_t next = weight[j] > A(0) ? pixel : 0;
      line[j] = (A(1) - weight[j]) * static_cast<A>(from[lower[j]]) +
                weight[j] * static_cast<A>(from[lower[j] + next]);
    }
  }

  template <int kRegisters, typename A>
  static ATROUSX_ALWAYS_INLINE void permuted(const ColumnGroups<A>* columns, const A* source,
                                             A* line) {
    constexpr int kLanes = kLanesIn<kBytes, A>;
    using Index = typename ColumnGroups<A>::Index;
    const int64_t *base = columns->base.data(), pixel = columns->pixel;
    const Index* indices = columns->index.data();
    const A* weights = columns->weight.data();
    const auto groups = static_cast<int64_t>(columns->base.size());
    for (int64_t g = 0; g < groups; ++g) {
      const A *left = source + base[g], *right = left + pixel;
      const auto index = load_raw<Lanes<Index, kLanes>>(indices + g * kLanes);
      const auto weight = load_lanes<kLanes>(weights + g * kLanes);
      // If one vector suffices, the second is never used.
      constexpr int kSecond = kRegisters == 2 ? kLanes : 0;
      const auto l = permute_lanes<kLanes, A, Index>(load_lanes<kLanes>(left),
                                                     load_lanes<kLanes>(left + kSecond), index);
      const auto r = permute_lanes<kLanes, A, Index>(load_lanes<kLanes>(right),
                                                     load_lanes<kLanes>(right + kSecond), index);
      store_lanes<kLanes>(line + g * kLanes, (A(1) - weight) * l + weight * r);
    }
  }
};

// Computes output rows [begin, end) of maps whose pixels fill a vector or more. When it enlarges a
// map, it blends the two input rows first, into a row short enough for an inner cache. Then it
// computes the outputs between two pixels of this row while both are in registers.
template <int kBytes>
struct ForwardWide {
  template <typename T, typename A>
  static ATROUSX_ALWAYS_INLINE void run(const ForwardPlan<T>* plan, A* room, int64_t begin,
                                        int64_t end) {
    const int64_t pixel = plan->pixel, height = plan->rows.out;
    const int64_t in_row = plan->columns.in * pixel;
    for (int64_t j = 0; j < pixel; ++j) room[in_row + j] = A(0);
    for (int64_t r = begin; r < end; ++r) {
      const A weight = plan->rows.weight[r % height];
      const int64_t row = r / height * plan->rows.in + plan->rows.lower[r % height];
      const T* top = plan->input + row * in_row;
      const T* bottom = weight > A(0) ? top + in_row : top;
      T* to = plan->output + r * plan->columns.out * pixel;
      if (plan->columns.in > plan->columns.out) {
        four_corners(plan, top, bottom, weight, to);
      } else {
        Rows<kBytes>::blend(top, bottom, weight, room, in_row);
        between(plan, static_cast<const A*>(room), to);
      }
    }
  }

  template <typename T, typename A>
  static ATROUSX_ALWAYS_INLINE void between(const ForwardPlan<T>* plan, const A* row, T* to) {
    constexpr int kLanes = kLanesIn<kBytes, A>;
    const int64_t pixel = plan->pixel;
    if (pixel <= kLanes) return between_pixels<1>(plan, row, to);
    if (pixel <= 2 * kLanes) return between_pixels<2>(plan, row, to);
    if (pixel <= 4 * kLanes) return between_pixels<4>(plan, row, to);
    const int64_t *lower = plan->columns.lower.data(), out = plan->columns.out;
    const A* weights = plan->columns.weight.data();
    for (int64_t o = 0; o < out; ++o) {
      const A* left = row + lower[o] * pixel;
      if (weights[o] > A(0))
        Rows<kBytes>::blend(left, left + pixel, weights[o], to + o * pixel, pixel);
      else
        Rows<kBytes>::convert(left, to + o * pixel, pixel);
    }
  }

  // For pixels of up to kVectors vectors. The last vectors end with the pixel.
  template <int kVectors, typename T, typename A>
  static ATROUSX_ALWAYS_INLINE void between_pixels(const ForwardPlan<T>* plan, const A* row,
                                                   T* to) {
    constexpr int kLanes = kLanesIn<kBytes, A>;
    const int64_t pixel = plan->pixel, in = plan->columns.in;
    const int64_t* start = plan->columns.start.data();
    const A* weights = plan->columns.weight.data();
    int64_t at[kVectors];
    for (int v = 0; v < kVectors; ++v) at[v] = min_of<int64_t>(v * kLanes, pixel - kLanes);
    for (int64_t i = 0; i < in; ++i) {
      Lanes<A, kLanes> left[kVectors], right[kVectors];
      for (int v = 0; v < kVectors; ++v) {
        left[v] = load_lanes<kLanes>(row + i * pixel + at[v]);
        right[v] = load_lanes<kLanes>(row + (i + 1) * pixel + at[v]);
      }
      for (int64_t o = start[i]; o < start[i + 1]; ++o) {
        const A weight = weights[o], rest = A(1) - weight;
        for (int v = 0; v < kVectors; ++v)
          store_lanes<kLanes>(to + o * pixel + at[v], rest * left[v] + weight * right[v]);
      }
    }
  }

  template <typename T, typename A>
  static ATROUSX_ALWAYS_INLINE void four_corners(const ForwardPlan<T>* plan, const T* top,
                                                 const T* bottom, A weight, T* to) {
    constexpr int kLanes = kLanesIn<kBytes, A>;
    const int64_t pixel = plan->pixel, out = plan->columns.out, last = plan->columns.in - 1;
    const int64_t* lower = plan->columns.lower.data();
    const A* weights = plan->columns.weight.data();
    const A rest = A(1) - weight;
    for (int64_t o = 0; o < out; ++o) {
      const int64_t left = lower[o] * pixel, right = min_of(lower[o] + 1, last) * pixel;
      const A wx = weights[o], rx = A(1) - wx;
      for (int64_t c = 0; c < pixel; c += kLanes) {
        const int64_t at = min_of(c, pixel - kLanes);
        const auto above =
            rx * load_lanes<kLanes>(top + left + at) + wx * load_lanes<kLanes>(top + right + at);
        const auto below = rx * load_lanes<kLanes>(bottom + left + at) +
                           wx * load_lanes<kLanes>(bottom + right + at);
        store_lanes<kLanes>(to + o * pixel + at, rest * above + weight * below);
      }
    }
  }
};

}  // namespace atrousx
