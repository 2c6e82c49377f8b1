// A plane packed for the depthwise passes in NCHW. A strip of its rows is widened to the
// accumulation type. Rows are stored a pitch apart, with zeros between them. So a tap is one
// distance in memory for all columns of all rows. Beside the map it reads a zero, so no row needs
// special borders, and vectors run from one row into the next. A map that is read with a stride is
// packed by phases, whose pixels lie a stride apart. Each phase is a map of its own. A result that
// is written with a stride is computed by phases in the same way.
//
// Zeros are multiplied this way. This changes no finite sum. Sums that are not finite are computed
// again by direct_conv.h, which reads no padding. It also computes planes that would hold many more
// zeros than data: maps between large paddings, and few pixels of a large stride.
#pragma once

#include <algorithm>
#include <vector>

#include "atrous_conv2d/cpu/gemm/microkernel.h"
#include "atrous_conv2d/plan.h"
#include "cpu/interleave.h"
#include "cpu/lanes.h"

namespace atrousx {

// Pitches are multiples of the longest vector of any instruction set, so rows begin at whole
// vectors.
template <typename A>
constexpr int64_t kPitchUnit = kLanesIn<64, A>;

template <typename A>
constexpr int64_t whole_vectors(int64_t count) {
  return ceil_div(count, kPitchUnit<A>) * kPitchUnit<A>;
}

struct PaddedPlane {
  int64_t rows, columns, row_stride, column_stride, pitch;

  // The phases that have pixels. A stride may be larger than the map.
  int64_t row_phases() const { return std::min(row_stride, rows); }
  int64_t column_phases() const { return std::min(column_stride, columns); }
  int64_t phase() const { return ceil_div(rows, row_stride) * pitch; }
  int64_t size() const { return row_phases() * column_phases() * phase(); }
  int64_t row(int64_t h) const {
    return h % row_stride * column_phases() * phase() + h / row_stride * pitch;
  }

  // Whether the phases, each padded to whole vectors, are not much larger than the map.
  template <typename A>
  bool is_dense() const {
    constexpr int64_t kMostZeros = 4;
    return size() <= kMostZeros * rows * std::max(pitch, whole_vectors<A>(columns));
  }
};

// A tap that is live at some column. It belongs to the columns whose remainder by the divisor is
// `residue`. Number w of these columns reads column w + shift of a phase.
struct ColumnTap {
  int64_t tap, residue, phase, shift;
};

// How a pass reads the columns of padded planes.
template <typename A>
struct PaddedColumns {
  std::vector<ColumnTap> taps;  // in order of residues
  int64_t least = 0, most = 0;  // range of the shifts; includes 0
  int64_t pitch;
  bool dense;  // live columns are a large enough share of those that are multiplied

  explicit PaddedColumns(const TapAxis& axis) {
    constexpr int64_t kMostZeros = 8;
    int64_t live_columns = 0;
    for (int64_t k = 0; k < axis.taps; ++k) {
      const Progression live = axis.span(k).destinations;
      if (live.count == 0) continue;
      const int64_t residue = live.first % axis.divisor;
      const int64_t first = axis.numerator(residue, k) / axis.divisor;  // exact
      const int64_t phase = (first % axis.scale + axis.scale) % axis.scale;
      const int64_t shift = (first - phase) / axis.scale;
      taps.push_back({k, residue, phase, shift});
      least = std::min(least, shift);
      most = std::max(most, shift);
      live_columns += whole_vectors<A>(live.count);
    }
    std::stable_sort(taps.begin(), taps.end(),
                     [](const ColumnTap& a, const ColumnTap& b) { return a.residue < b.residue; });
    // The zeros between two rows are to the right of the first and to the left of the second.
    const int64_t columns = ceil_div(axis.sources, axis.scale);
    const int64_t wanted =
        std::max(columns - least, ceil_div(axis.destinations, axis.divisor) + most);
    pitch = whole_vectors<A>(wanted);
    dense = pitch / kMostZeros * static_cast<int64_t>(taps.size()) <= live_columns;
  }

  // Zeros before and after a plane, for the taps and vectors of its first and last rows.
  int64_t before() const { return whole_vectors<A>(-least); }
  int64_t after() const { return whole_vectors<A>(most) + kPitchUnit<A>; }
  int64_t space(const PaddedPlane& plane) const { return before() + plane.size() + after(); }
};

// Rows of a strip, such that packed planes stay in a core's L2 cache. This is the whole map if it
// fits, and at least as many rows as a strip reads beyond its own. Returns 0 if even these are too
// large.
inline int64_t strip_rows(int64_t rows, int64_t halo, int64_t pitch) {
  constexpr int64_t kElements = 1 << 16, kMost = 1 << 20;
  if (halo > kMost / pitch) return 0;
  return std::min(rows, std::max({kElements / pitch, halo, int64_t{1}}));
}

// Memory of one worker, filled with zeros. It begins at a cache line.
template <typename A>
class PaddedMemory {
 public:
  A* get(int64_t count) {  // must be the same at every call
    constexpr int64_t kLine = 64;
    if (memory_.empty()) memory_.resize(count + kLine / sizeof(A), A(0));
    const auto begin = reinterpret_cast<uintptr_t>(memory_.data());
    return memory_.data() + (kLine - begin % kLine) % kLine / sizeof(A);
  }

 private:
  std::vector<A> memory_;
};

// Calls body(plane, worker) for every plane. If there are many planes, a worker takes neighbours,
// because it prefetches the data after a plane and packs that next.
template <typename F>
void for_each_plane(int64_t planes, F&& body) {
  const int64_t run =
      std::clamp<int64_t>(planes / (8 * std::max<int64_t>(1, cpu_workers(planes))), 1, 16);
  for_each_task(ceil_div(planes, run), [&](int64_t task, int64_t worker) {
    for (int64_t p = task * run; p < std::min((task + 1) * run, planes); ++p) body(p, worker);
  });
}

// Prefetches into L2, because L1 is for the packed planes.
template <typename T>
ATROUSX_ALWAYS_INLINE void prefetch_next(const T* from, int64_t count = 1) {
  constexpr int64_t kLine = 64 / sizeof(T);
  for (int64_t i = 0; i < count; i += kLine) __builtin_prefetch(from + i, 0, 2);
}

template <int kBytes>
struct PackPlane {
  template <typename T, typename A>
  static ATROUSX_ALWAYS_INLINE void run(const PaddedPlane& plane,
                                        const T* from,  // [rows, columns]
                                        int64_t rows,   // rows of the strip, at most plane.rows
                                        A* packed) {
    for (int64_t phase = 0; phase < plane.row_phases(); ++phase) {
      A* to = packed + phase * plane.column_phases() * plane.phase();
      for (int64_t h = phase; h < rows; h += plane.row_stride, to += plane.pitch)
        pack_row(plane, from + h * plane.columns, to);
    }
  }

 private:
  template <typename T, typename A>
  static ATROUSX_ALWAYS_INLINE void pack_row(const PaddedPlane& plane, const T* from, A* to) {
    if (plane.column_stride == 1) return widen<kLanesIn<kBytes, A>>(from, plane.columns, to);
    if (plane.column_stride == 2)
      return unzip<kLanesIn<kBytes, A>>(from, plane.columns, to, to + plane.phase());
    for (int64_t phase = 0; phase < plane.column_phases(); ++phase, to += plane.phase())
      for (int64_t w = phase, i = 0; w < plane.columns; w += plane.column_stride)
        to[i++] = static_cast<A>(from[w]);
  }

  template <int kLanes, typename T, typename A>
  static ATROUSX_ALWAYS_INLINE void unzip(const T* from, int64_t count, A* even, A* odd) {
    if constexpr (kLanes > 1) {
      for (; count >= 2 * kLanes; count -= 2 * kLanes) {
        const auto a = load_lanes<kLanes>(from), b = load_lanes<kLanes>(from + kLanes);
        store_lanes<kLanes>(even, unzip_lanes<kLanes, false>(a, b));
        store_lanes<kLanes>(odd, unzip_lanes<kLanes, true>(a, b));
        from += 2 * kLanes, even += kLanes, odd += kLanes;
      }
      unzip<kLanes / 2>(from, count, even, odd);
    } else {
      if (count > 0) *even++ = static_cast<A>(*from++);
      if (count > 1) *odd++ = static_cast<A>(*from++);
      if (count > 2) *even++ = static_cast<A>(*from++);
    }
  }

  // The last vector overlaps the one before it. Rows shorter than a vector use shorter vectors.
  template <int kLanes, typename T, typename A>
  static ATROUSX_ALWAYS_INLINE void widen(const T* from, int64_t count, A* to) {
    if constexpr (kLanes > 1)
      if (count < kLanes) return widen<kLanes / 2>(from, count, to);
    for (int64_t i = 0; i < count; i += kLanes) {
      const int64_t at = std::min(i, count - kLanes);
      store_lanes<kLanes>(to + at, load_lanes<kLanes>(from + at));
    }
  }
};

}  // namespace atrousx
