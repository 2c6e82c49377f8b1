// The transpose of resampling on the CPU. It sums first down the rows, then along the resulting row
// of sums. A gradient between two input rows belongs to both. It is read once, and the lower row's
// share is kept until that row is computed. An input row is the same sum in the same order,
// wherever a task begins. So the bits do not depend on the number of threads.
#pragma once

#include "cpu/transpose.h"
#include "upsample_bilinear2d/cpu/axis.h"
#include "upsample_bilinear2d/cpu/blend.h"

namespace atrousx {

// Room after a row for the lanes of the last vector.
constexpr int64_t kRowRoom = 16;

template <typename T>
struct BackwardPlan {
  using A = Accumulate<T>;
  const T* grad_output;  // [N, C, OH, OW] or [N, OH, OW, C]
  T* grad_input;         // [N, C, H, W] or [N, H, W, C]
  int64_t pixel;         // neighbouring numbers that are resampled alike: 1 or C
  CpuAxis<A> rows, columns;

  int64_t in_row() const { return columns.in * pixel; }
  int64_t out_row() const { return columns.out * pixel; }

  // Numbers that a task needs besides its results.
  int64_t wide_room() const { return 3 * (out_row() + kRowRoom); }
  int64_t narrow_room(int64_t vector_bytes) const {
    const int64_t lanes = vector_bytes / static_cast<int64_t>(sizeof(A));
    return (2 + 2 * lanes) * (out_row() + kRowRoom) + lanes * (in_row() + kRowRoom);
  }
};

// The outputs of a cell: those before `mixed` have weight 0 (axis.h).
template <typename A>
struct Cell {
  const A* weight;  // of all outputs
  int64_t begin, mixed, end;
};

// Sums along an axis, cell by cell. `here`: the sum for this input, which starts with the share
// from the cell before. `next`: the share for the next input. kVectors vectors of sums stay in
// registers.
template <int kLanes, int kVectors, typename A>
struct CellSums {
  Lanes<A, kLanes> here[kVectors], next[kVectors];

  ATROUSX_ALWAYS_INLINE void clear() {
    for (int v = 0; v < kVectors; ++v) next[v] = Lanes<A, kLanes>{};
  }
  ATROUSX_ALWAYS_INLINE void advance() {
    for (int v = 0; v < kVectors; ++v) here[v] = next[v];
    clear();
  }
  // Adds the cell's outputs. The vectors of output o are at from + o * step + at.
  template <typename T>
  ATROUSX_ALWAYS_INLINE void add(const T* from, int64_t step, const int64_t (&at)[kVectors],
                                 Cell<A> cell) {
    const auto [weight, begin, mixed, end] = cell;
    // A weight of 0 must not turn an infinite gradient into NaN at the next input.
    for (int64_t o = begin; o < mixed; ++o)
      for (int v = 0; v < kVectors; ++v) here[v] += load_lanes<kLanes>(from + o * step + at[v]);
    for (int64_t o = mixed; o < end; ++o) {
      const A w = weight[o], rest = A(1) - w;
      for (int v = 0; v < kVectors; ++v) {
        const auto g = load_lanes<kLanes>(from + o * step + at[v]);
        here[v] += rest * g;
        next[v] += w * g;
      }
    }
  }
};

// Computes the sums of input rows, one row after another.
template <int kBytes, typename T>
class DownRows {
  using A = Accumulate<T>;

 public:
  ATROUSX_ALWAYS_INLINE DownRows(const BackwardPlan<T>* plan, A* carried, A* carry)
      : plan_(plan), carried_(carried), carry_(carry) {}

  // Whether any output reads row r. A row that is not read is skipped: no share is carried to it or
  // from it.
  ATROUSX_ALWAYS_INLINE bool is_read(int64_t r) const {
    const int64_t h = r % plan_->rows.in;
    const int64_t *start = plan_->rows.start.data(), *mixed = plan_->rows.mixed.data();
    return start[h] < start[h + 1] || (h > 0 && mixed[h - 1] < start[h]);
  }

  // Computes the sums of row r, which must be read. `first`: it is the first row of this object.
  ATROUSX_ALWAYS_INLINE void row(int64_t r, bool first, A* sums) {
    const int64_t h = r % plan_->rows.in, size = plan_->out_row();
    const T* map = plan_->grad_output + r / plan_->rows.in * plan_->rows.out * size;
    if (first || h == 0)
      for (int64_t j = 0; j < size; ++j) carry_[j] = A(0);
    if (first && h > 0) cell(map, h - 1, sums);
    cell(map, h, sums);
  }

 private:
  ATROUSX_ALWAYS_INLINE void cell(const T* map, int64_t h, A* sums) {
    constexpr int kLanes = kLanesIn<kBytes, A>;
    const int64_t size = plan_->out_row();
    std::swap(carried_, carry_);
    int64_t j = 0;
    for (; j + 4 * kLanes <= size; j += 4 * kLanes) columns<kLanes, 4>(map, h, j, sums);
    for (; j < size && size >= kLanes; j += kLanes)
      columns<kLanes, 1>(map, h, min_of(j, size - kLanes), sums);
    for (; j < size; ++j) columns<1, 1>(map, h, j, sums);
  }

  template <int kLanes, int kVectors>
  ATROUSX_ALWAYS_INLINE void columns(const T* map, int64_t h, int64_t column, A* sums) {
    CellSums<kLanes, kVectors, A> cell;
    int64_t at[kVectors];
    for (int v = 0; v < kVectors; ++v) {
      at[v] = v * kLanes;
      cell.next[v] = load_lanes<kLanes>(carried_ + column + at[v]);
    }
    cell.advance();
    cell.add(map + column, plan_->out_row(), at,
             {plan_->rows.weight.data(), plan_->rows.start[h], plan_->rows.mixed[h],
              plan_->rows.start[h + 1]});
    for (int v = 0; v < kVectors; ++v) {
      store_lanes<kLanes>(sums + column + at[v], cell.here[v]);
      store_lanes<kLanes>(carry_ + column + at[v], cell.next[v]);
    }
  }

  const BackwardPlan<T>* plan_;
  A *carried_, *carry_;  // shares from the row before, and for the next row
};

// Sums along one row of pixels, each of which fills a vector or more.
template <int kBytes>
struct AlongRow {
  template <typename A, typename U>
  static ATROUSX_ALWAYS_INLINE void run(const CpuAxis<A>* columns, const A* from, int64_t pixel,
                                        U* to) {
    constexpr int kLanes = kLanesIn<kBytes, A>;
    int64_t c = 0;
    for (; c + 2 * kLanes < pixel; c += 4 * kLanes) channels<4>(columns, from, pixel, c, to);
    if (c + kLanes < pixel)
      channels<2>(columns, from, pixel, c, to);
    else if (c < pixel)
      channels<1>(columns, from, pixel, c, to);
  }

  // Takes kVectors vectors of every pixel, from a channel on. The last vector ends with the pixel.
  template <int kVectors, typename A, typename U>
  static ATROUSX_ALWAYS_INLINE void channels(const CpuAxis<A>* columns, const A* from,
                                             int64_t pixel, int64_t channel, U* to) {
    constexpr int kLanes = kLanesIn<kBytes, A>;
    const int64_t *start = columns->start.data(), *mixed = columns->mixed.data();
    const A* weight = columns->weight.data();
    const int64_t in = columns->in;
    int64_t at[kVectors];
    for (int v = 0; v < kVectors; ++v) at[v] = min_of(channel + v * kLanes, pixel - kLanes);
    CellSums<kLanes, kVectors, A> cell;
    cell.clear();
    for (int64_t i = 0; i < in; ++i) {
      cell.advance();
      cell.add(from, pixel, at, {weight, start[i], mixed[i], start[i + 1]});
      for (int v = 0; v < kVectors; ++v) store_lanes<kLanes>(to + i * pixel + at[v], cell.here[v]);
    }
  }
};

// Computes input rows [begin, end) of maps whose pixels fill a vector of kAlong bytes or more. The
// sums down the rows use vectors of kBytes, whatever the size of pixels.
template <int kBytes, int kAlong>
struct BackwardPixels {
  template <typename T, typename A>
  static ATROUSX_ALWAYS_INLINE void run(const BackwardPlan<T>* plan, A* room, int64_t begin,
                                        int64_t end) {
    const int64_t pitch = plan->out_row() + kRowRoom;
    A* sums = room + 2 * pitch;
    DownRows<kBytes, T> rows(plan, room, room + pitch);
    bool first = true;
    for (int64_t r = begin; r < end; ++r) {
      T* to = plan->grad_input + r * plan->in_row();
      if (!rows.is_read(r)) {
        std::fill_n(to, plan->in_row(), T(0));
        continue;
      }
      rows.row(r, first, sums);
      first = false;
      AlongRow<kAlong>::run(&plan->columns, static_cast<const A*>(sums), plan->pixel, to);
    }
  }
};

template <int kBytes>
using BackwardWide = BackwardPixels<kBytes, kBytes>;
template <int kBytes>
using BackwardHalf = BackwardPixels<kBytes, kBytes / 2>;

// Computes input rows [begin, end) of maps whose pixels are shorter than half a vector. Here each
// lane is a row: the sums of kLanes rows are transposed, summed like pixels, and transposed back.
template <int kBytes>
struct BackwardNarrow {
  template <typename T, typename A>
  static ATROUSX_ALWAYS_INLINE void run(const BackwardPlan<T>* plan, A* room, int64_t begin,
                                        int64_t end) {
    constexpr int kLanes = kLanesIn<kBytes, A>;
    const int64_t pitch = plan->out_row() + kRowRoom;
    A *sums = room + 2 * pitch, *by_pixel = sums + kLanes * pitch;
    A* result = by_pixel + kLanes * pitch;
    for (int64_t j = 0; j < kLanes * pitch; ++j) sums[j] = A(0);
    DownRows<kBytes, T> rows(plan, room, room + pitch);
    T* to[kLanes];  // the rows whose sums wait
    int64_t count = 0;
    bool first = true;
    for (int64_t r = begin; r < end; ++r) {
      to[count] = plan->grad_input + r * plan->in_row();
      if (rows.is_read(r)) {
        rows.row(r, first, sums + count++ * pitch);
        first = false;
      } else {
        std::fill_n(to[count], plan->in_row(), T(0));
      }
      if (count < kLanes && (r + 1 < end || count == 0)) continue;
      RowsAsLanes<kLanes>::read(static_cast<const A*>(sums), pitch, plan->out_row(), by_pixel);
      AlongRow<kBytes>::run(&plan->columns, static_cast<const A*>(by_pixel), plan->pixel * kLanes,
                            result);
      RowsAsLanes<kLanes>::write(static_cast<const A*>(result), plan->in_row(), count,
                                 static_cast<T* const*>(to));
      count = 0;
    }
  }
};

}  // namespace atrousx
