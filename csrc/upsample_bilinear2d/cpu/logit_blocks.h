// Upsampled logits on the CPU, a block of pixels at a time and never the whole map. Operators that
// reduce upsampled logits to something smaller use this loop.
//
// A row of logits is resampled along itself once, for every channel, into a line [C, pitch]. Pixel
// rows between two rows of logits then blend two lines, vector by vector, when the values are used.
#pragma once

#include <algorithm>

#include "cpu/vector_math.h"
#include "cpu/workspace.h"
#include "upsample_bilinear2d/arguments.h"
#include "upsample_bilinear2d/cpu/forward.h"
#include "upsample_bilinear2d/cpu/logit_rows.h"

namespace atrousx {

// Pixels of a block. Their values, [C, kLineBlock], fit into an inner cache.
constexpr int64_t kLineBlock = 64;

template <typename A>
struct LinesPlan {
  using Number = A;
  Resampling r;
  LogitRows logits;
  bool mirrored;  // reverses the columns of the logits before they are resampled
  CpuAxis<A> rows, columns;
  ColumnGroups<A> groups;

  LinesPlan(const Resampling& r_, const Tensor& tensor, bool mirrored_ = false)
      : r(r_),
        logits(tensor),
        mirrored(mirrored_),
        rows(r.plan<A>().rows),
        columns(r.plan<A>().columns),
        groups(columns, 1, vector_bytes()) {}

  // Numbers from one channel to the next. It is an odd number of whole vectors, so that channels do
  // not fall on the same sets of a cache.
  int64_t pitch() const { return (groups.padded_out() / groups.lanes | 1) * groups.lanes; }
  int64_t source_pitch() const { return groups.in + groups.reach(); }
  // Whether columns are blended as they are read. Then fewer numbers are transposed. And if outputs
  // lie far apart, a row need not be copied before its numbers are read one by one.
  bool blend_first() const {
    return columns.in > columns.out && (groups.registers == 0 || logits.strides.w != 1);
  }
  // Numbers that a task needs for two lines, the row that they come from, and zeros.
  int64_t room() const { return r.channels * (2 * pitch() + source_pitch()) + pitch(); }
  // Pixel rows per task, of all images: enough to pay for waking a thread.
  int64_t grain() const {
    constexpr int64_t kValuesPerTask = 16384;
    return std::max<int64_t>(1, kValuesPerTask / (r.channels * r.out_width));
  }
};

// Two lines and a weight, from which the values of a block are computed.
template <typename A>
struct BlendedLines {
  const A *top, *bottom;  // [C, top_pitch], [C, bottom_pitch]
  int64_t top_pitch, bottom_pitch;
  A weight;

  template <int kLanes>
  ATROUSX_ALWAYS_INLINE Lanes<A, kLanes> value(int64_t c, int64_t j) const {
    return (A(1) - weight) * load_lanes<kLanes>(top + c * top_pitch + j) +
           weight * load_lanes<kLanes>(bottom + c * bottom_pitch + j);
  }
};

template <int kBytes, typename A>
class Lines {
 public:
  ATROUSX_ALWAYS_INLINE Lines(const LinesPlan<A>* plan, A* room)
      : plan_(plan), size_(plan->r.channels * plan->pitch()) {
    // Lanes past the end of a line, or of its source, must be finite.
    for (int64_t j = 0; j < plan->room(); ++j) room[j] = A(0);
    zeros_ = room;
    line_[0] = zeros_ + plan->pitch();
    line_[1] = line_[0] + size_;
    source_ = line_[1] + size_;
  }

  // The lines for the pixel rows just below row `row` of the N H rows of logits. `mixed`: the pixel
  // rows have a share of the next row. Otherwise zeros replace the next row, because 0 times
  // infinity is NaN.
  ATROUSX_ALWAYS_INLINE BlendedLines<A> hold(int64_t row, bool mixed) {
    if (held_[1] == row) {
      std::swap(line_[0], line_[1]);
      std::swap(held_[0], held_[1]);
    }
    if (held_[0] != row) make(row, 0);
    if (mixed && held_[1] != row + 1) make(row + 1, 1);
    const int64_t pitch = plan_->pitch();
    return {line_[0], mixed ? line_[1] : zeros_, pitch, mixed ? pitch : 0, A(0)};
  }

 private:
  ATROUSX_ALWAYS_INLINE void make(int64_t row, int which) {
    const int64_t channels = plan_->r.channels, width = plan_->r.width, pitch = plan_->pitch();
    const int64_t n = row / plan_->r.height, h = row % plan_->r.height;
    const bool same = width == plan_->r.out_width;
    const int64_t source_pitch = same ? pitch : plan_->source_pitch();
    A *line = line_[which], *source = same ? line : source_;
    held_[which] = row;
    if (plan_->blend_first())
      return plan_->logits.shrink(n, h, channels, plan_->columns, plan_->mirrored,
                                  ChannelLines<A>{line, pitch});
    plan_->logits.read(n, h, channels, width, ChannelLines<A>{source, source_pitch});
    for (int64_t c = 0; c < channels; ++c) {
      if (plan_->mirrored)
        std::reverse(source + c * source_pitch, source + c * source_pitch + width);
      if (!same)
        ForwardNarrow<kBytes>::along(
            &plan_->groups, static_cast<const A*>(source + c * source_pitch), line + c * pitch);
    }
  }

  const LinesPlan<A>* plan_;
  const int64_t size_;
  A *zeros_, *line_[2], *source_;
  int64_t held_[2] = {-1, -1};
};

// Goes through pixel rows [begin, end) of all images, block by block. Rows between the same two
// rows of logits take turns at a block. Calls consumer.block(row, first column, count, lines) once
// for each block. The last block of a row may be read up to a whole vector; the values there are
// finite.
template <int kBytes, typename A, typename Consumer>
ATROUSX_ALWAYS_INLINE void over_blocks(const LinesPlan<A>* plan, Lines<kBytes, A>* lines,
                                       int64_t begin, int64_t end, Consumer* consumer) {
  const int64_t height = plan->r.out_height, width = plan->r.out_width;
  const int64_t* lower = plan->rows.lower.data();
  const A* weight = plan->rows.weight.data();
  for (int64_t row = begin, last; row < end; row = last) {
    const int64_t oh = row % height;
    const bool mixed = weight[oh] > A(0);
    for (last = row + 1; last < end && last % height != 0; ++last)
      if (lower[last % height] != lower[oh] || (weight[last % height] > A(0)) != mixed) break;
    BlendedLines<A> blended = lines->hold(row / height * plan->r.height + lower[oh], mixed);
    for (int64_t j = 0; j < width; j += kLineBlock) {
      for (int64_t r = row; r < last; ++r) {
        blended.weight = weight[r % height];
        BlendedLines<A> block = blended;
        block.top += j;
        block.bottom += j;
        consumer->block(r, j, min_of(kLineBlock, width - j), block);
      }
    }
  }
}

// For every pixel of a block: the greatest value, and the sum over channels of e^(value -
// greatest). values [C, kLineBlock] then holds the values, or with kKeep these exponentials.
template <int kLanes, bool kKeep, typename A>
ATROUSX_ALWAYS_INLINE void softmax_sums(const BlendedLines<A>& lines, int64_t channels,
                                        int64_t count, A* values, A* best, A* sum) {
  using V = Lanes<A, kLanes>;
  for (int64_t j = 0; j < count; j += kLanes) {
    V most = lines.template value<kLanes>(0, j);
    store_lanes<kLanes>(values + j, most);
    for (int64_t c = 1; c < channels; ++c) {
      const V v = lines.template value<kLanes>(c, j);
      store_lanes<kLanes>(values + c * kLineBlock + j, v);
      most = v > most ? v : most;
    }
    V total = V{};
    for (int64_t c = 0; c < channels; ++c) {
      A* at = values + c * kLineBlock + j;
      const V e = LaneMath<A, kLanes>::exp_nonpositive(load_lanes<kLanes>(at) - most);
      if (kKeep) store_lanes<kLanes>(at, e);
      total += e;
    }
    store_lanes<kLanes>(best + j, most);
    store_lanes<kLanes>(sum + j, total);
  }
}

template <template <int, typename> class Consumer>
struct BlockRows {
  template <int kBytes>
  struct Loop {
    template <typename Plan, typename A>
    static ATROUSX_ALWAYS_INLINE void run(const Plan* plan, A* room, int64_t begin, int64_t end) {
      Lines<kBytes, A> lines(&plan->lines, room);
      Consumer<kBytes, Plan> consumer(plan, room + plan->lines.room());
      over_blocks<kBytes>(&plan->lines, &lines, begin, end, &consumer);
    }
  };
};

// Goes through all pixel rows of plan.lines, in tasks. Each task has a Consumer(plan, values), with
// room for the values of a block, [C, kLineBlock].
template <template <int, typename> class Consumer, typename Plan>
void over_pixel_rows(const Plan& plan) {
  using A = typename decltype(plan.lines)::Number;
  const Resampling& r = plan.lines.r;
  torch::stable::parallel_for(
      0, r.batch * r.out_height, plan.lines.grain(), [&](int64_t begin, int64_t end) {
        const Workspace<A> room(plan.lines.room() + r.channels * kLineBlock);
        run_with_lanes<BlockRows<Consumer>::template Loop>(&plan, room.data(), begin, end);
      });
}

}  // namespace atrousx
