// Upsampled logits block by block, never all of them: the walk of the CPU operators that consume
// them. A task takes a band, the pixel rows between two neighbouring rows of logits.
#pragma once

#include "arguments.h"
#include "cpu_cells.h"

namespace atrousx {

template <typename T>
class UpsampledBlocks {
 public:
  using A = Accumulate<T>;

  UpsampledBlocks(const Resampling& r, const T* logits)
      : r_(r),
        logits_(logits),
        plan_(r_.plan<T>()),
        rows_(all_cells(plan_.rows)),
        columns_(plan_.columns) {}

  int64_t bands() const { return static_cast<int64_t>(rows_.size()); }
  int64_t row_size() const { return r_.channels * r_.width; }
  int64_t block_size() const { return r_.channels * kBlockPitch; }

  // A row of logits, every channel, at pixel row oh: [C, W].
  void blend(int64_t n, int64_t oh, A* row) const {
    const BilinearTap<A> tap = plan_.rows.tap(oh);
    for (int64_t c = 0; c < r_.channels; ++c) {
      const T* plane = logits_ + (n * r_.channels + c) * r_.height * r_.width;
      run_best<BlendRows>(plane + tap.lower * r_.width, plane + tap.upper * r_.width, tap.weight,
                          row + c * r_.width, r_.width);
    }
  }

  // The values of block b of such a row: [C, kBlockPitch].
  void interpolate(int64_t b, const A* row, A* values) const {
    const int64_t begin = columns_.block_start[b];
    if (r_.width == r_.out_width) {
      for (int64_t c = 0; c < r_.channels; ++c)
        std::copy_n(row + c * r_.width + columns_.block_first(b), columns_.block_count(b),
                    values + c * kBlockPitch);
      return;
    }
    run_best<InterpolateBlock>(row, r_.channels, r_.width, columns_.cells.data() + begin,
                               columns_.block_start[b + 1] - begin,
                               columns_.weight.data() + columns_.block_first(b), values);
  }

  const Resampling r_;
  const T* const logits_;  // [N, C, H, W]
  const BilinearPlan<A> plan_;
  const std::vector<Cell> rows_;
  const CellAxis<A> columns_;
};

}  // namespace atrousx
