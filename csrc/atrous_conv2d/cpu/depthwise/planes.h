// Depthwise forward and grad-input on the CPU in NCHW. One task owns a strip of a plane. It packs
// the strip with zeros beside its rows (padded_plane.h). Then it sums each row of the destination
// in registers over the live rows of taps, a few vectors at a time, and writes it once. Meanwhile
// it prefetches the data after the strip in memory.
//
// In the grad-input of a strided convolution, columns with different remainders by the stride have
// different taps. Each remainder is summed separately, and the results are interleaved when
// written.
#pragma once

#include <array>

#include "atrous_conv2d/cpu/depthwise/padded_plane.h"
#include "atrous_conv2d/cpu/direct/direct_conv.h"
#include "atrous_conv2d/cpu/gemm/microkernel.h"
#include "cpu/interleave.h"

namespace atrousx {

// A live tap for some rows of a destination.
template <typename A>
struct RowTap {
  int64_t offset;  // in the packed plane, from the first line that a row reads
  A weight;
};

// What all strips share.
template <typename A>
struct PlaneSums {
  // The class of a row, and the first line of the source that the row reads.
  struct Row {
    int64_t of, line;
  };

  GatherShape shape;
  PaddedColumns<A> columns;
  std::vector<AxisClass> classes;
  std::vector<Row> rows;
  std::vector<int64_t> before;  // [residues + 1], the number of live taps of smaller residues
  int64_t strip;                // rows of a plane per task; 0 if packing does not pay
  PaddedPlane source;

  explicit PlaneSums(const GatherShape& s)
      : shape(s), columns(s.columns), classes(axis_classes(s.rows)), rows(s.rows.destinations) {
    const int64_t halo = (s.rows.taps - 1) * std::abs(s.rows.step) / s.rows.divisor;
    strip = columns.dense ? strip_rows(s.rows.destinations, halo, columns.pitch) : 0;
    const int64_t read = std::min(strip * s.rows.scale + halo + 2, s.rows.sources);
    source = {read, s.columns.sources, 1, s.columns.scale, columns.pitch};
    if (!source.is_dense<A>()) strip = 0;
    for (size_t c = 0; c < classes.size(); ++c)
      for (int64_t i = 0; i < classes[c].destinations.count; ++i)
        rows[classes[c].destinations.at(i)] = {
            static_cast<int64_t>(c),
            classes[c].source_first + i * classes[c].source_per_destination};
    for (int64_t r = 0; r <= residues(); ++r)
      before.push_back(std::count_if(columns.taps.begin(), columns.taps.end(),
                                     [&](const ColumnTap& tap) { return tap.residue < r; }));
  }

  // The first line of the source that rows [first, end) read, and the one after the last.
  std::pair<int64_t, int64_t> lines(int64_t first, int64_t end) const {
    const TapAxis& axis = shape.rows;
    const int64_t reach = (axis.taps - 1) * axis.step;
    const int64_t low = axis.numerator(first, 0) + std::min<int64_t>(0, reach);
    const int64_t high = axis.numerator(end - 1, 0) + std::max<int64_t>(0, reach);
    const int64_t begin = std::max<int64_t>(0, low) / axis.divisor;
    return {begin, high < 0 ? begin : std::min(axis.sources, high / axis.divisor + 1)};
  }
  int64_t tap_lists() const { return static_cast<int64_t>(classes.size()) * shape.taps(); }
  int64_t residues() const { return std::min(shape.columns.divisor, shape.columns.destinations); }
  // Elements of the buffer for single residues, which is needed if there are more than two.
  int64_t apart() const { return residues() > 2 ? residues() * columns.pitch : 0; }
};

// Where the taps of a row begin for each residue, and where the last ones end.
template <typename A, int kResidues>
using RowTaps = std::array<const RowTap<A>*, kResidues + 1>;

// The live taps of a row: those of `lines` lines of the filter, residue after residue.
template <typename A>
struct TapList {
  const RowTap<A>* taps;
  int64_t lines;
};

// Some rows of a plane.
template <typename T, typename A>
struct PlaneStrip {
  const T* source;  // [source rows, source columns]
  const A* weight;  // [KH, KW]
  A bias, least;
  int64_t first, end;
  T* destination;  // [rows, columns]
};

template <int kBytes>
struct SumPlaneTaps {
  template <typename T, typename A>
  static ATROUSX_ALWAYS_INLINE void run(const PlaneSums<A>* plan, PlaneStrip<T, A> strip,
                                        A* memory,         // zeros beside rows
                                        RowTap<A>* lists,  // [plan->tap_lists()]
                                        T* apart)          // [plan->apart()]
  {
    const GatherShape& shape = plan->shape;
    const auto [begin, end] = plan->lines(strip.first, strip.end);
    A* source = memory + plan->columns.before();
    PackPlane<kBytes>::run(plan->source, strip.source + begin * shape.columns.sources,
                           std::max<int64_t>(0, end - begin), source);
    list_taps(*plan, strip.weight, lists);
    const int64_t width = shape.columns.destinations, taps = shape.taps();
    const int64_t ahead =
        shape.columns.sources * std::min(shape.rows.scale, shape.rows.sources) / shape.rows.divisor;
    const T* next = strip.source + end * shape.columns.sources;
    T* last = strip.destination + strip.end * width;
    for (int64_t row = strip.first; row < strip.end; ++row, next += ahead) {
      const auto [of, line] = plan->rows[row];
      const TapList<A> live{lists + of * taps, plan->classes[of].taps.count};
      const A* from = source + (line - begin) * plan->columns.pitch;
      T* to = strip.destination + row * width;
      prefetch_next(next, ahead);
      if (plan->residues() == 1)
        sum_row<1>(from, row_taps<1>(*plan, live), strip, width, to, last);
      else if (plan->residues() == 2)
        sum_row<2>(from, row_taps<2>(*plan, live), strip, ceil_div<int64_t>(width, 2), to, last);
      else
        sum_residues(*plan, from, live, strip, apart, to);
    }
  }

 private:
  template <typename A>
  static ATROUSX_ALWAYS_INLINE void list_taps(const PlaneSums<A>& plan, const A* weight,
                                              RowTap<A>* lists) {
    for (const AxisClass& rows : plan.classes) {
      RowTap<A>* next = lists;
      for (int64_t r = 0; r < plan.residues(); ++r)
        for (int64_t i = 0; i < rows.taps.count; ++i)
          for (int64_t k = plan.before[r]; k < plan.before[r + 1]; ++k) {
            const ColumnTap& tap = plan.columns.taps[k];
            *next++ = {i * rows.source_per_tap * plan.columns.pitch +
                           tap.phase * plan.source.phase() + tap.shift,
                       weight[rows.taps.at(i) * plan.shape.columns.taps + tap.tap]};
          }
      lists += plan.shape.taps();
    }
  }

  template <int kResidues, typename A>
  static ATROUSX_ALWAYS_INLINE RowTaps<A, kResidues> row_taps(const PlaneSums<A>& plan,
                                                              const TapList<A>& live,
                                                              int64_t first = 0) {
    RowTaps<A, kResidues> taps;
    for (int r = 0; r <= kResidues; ++r) taps[r] = live.taps + live.lines * plan.before[first + r];
    return taps;
  }

  // Sums the residues of a row one after another, then interleaves them.
  template <typename T, typename A>
  static ATROUSX_ALWAYS_INLINE void sum_residues(const PlaneSums<A>& plan, const A* source,
                                                 const TapList<A>& live,
                                                 const PlaneStrip<T, A>& strip, T* apart, T* to) {
    const int64_t width = plan.shape.columns.destinations, step = plan.shape.columns.divisor;
    for (int64_t r = 0; r < plan.residues(); ++r) {
      const int64_t count = ceil_div(width - r, step);
      T* sums = apart + r * plan.columns.pitch;
      sum_row<1>(source, row_taps<1>(plan, live, r), strip, count, sums, sums + plan.columns.pitch);
      for (int64_t i = 0; i < count; ++i) to[i * step + r] = sums[i];
    }
  }

  // Sums `width` columns of each residue. Vectors may write past the row; the next row overwrites
  // this. Nothing is written from `end` on.
  template <int kResidues, typename T, typename A>
  static ATROUSX_ALWAYS_INLINE void sum_row(const A* source, const RowTaps<A, kResidues>& taps,
                                            const PlaneStrip<T, A>& strip, int64_t width, T* to,
                                            T* end) {
    constexpr int kLanes = kLanesIn<kBytes, A>;
    int64_t j = 0;
    for (; j + 5 * kLanes < width; j += 4 * kLanes)
      block<kResidues, 4>(source, taps, strip, j, to, end);
    switch (ceil_div<int64_t>(width - j, kLanes)) {
      case 5:
        block<kResidues, 3>(source, taps, strip, j, to, end);
        return block<kResidues, 2>(source, taps, strip, j + 3 * kLanes, to, end);
      case 4:
        return block<kResidues, 4>(source, taps, strip, j, to, end);
      case 3:
        return block<kResidues, 3>(source, taps, strip, j, to, end);
      case 2:
        return block<kResidues, 2>(source, taps, strip, j, to, end);
      default:
        return block<kResidues, 1>(source, taps, strip, j, to, end);
    }
  }

  template <int kResidues, int kVectors, typename T, typename A>
  static ATROUSX_ALWAYS_INLINE void block(const A* source, const RowTaps<A, kResidues>& taps,
                                          const PlaneStrip<T, A>& strip, int64_t j, T* to, T* end) {
    constexpr int kLanes = kLanesIn<kBytes, A>;
    using Vector = Lanes<A, kLanes>;
    Vector sums[kResidues][kVectors];
    for (int r = 0; r < kResidues; ++r) {
      for (int v = 0; v < kVectors; ++v) sums[r][v] = Vector{} + strip.bias;
      for (const RowTap<A>* tap = taps[r]; tap < taps[r + 1]; ++tap)
        for (int v = 0; v < kVectors; ++v)
          sums[r][v] += tap->weight * load_lanes<kLanes>(source + tap->offset + j + v * kLanes);
    }
    const Vector least = Vector{} + strip.least;
    for (int r = 0; r < kResidues; ++r)
      for (int v = 0; v < kVectors; ++v) sums[r][v] = at_least(sums[r][v], least);
    for (int v = 0; v < kVectors; ++v) {
      T* at = to + kResidues * (j + v * kLanes);
      if constexpr (kResidues == 1) {
        store_until(at, sums[0][v], end);
      } else {
        store_until(at, zip_lanes<kLanes, false>(sums[0][v], sums[1][v]), end);
        store_until(at + kLanes, zip_lanes<kLanes, true>(sums[0][v], sums[1][v]), end);
      }
    }
  }

  template <typename T, typename Vector>
  static ATROUSX_ALWAYS_INLINE void store_until(T* at, Vector sums, T* end) {
    constexpr int kLanes = kLanesIn<kBytes, Accumulate<T>>;
    if (at + kLanes <= end) return store_lanes<kLanes>(at, sums);
    T last[kLanes];
    store_lanes<kLanes>(last, sums);
    std::copy(last, last + std::max<int64_t>(0, end - at), at);
  }
};

// Sums a plane's rows [first, end) without reading padding.
template <typename T, typename A>
void sum_rows(const GatherShape& shape, const std::vector<TapSpan>& spans,
              const PlaneStrip<T, A>& strip) {
  const int64_t width = shape.columns.destinations;
  const PlaneFilter<A> filter{strip.weight, shape.columns.taps, 1};
  std::vector<A> sums(width);
  for (int64_t row = strip.first; row < strip.end; ++row) {
    std::fill(sums.begin(), sums.end(), strip.bias);
    add_taps(shape, row, spans, strip.source, filter, sums.data());
    for (int64_t j = 0; j < width; ++j)
      strip.destination[row * width + j] = static_cast<T>(at_least(sums[j], strip.least));
  }
}

// Memory of one thread.
template <typename T, typename A>
struct PlaneWorker {
  PaddedMemory<A> memory;
  std::vector<RowTap<A>> taps;
  std::vector<T> apart;
  std::vector<A> weight;  // [KH, KW]

  // Widens a filter. Returns whether all of its weights are finite.
  bool widen(const GatherShape& shape, const T* filter, const WeightStrides& ws) {
    weight.clear();
    A zero = 0;
    for (int64_t kh = 0; kh < shape.rows.taps; ++kh)
      for (int64_t kw = 0; kw < shape.columns.taps; ++kw) {
        weight.push_back(static_cast<A>(filter[kh * ws.h + kw * ws.w]));
        zero += weight.back() * A(0);
      }
    return zero == A(0);
  }
};

// Depthwise (inner = outer = 1).
template <typename T>
void gather_depthwise_planes(const GatherShape& shape,
                             const T* source,  // [N, groups, source rows, source columns]
                             const T* weight, const WeightStrides& ws, Epilogue<T> epilogue,
                             T* destination)  // [N, groups, rows, columns]
{
  using A = Accumulate<T>;
  const PlaneSums<A> plan(shape);
  const auto spans = all_spans(shape.columns);
  const int64_t height = shape.rows.destinations, width = shape.columns.destinations;
  const int64_t strip = std::max<int64_t>(1, plan.strip), strips = ceil_div(height, strip);
  const int64_t tasks = shape.batch * shape.groups * strips;
  std::vector<PlaneWorker<T, A>> workers(cpu_workers(tasks));
  for_each_plane(tasks, [&](int64_t task, int64_t number) {
    PlaneWorker<T, A>& worker = workers[number];
    const int64_t plane = task / strips, channel = plane % shape.groups;
    const bool is_finite = worker.widen(shape, weight + channel * ws.group, ws);
    const int64_t first = task % strips * strip;
    const PlaneStrip<T, A> own{source + plane * shape.rows.sources * shape.columns.sources,
                               worker.weight.data(),
                               first_sum(epilogue, channel),
                               least_sum(epilogue),
                               first,
                               std::min(first + strip, height),
                               destination + plane * height * width};
    if (plan.strip == 0 || !is_finite) return sum_rows(shape, spans, own);
    worker.taps.resize(plan.tap_lists());
    worker.apart.resize(plan.apart());
    run_with_lanes<SumPlaneTaps>(&plan, own, worker.memory.get(plan.columns.space(plan.source)),
                                 worker.taps.data(), worker.apart.data());
  });
}

}  // namespace atrousx
