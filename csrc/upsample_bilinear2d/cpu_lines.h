// Upsampled logits on the CPU, a block of pixels at a time and never all of them: the walk of the
// operators that turn them into something smaller.
//
// A row of logits is resampled along itself once, every channel, into a line [C, pitch]. Pixel rows
// between two rows of logits then blend two lines, vector by vector, where the values are used.
#pragma once

#include <algorithm>

#include "../vector_math.h"
#include "arguments.h"
#include "cpu_forward.h"

namespace atrousx {

// Pixels of a block: their values, [C, kLineBlock], lie in an inner cache.
constexpr int64_t kLineBlock = 64;

// Asks for numbers side by side that are read soon: a channel's row is too short for the processor
// to see it coming.
template <typename T>
ATROUSX_ALWAYS_INLINE void fetch_ahead(const T* from, int64_t count) {
  constexpr int64_t kLine = 64 / sizeof(T);
  for (int64_t j = 0; j < count; j += kLine) __builtin_prefetch(from + j);
}

// to[c][w] = from[c * channel_stride + w * column_stride]
template <int kBytes>
struct ReadLogits {
  template <typename T, typename A>
  static ATROUSX_ALWAYS_INLINE void run(const T* from, int64_t channels, int64_t width,
                                        int64_t channel_stride, int64_t column_stride, A* to,
                                        int64_t pitch) {
    constexpr int kLanes = kLanesIn<kBytes, A>;
    if (column_stride == 1) {
      for (int64_t c = 0; c < channels; ++c) {
        if (c + 1 < channels) fetch_ahead(from + (c + 1) * channel_stride, width);
        Rows<kBytes>::convert(from + c * channel_stride, to + c * pitch, width);
      }
    } else if (channel_stride == 1 && channels >= kLanes && width >= kLanes) {
      for (int64_t c = 0; c < channels; c += kLanes)
        for (int64_t w = 0; w < width; w += kLanes)
          turn(from, min_of(c, channels - kLanes), min_of(w, width - kLanes), column_stride, to,
               pitch);
    } else {
      for (int64_t c = 0; c < channels; ++c)
        for (int64_t w = 0; w < width; ++w)
          to[c * pitch + w] = static_cast<A>(from[c * channel_stride + w * column_stride]);
    }
  }

  template <typename T, typename A>
  static ATROUSX_ALWAYS_INLINE void turn(const T* from, int64_t c, int64_t w, int64_t column_stride,
                                         A* to, int64_t pitch) {
    constexpr int kLanes = kLanesIn<kBytes, A>;
    Lanes<A, kLanes> block[kLanes];
    for (int i = 0; i < kLanes; ++i)
      block[i] = load_lanes<kLanes>(from + (w + i) * column_stride + c);
    transpose_lanes(block);
    for (int i = 0; i < kLanes; ++i) store_lanes<kLanes>(to + (c + i) * pitch + w, block[i]);
  }
};

// The same of fewer columns than there are: each blended from the two around it as they are read.
template <int kBytes>
struct ShrinkLogits {
  template <typename T, typename A>
  static ATROUSX_ALWAYS_INLINE void run(const T* from, int64_t channels, const CpuAxis<A>* columns,
                                        int64_t channel_stride, int64_t column_stride, A* to,
                                        int64_t pitch) {
    constexpr int kLanes = kLanesIn<kBytes, A>;
    const int64_t *lower = columns->lower.data(), out = columns->out;
    const A* weight = columns->weight.data();
    if (channel_stride == 1 && channels >= kLanes && out >= kLanes) {
      for (int64_t o = 0; o < out; o += kLanes)
        for (int64_t c = 0; c < channels; c += kLanes)
          turn(from, lower, weight, min_of(c, channels - kLanes), min_of(o, out - kLanes),
               column_stride, to, pitch);
      return;
    }
    for (int64_t c = 0; c < channels; ++c) {
      if (column_stride == 1 && c + 1 < channels)
        fetch_ahead(from + (c + 1) * channel_stride, columns->in);
      for (int64_t o = 0; o < out; ++o) {
        const T* left = from + c * channel_stride + lower[o] * column_stride;
        const T* right = left + (weight[o] > A(0) ? column_stride : 0);
        to[c * pitch + o] =
            (A(1) - weight[o]) * static_cast<A>(*left) + weight[o] * static_cast<A>(*right);
      }
    }
  }

  template <typename T, typename A>
  static ATROUSX_ALWAYS_INLINE void turn(const T* from, const int64_t* lower, const A* weight,
                                         int64_t c, int64_t o, int64_t column_stride, A* to,
                                         int64_t pitch) {
    constexpr int kLanes = kLanesIn<kBytes, A>;
    Lanes<A, kLanes> block[kLanes];
    for (int i = 0; i < kLanes; ++i) {
      const A w = weight[o + i];
      const T* left = from + lower[o + i] * column_stride + c;
      const T* right = left + (w > A(0) ? column_stride : 0);
      block[i] = (A(1) - w) * load_lanes<kLanes>(left) + w * load_lanes<kLanes>(right);
    }
    transpose_lanes(block);
    for (int i = 0; i < kLanes; ++i) store_lanes<kLanes>(to + (c + i) * pitch + o, block[i]);
  }
};

// The logits, in any floating dtype and layout.
struct LogitRows {
  const void* data;
  ScalarType dtype;
  Strides4 strides;

  explicit LogitRows(const Tensor& t)
      : data(t.const_data_ptr()), dtype(t.scalar_type()), strides(strides4(t)) {}

  // Row h of image n, widened: [channels, pitch].
  template <typename A>
  void read(int64_t n, int64_t h, int64_t channels, int64_t width, A* to, int64_t pitch) const {
    row<A>(n, h, [&](auto* from) {
      run_with_lanes<ReadLogits>(from, channels, width, strides.c, strides.w, to, pitch);
    });
  }

  // The same, resampled to columns->out columns; `mirrored`: its columns come in reverse.
  template <typename A>
  void shrink(int64_t n, int64_t h, int64_t channels, const CpuAxis<A>& columns, bool mirrored,
              A* to, int64_t pitch) const {
    row<A>(n, h, [&](auto* from) {
      run_with_lanes<ShrinkLogits>(mirrored ? from + (columns.in - 1) * strides.w : from, channels,
                                   &columns, strides.c, mirrored ? -strides.w : strides.w, to,
                                   pitch);
    });
  }

 private:
  template <typename A, typename F>
  void row(int64_t n, int64_t h, F&& f) const {
    dispatch_floating(dtype, [&](auto zero) {
      using T = decltype(zero);
      if constexpr (std::is_same_v<Accumulate<T>, A>)
        f(static_cast<const T*>(data) + strides.offset(n, 0, h, 0));
    });
  }
};

template <typename A>
struct LinesPlan {
  Resampling r;
  LogitRows logits;
  bool mirrored;  // columns of the logits, before they are resampled
  CpuAxis<A> rows, columns;
  ColumnGroups<A> groups;

  LinesPlan(const Resampling& r_, const Tensor& tensor, bool mirrored_ = false)
      : r(r_),
        logits(tensor),
        mirrored(mirrored_),
        rows(r.plan<A>().rows),
        columns(r.plan<A>().columns),
        groups(columns, 1, vector_bytes()) {}

  // Numbers from one channel to the next: whole vectors, an odd number of them, so that channels
  // do not fall on the same sets of a cache.
  int64_t pitch() const { return (groups.padded_out() / groups.lanes | 1) * groups.lanes; }
  int64_t source_pitch() const { return groups.in + groups.reach(); }
  // Whether columns are blended as they are read: fewer are left to be turned, and where outputs
  // lie far apart a row need not be copied to be read one by one.
  bool blend_first() const {
    return columns.in > columns.out && (groups.registers == 0 || logits.strides.w != 1);
  }
  // Numbers that a task's lines need: two, the row they come from, and zeros.
  int64_t room() const { return r.channels * (2 * pitch() + source_pitch()) + pitch(); }
  // Pixel rows, of all images, that pay for waking a thread.
  int64_t grain() const {
    constexpr int64_t kValuesPerTask = 16384;
    return std::max<int64_t>(1, kValuesPerTask / (r.channels * r.out_width));
  }
};

// Two lines and a weight, from which a block's values come.
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
    // Lanes past a line's end, and past the end of what it comes from, are finite.
    for (int64_t j = 0; j < plan->room(); ++j) room[j] = A(0);
    zeros_ = room;
    line_[0] = zeros_ + plan->pitch();
    line_[1] = line_[0] + size_;
    source_ = line_[1] + size_;
  }

  // What pixel rows that lie below row `row` of the N H rows of logits are blended from; `mixed`:
  // with a share of the next row. Where there is none zeros stand in for it: 0 times infinity.
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
      return plan_->logits.shrink(n, h, channels, plan_->columns, plan_->mirrored, line, pitch);
    plan_->logits.read(n, h, channels, width, source, source_pitch);
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

// Pixel rows [begin, end) of all images, block by block. Rows between the same two rows of logits
// take turns at a block. consumer.block(row, first column, count, lines) sees each once; the last
// block of a row may be read, with finite values, up to a whole vector.
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

// For every pixel of a block the greatest value and the sum over channels of e^(value - greatest).
// values [C, kLineBlock] holds the values, or with kKeep these exponentials.
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

}  // namespace atrousx
