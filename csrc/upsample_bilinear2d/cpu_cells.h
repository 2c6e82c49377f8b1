// Resampling on the CPU by cells: outputs that read the same two inputs lie side by side, so a
// cell's values need two numbers a channel and one vector of weights, and no gather. The operators
// that consume upsampled values without storing them (argmax, cross-entropy) are built on it.
#pragma once

#include <vector>

#include "../cpu_dispatch.h"
#include "../portable.h"
#include "plan.h"

namespace atrousx {

// Outputs [first, first + count) of one axis, which all read `lower` and `upper`.
struct Cell {
  int64_t lower, upper, first, count;
};

// Lanes computed together; weights and values are padded to whole groups of them.
constexpr int64_t kCellLanes = 8;
// Outputs of a block of cells, the unit in which values are kept: [channels, kBlockPitch].
constexpr int64_t kBlockOutputs = 64;
constexpr int64_t kBlockPitch = kBlockOutputs + kCellLanes;

// The cells of an axis in order, none longer than a block.
template <typename A>
std::vector<Cell> all_cells(const BilinearAxis<A>& axis) {
  std::vector<Cell> cells;
  for (int64_t o = 0; o < axis.out; ++o) {
    const BilinearTap<A> t = axis.tap(o);
    if (!cells.empty() && cells.back().lower == t.lower && cells.back().upper == t.upper &&
        cells.back().count < kBlockOutputs)
      ++cells.back().count;
    else
      cells.push_back({t.lower, t.upper, o, 1});
  }
  return cells;
}

// One axis prepared for walking cell by cell.
template <typename A>
struct CellAxis {
  std::vector<Cell> cells;
  // The weight of `upper` at every output; zeros follow the last.
  std::vector<A> weight;
  // Per cell, padded with zeros to whole groups of lanes: the weights of lower and upper, whose
  // products with the lanes past a cell's end vanish.
  std::vector<int64_t> padded_start;
  std::vector<A> padded_lower, padded_upper;
  // Blocks of cells: block b holds cells [block_start[b], block_start[b + 1]).
  std::vector<int64_t> block_start;

  explicit CellAxis(const BilinearAxis<A>& axis)
      : cells(all_cells(axis)), weight(axis.out + kCellLanes, A(0)) {
    for (int64_t o = 0; o < axis.out; ++o) weight[o] = axis.tap(o).weight;
    int64_t outputs = kBlockOutputs + 1;
    for (size_t k = 0; k < cells.size(); ++k) {
      outputs += cells[k].count;
      if (outputs > kBlockOutputs) {
        block_start.push_back(static_cast<int64_t>(k));
        outputs = cells[k].count;
      }
      padded_start.push_back(static_cast<int64_t>(padded_lower.size()));
      for (int64_t j = 0; j < ceil_div(cells[k].count, kCellLanes) * kCellLanes; ++j) {
        const bool inside = j < cells[k].count;
        padded_lower.push_back(inside ? A(1) - weight[cells[k].first + j] : A(0));
        padded_upper.push_back(inside ? weight[cells[k].first + j] : A(0));
      }
    }
    block_start.push_back(static_cast<int64_t>(cells.size()));
  }

  int64_t blocks() const { return static_cast<int64_t>(block_start.size()) - 1; }
  int64_t block_first(int64_t b) const { return cells[block_start[b]].first; }
  int64_t block_count(int64_t b) const {
    const Cell& last = cells[block_start[b + 1] - 1];
    return last.first + last.count - block_first(b);
  }
};

// blended[j] = (1 - weight) * top[j] + weight * bottom[j]
struct BlendRows {
  template <typename T, typename A>
  static ATROUSX_ALWAYS_INLINE void run(const T* top, const T* bottom, A weight, A* blended,
                                        int64_t count) {
    for (int64_t j = 0; j < count; ++j)
      blended[j] = (A(1) - weight) * static_cast<A>(top[j]) + weight * static_cast<A>(bottom[j]);
  }
};

// Values of a block of cells from a row of inputs, every channel. A cell's last lanes may run past
// its end: the next cell, which comes later, overwrites them.
struct InterpolateBlock {
  template <typename A>
  static ATROUSX_ALWAYS_INLINE void run(const A* row,  // [channels, width]
                                        int64_t channels, int64_t width, const Cell* cells,
                                        int64_t cell_count,
                                        const A* weight,  // at the block's first output
                                        A* values) {      // [channels, kBlockPitch]
    const int64_t origin = cells[0].first;
    for (int64_t c = 0; c < channels; ++c) {
      const A* from = row + c * width;
      A* to = values + c * kBlockPitch;
      for (int64_t k = 0; k < cell_count; ++k) {
        const A lower = from[cells[k].lower], upper = from[cells[k].upper];
        const int64_t first = cells[k].first - origin;
        for (int64_t j = 0; j < cells[k].count; j += kCellLanes) {
          const A* w = weight + first + j;
          A* out = to + first + j;
          for (int64_t lane = 0; lane < kCellLanes; ++lane)
            out[lane] = (A(1) - w[lane]) * lower + w[lane] * upper;
        }
      }
    }
  }
};

}  // namespace atrousx
