// Depthwise forward and grad-input on the CPU in NCHW: a strip of a plane is packed with zeros
// beside its rows (cpu_padded_plane.h), then each row of the destination is summed in registers
// over its live rows of taps, a few vectors at a time, and written once. What follows a strip in
// memory is prefetched meanwhile. One task owns a strip.
#pragma once

#include "cpu_direct.h"
#include "cpu_padded_plane.h"
#include "cpu_product.h"

namespace atrousx {

// A live tap of some rows of a destination.
template <typename A>
struct RowTap {
  int64_t offset;  // in the packed plane, from the first line that a row reads
  A weight;
};

// What all strips have in common.
template <typename A>
struct PlaneSums {
  // Which class of rows a row belongs to, and the first line of the source that it reads.
  struct Row {
    int64_t of, line;
  };

  GatherShape shape;
  PaddedColumns<A> columns;
  std::vector<AxisClass> classes;
  std::vector<Row> rows;
  int64_t strip;  // rows of a plane that a task owns
  PaddedPlane source;

  explicit PlaneSums(const GatherShape& s)
      : shape(s), columns(s.columns), classes(axis_classes(s.rows)), rows(s.rows.destinations) {
    const int64_t halo = (s.rows.taps - 1) * std::abs(s.rows.step) / s.rows.divisor;
    strip = strip_rows(s.rows.destinations, halo, columns.pitch);
    const int64_t read = std::min(strip * s.rows.scale + halo + 2, s.rows.sources);
    source = {read, s.columns.sources, 1, s.columns.scale, columns.pitch};
    for (size_t c = 0; c < classes.size(); ++c)
      for (int64_t i = 0; i < classes[c].destinations.count; ++i)
        rows[classes[c].destinations.at(i)] = {
            static_cast<int64_t>(c),
            classes[c].source_first + i * classes[c].source_per_destination};
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
};

// Some rows of a plane.
template <typename T, typename A>
struct PlaneStrip {
  const T* source;  // [source rows, source columns]
  const A* weight;  // [KH, KW]
  A bias;
  int64_t first, end;
  T* destination;  // [rows, columns]
};

template <int kBytes>
struct SumPlaneTaps {
  template <typename T, typename A>
  static ATROUSX_ALWAYS_INLINE void run(const PlaneSums<A>* plan, PlaneStrip<T, A> strip,
                                        A* memory,         // zeros beside rows
                                        RowTap<A>* lists)  // [plan->tap_lists()]
  {
    const GatherShape& shape = plan->shape;
    const auto [begin, end] = plan->lines(strip.first, strip.end);
    A* source = memory + plan->columns.before();
    PackPlane<kBytes>::run(plan->source, strip.source + begin * shape.columns.sources,
                           std::max<int64_t>(0, end - begin), source);
    list_taps(*plan, strip.weight, lists);
    const int64_t width = shape.columns.destinations, pitch = plan->columns.pitch;
    const int64_t taps = shape.taps();
    const int64_t live = static_cast<int64_t>(plan->columns.taps.size());
    for (int64_t row = strip.first; row < strip.end; ++row) {
      const auto [of, line] = plan->rows[row];
      prefetch_next(strip.source + (end + row - strip.first) * shape.columns.sources,
                    shape.columns.sources);
      sum_row(source + (line - begin) * pitch, lists + of * taps,
              plan->classes[of].taps.count * live, strip.bias, width,
              strip.destination + row * width, strip.destination + strip.end * width);
    }
  }

 private:
  template <typename A>
  static ATROUSX_ALWAYS_INLINE void list_taps(const PlaneSums<A>& plan, const A* weight,
                                              RowTap<A>* lists) {
    for (const AxisClass& rows : plan.classes) {
      RowTap<A>* next = lists;
      for (int64_t i = 0; i < rows.taps.count; ++i)
        for (const ColumnTap& tap : plan.columns.taps)
          *next++ = {i * rows.source_per_tap * plan.columns.pitch +
                         tap.phase * plan.source.phase() + tap.shift,
                     weight[rows.taps.at(i) * plan.shape.columns.taps + tap.tap]};
      lists += plan.shape.taps();
    }
  }

  // Vectors may run past the row: what they write there is written again by the next row's, and
  // nothing is written from `end` on.
  template <typename T, typename A>
  static ATROUSX_ALWAYS_INLINE void sum_row(const A* source, const RowTap<A>* taps, int64_t count,
                                            A bias, int64_t width, T* to, T* end) {
    constexpr int kLanes = kLanesIn<kBytes, A>;
    int64_t j = 0;
    for (; j + 5 * kLanes < width; j += 4 * kLanes) block<4>(source, taps, count, bias, j, to, end);
    switch (ceil_div<int64_t>(width - j, kLanes)) {
      case 5:
        block<3>(source, taps, count, bias, j, to, end);
        return block<2>(source, taps, count, bias, j + 3 * kLanes, to, end);
      case 4:
        return block<4>(source, taps, count, bias, j, to, end);
      case 3:
        return block<3>(source, taps, count, bias, j, to, end);
      case 2:
        return block<2>(source, taps, count, bias, j, to, end);
      default:
        return block<1>(source, taps, count, bias, j, to, end);
    }
  }

  template <int kVectors, typename T, typename A>
  static ATROUSX_ALWAYS_INLINE void block(const A* source, const RowTap<A>* taps, int64_t count,
                                          A bias, int64_t j, T* to, T* end) {
    constexpr int kLanes = kLanesIn<kBytes, A>;
    using Vector = Lanes<A, kLanes>;
    Vector sums[kVectors];
    for (int v = 0; v < kVectors; ++v) sums[v] = Vector{} + bias;
    for (int64_t t = 0; t < count; ++t)
      for (int v = 0; v < kVectors; ++v)
        sums[v] += taps[t].weight * load_lanes<kLanes>(source + taps[t].offset + j + v * kLanes);
    for (int v = 0; v < kVectors; ++v) {
      T* at = to + j + v * kLanes;
      if (at + kLanes <= end) {
        store_lanes<kLanes>(at, sums[v]);
      } else {
        T last[kLanes];
        store_lanes<kLanes>(last, sums[v]);
        std::copy(last, last + std::max<int64_t>(0, end - at), at);
      }
    }
  }
};

// A plane's rows [first, end), without reading padding.
template <typename T, typename A>
void sum_rows(const GatherShape& shape, const std::vector<TapSpan>& spans,
              const PlaneStrip<T, A>& strip) {
  const int64_t width = shape.columns.destinations;
  const WeightStrides dense{0, 0, 0, shape.columns.taps, 1};
  std::vector<A> sums(width);
  for (int64_t row = strip.first; row < strip.end; ++row) {
    std::fill(sums.begin(), sums.end(), strip.bias);
    add_taps(shape, row, spans, strip.source, strip.weight, dense, sums.data());
    for (int64_t j = 0; j < width; ++j)
      strip.destination[row * width + j] = static_cast<T>(sums[j]);
  }
}

// What a thread has for itself.
template <typename A>
struct PlaneWorker {
  PaddedMemory<A> memory;
  std::vector<RowTap<A>> taps;
  std::vector<A> weight;  // [KH, KW]

  // Whether all of a filter is finite.
  template <typename T>
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

// Depthwise (inner = outer = 1), divisor of the columns 1.
template <typename T>
void gather_depthwise_planes(const GatherShape& shape,
                             const T* source,  // [N, groups, source rows, source columns]
                             const T* weight, const WeightStrides& ws,
                             const T* bias,   // [groups] or null
                             T* destination)  // [N, groups, rows, columns]
{
  using A = Accumulate<T>;
  const PlaneSums<A> plan(shape);
  const auto spans = all_spans(shape.columns);
  const int64_t height = shape.rows.destinations, width = shape.columns.destinations;
  const int64_t strip = std::max<int64_t>(1, plan.strip), strips = ceil_div(height, strip);
  const int64_t tasks = shape.batch * shape.groups * strips;
  std::vector<PlaneWorker<A>> workers(cpu_workers(tasks));
  for_each_plane(tasks, [&](int64_t task, int64_t number) {
    PlaneWorker<A>& worker = workers[number];
    const int64_t plane = task / strips, channel = plane % shape.groups;
    const bool is_finite = worker.widen(shape, weight + channel * ws.group, ws);
    const int64_t first = task % strips * strip;
    const PlaneStrip<T, A> own{source + plane * shape.rows.sources * shape.columns.sources,
                               worker.weight.data(),
                               bias == nullptr ? A(0) : static_cast<A>(bias[channel]),
                               first,
                               std::min(first + strip, height),
                               destination + plane * height * width};
    if (plan.strip == 0 || !is_finite) return sum_rows(shape, spans, own);
    worker.taps.resize(plan.tap_lists());
    run_with_lanes<SumPlaneTaps>(&plan, own, worker.memory.get(plan.columns.space(plan.source)),
                                 worker.taps.data());
  });
}

}  // namespace atrousx
