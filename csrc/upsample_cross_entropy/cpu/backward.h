// The backward of upsample_cross_entropy on the CPU. Gradients are summed as soon as they are
// computed.
#pragma once

#include <cstring>

#include "upsample_bilinear2d/cpu/backward.h"
#include "upsample_cross_entropy/cpu/labels.h"

namespace atrousx {

// Stores the gradients of a few channels of a row of logits, which are given as [W, lanes].
template <int kBytes>
struct StoreGradient {
  template <typename T, typename A>
  static ATROUSX_ALWAYS_INLINE void run(const A* from, int64_t width, int64_t count, T* to,
                                        int64_t channel_stride, int64_t column_stride) {
    constexpr int kLanes = kLanesIn<kBytes, A>;
    if (column_stride == 1) {
      T* rows[kLanes];
      for (int i = 0; i < kLanes; ++i) rows[i] = to + i * channel_stride;
      RowsAsLanes<kLanes>::write(from, width, count, static_cast<T* const*>(rows));
    } else if (count == kLanes) {
      for (int64_t w = 0; w < width; ++w)
        store_lanes<kLanes>(to + w * column_stride, load_lanes<kLanes>(from + w * kLanes));
    } else {
      for (int64_t i = 0; i < count; ++i)
        for (int64_t w = 0; w < width; ++w)
          to[w * column_stride + i] = static_cast<T>(from[w * kLanes + i]);
    }
  }
};

struct GradientRows {
  void* data;  // [N, C, H, W], contiguous or channels_last
  ScalarType dtype;
  Strides4 strides;

  template <typename A>
  void store(const A* from, int64_t n, int64_t c, int64_t h, int64_t width, int64_t count) const {
    dispatch_floating(dtype, [&](auto zero) {
      using T = decltype(zero);
      if constexpr (std::is_same_v<Accumulate<T>, A>)
        run_with_lanes<StoreGradient>(from, width, count,
                                      static_cast<T*>(data) + strides.offset(n, c, h, 0), strides.c,
                                      strides.w);
    });
  }

  // Prefetches what is stored soon, so that stores do not wait for their cache lines.
  void fetch(int64_t n, int64_t c, int64_t h, int64_t width, int64_t count) const {
    dispatch_floating(dtype, [&](auto zero) {
      using T = decltype(zero);
      const T* row = static_cast<const T*>(data) + strides.offset(n, c, h, 0);
      for (int64_t i = 0; i < count && strides.w == 1; ++i) fetch_ahead(row + i * strides.c, width);
    });
  }

  // Fills a whole row with zeros. In every dtype all bits of zero are 0.
  void clear(int64_t n, int64_t h, int64_t channels, int64_t width) const {
    dispatch_floating(dtype, [&](auto zero) {
      using T = decltype(zero);
      T* row = static_cast<T*>(data) + strides.offset(n, 0, h, 0);
      const bool pixels = strides.w != 1;  // channels of a pixel are neighbours
      const int64_t runs = pixels ? 1 : channels, size = pixels ? width * channels : width;
      for (int64_t i = 0; i < runs; ++i) {
        if (i + 1 < runs) fetch_ahead(row + (i + 1) * strides.c, size);
        std::memset(row + i * strides.c, 0, size * sizeof(T));
      }
    });
  }
};

template <typename A>
struct LossBackwardPlan : LossPlan<A> {
  const A* log_sum;  // [N, OH, OW]
  const A* grads;    // [N, OH, OW], or null
  A grad;            // of every pixel if `grads` is null
  GradientRows out;

  // Channels whose sums are kept: at least a vector of them. Those past the last are zeros.
  int64_t kept() const { return max_of(this->lines.r.channels, this->lines.groups.lanes); }
  int64_t room() const {
    const int64_t lanes = this->lines.groups.lanes;
    return this->lines.room() + (2 * kept() + lanes) * this->lines.pitch() +
           lanes * (this->lines.columns.in + kRowRoom);
  }
};

// Computes the gradients of rows of logits [begin, end) of all images. A pixel's gradient is summed
// as soon as it is computed: first down the rows, into the lines of the two rows of logits around
// it, then along these lines. This is the same order as in the backward of plain upsampling
// (upsample_bilinear2d/cpu/backward.h), so the bits do not depend on the number of threads.
template <int kBytes>
struct LossBackward {
  // Pixel rows that are added while a vector of sums is in registers.
  static constexpr int64_t kRows = 16;

  template <typename A>
  struct Pixels {
    using Index = ClassIndex<A>;
    A weight[kRows];  // of the lower row of logits
    // Per pixel: log-sum; factors of the softmax, of the label's own term, and of the smoothing's
    // term.
    alignas(64) A lse[kRows][kLineBlock], scale[kRows][kLineBlock], own[kRows][kLineBlock],
        spread[kRows][kLineBlock];
    alignas(64) Index classes[kRows][kLineBlock];
  };

  // The sums of the two rows of logits around some pixel rows, a line for each channel.
  template <typename A>
  struct RowSums {
    A *here, *next;
  };

  template <typename A>
  static ATROUSX_ALWAYS_INLINE void run(const LossBackwardPlan<A>* plan, A* room, int64_t begin,
                                        int64_t end) {
    const LinesPlan<A>& at = plan->lines;
    const int64_t height = at.r.height, size = plan->kept() * at.pitch();
    Lines<kBytes, A> lines(&at, room);
    A *here = room + at.room(), *next = here + size, *by_pixel = next + size;
    std::fill_n(here, 2 * size, A(0));
    bool first = true;
    for (int64_t r = begin; r < end; ++r) {
      const int64_t h = r % height;
      const int64_t *start = at.rows.start.data() + h, *mixed = at.rows.mixed.data() + h;
      // The row before leaves a share only if pixels lie between it and this row.
      const bool carried = h > 0 && mixed[-1] < start[0];
      if (carried && first) band(plan, &lines, r - 1, RowSums<A>{here, next});
      first = false;
      std::swap(here, next);
      std::fill_n(next, plan->lines.r.channels * at.pitch(), A(0));
      band(plan, &lines, r, RowSums<A>{here, next});
      if (carried || start[0] < start[1])
        along(plan, static_cast<const A*>(here), by_pixel, r / height, h);
      else
        plan->out.clear(r / height, h, at.r.channels, at.r.width);
    }
  }

  // Adds the gradients of the pixel rows between row r of the logits and the next to both rows'
  // lines.
  template <typename A>
  static ATROUSX_ALWAYS_INLINE void band(const LossBackwardPlan<A>* plan, Lines<kBytes, A>* lines,
                                         int64_t r, RowSums<A> sums) {
    const CpuAxis<A>& rows = plan->lines.rows;
    const int64_t h = r % rows.in, shift = r / rows.in * rows.out;
    const int64_t begin = rows.start[h], mixed = rows.mixed[h], end = rows.start[h + 1];
    if (begin < mixed) group<false>(plan, lines->hold(r, false), shift, begin, mixed, sums);
    if (mixed < end) group<true>(plan, lines->hold(r, true), shift, mixed, end, sums);
  }

  template <bool kMixed, typename A>
  static ATROUSX_ALWAYS_INLINE void group(const LossBackwardPlan<A>* plan,
                                          const BlendedLines<A>& lines, int64_t shift,
                                          int64_t begin, int64_t end, RowSums<A> sums) {
    const int64_t width = plan->lines.r.out_width;
    Pixels<A> pixels;
    for (int64_t oh = begin; oh < end; oh += kRows) {
      const int64_t rows = min_of(kRows, end - oh);
      for (int64_t k = 0; k < rows; ++k) pixels.weight[k] = plan->lines.rows.weight[oh + k];
      for (int64_t j = 0; j < width; j += kLineBlock) {
        const int64_t count = min_of(kLineBlock, width - j);
        for (int64_t k = 0; k < rows; ++k)
          prepare(plan, (shift + oh + k) * width + j, count, k, &pixels);
        BlendedLines<A> block = lines;
        block.top += j;
        block.bottom += j;
        const RowSums<A> to{sums.here + j, sums.next + j};
        if (plan->loss.smoothing == A(0))
          add<kMixed, false>(plan, block, &pixels, rows, count, to);
        else
          add<kMixed, true>(plan, block, &pixels, rows, count, to);
      }
    }
  }

  template <typename A>
  static ATROUSX_ALWAYS_INLINE void prepare(const LossBackwardPlan<A>* plan, int64_t at,
                                            int64_t count, int64_t k, Pixels<A>* pixels) {
    constexpr int kLanes = kLanesIn<kBytes, A>;
    using V = Lanes<A, kLanes>;
    using Index = ClassIndex<A>;
    const PixelLoss<A>& loss = plan->loss;
    Index* classes = pixels->classes[k];
    plan->labels.classify(at, count, classes);
    // Reads whole vectors that end with the row, because the memory after it may not be readable.
    Rows<kBytes>::convert(plan->log_sum + at, static_cast<A*>(pixels->lse[k]), count);
    std::fill(pixels->lse[k] + count, pixels->lse[k] + kLineBlock, std::numeric_limits<A>::max());
    A grads[kLineBlock] = {}, weight[kLineBlock];
    if (plan->grads != nullptr)
      Rows<kBytes>::convert(plan->grads + at, static_cast<A*>(grads), count);
    weigh_classes<kLanes>(loss, static_cast<const Index*>(classes), static_cast<A*>(weight));
    for (int64_t j = 0; j < kLineBlock; j += kLanes) {
      const auto counts = load_raw<Lanes<Index, kLanes>>(classes + j) != kIgnoredClass;
      const V all = plan->grads == nullptr ? V{} + plan->grad : load_lanes<kLanes>(grads + j);
      const V grad = counts ? all : V{};
      const V own = grad * ((A(1) - loss.smoothing) * load_lanes<kLanes>(weight + j));
      const V spread = grad * loss.spread();
      store_lanes<kLanes>(pixels->own[k] + j, own);
      store_lanes<kLanes>(pixels->spread[k] + j, spread);
      store_lanes<kLanes>(pixels->scale[k] + j, counts ? own + spread * plan->total : V{});
    }
  }

  // Adds a block's gradients, times the weights of the rows, to both lines.
  template <bool kMixed, bool kSmoothed, typename A>
  static ATROUSX_ALWAYS_INLINE void add(const LossBackwardPlan<A>* plan,
                                        const BlendedLines<A>& lines, const Pixels<A>* pixels,
                                        int64_t rows, int64_t count, RowSums<A> sums) {
    constexpr int kLanes = kLanesIn<kBytes, A>;
    const auto [here, next] = sums;
    using V = Lanes<A, kLanes>;
    using Indices = Lanes<ClassIndex<A>, kLanes>;
    const int64_t pitch = plan->lines.pitch();
    for (int64_t j = 0; j < count; j += kLanes) {
      for (int64_t c = 0; c < plan->loss.channels; ++c) {
        const V top = load_lanes<kLanes>(lines.top + c * lines.top_pitch + j);
        const V bottom = load_lanes<kLanes>(lines.bottom + c * lines.bottom_pitch + j);
        V upper = load_lanes<kLanes>(here + c * pitch + j);
        V lower = load_lanes<kLanes>(next + c * pitch + j);
        const auto index = static_cast<ClassIndex<A>>(c);
        for (int64_t k = 0; k < rows; ++k) {
          const A w = pixels->weight[k], rest = A(1) - w;
          const V value = kMixed ? rest * top + w * bottom : top;
          V slope =
              load_lanes<kLanes>(pixels->scale[k] + j) *
              LaneMath<A, kLanes>::exp_nonpositive(value - load_lanes<kLanes>(pixels->lse[k] + j));
          if constexpr (kSmoothed)
            slope -= plan->loss.weight(c) * load_lanes<kLanes>(pixels->spread[k] + j);
          const V own = load_lanes<kLanes>(pixels->own[k] + j);
          slope -= load_raw<Indices>(pixels->classes[k] + j) == index ? own : V{};
          upper += kMixed ? rest * slope : slope;
          if constexpr (kMixed) lower += w * slope;
        }
        store_lanes<kLanes>(here + c * pitch + j, upper);
        if constexpr (kMixed) store_lanes<kLanes>(next + c * pitch + j, lower);
      }
    }
  }

  // Sums along the lines of a row of logits, a vector of channels at a time.
  template <typename A>
  static ATROUSX_ALWAYS_INLINE void along(const LossBackwardPlan<A>* plan, const A* lines,
                                          A* by_pixel, int64_t n, int64_t h) {
    constexpr int kLanes = kLanesIn<kBytes, A>;
    const int64_t pitch = plan->lines.pitch(), channels = plan->lines.r.channels;
    const CpuAxis<A>& columns = plan->lines.columns;
    A* result = by_pixel + kLanes * pitch;
    for (int64_t c = 0; c < channels; c += kLanes) {
      const int64_t from = max_of<int64_t>(0, min_of(c, channels - kLanes));
      plan->out.fetch(n, c, h, columns.in, min_of<int64_t>(kLanes, channels - c));
      RowsAsLanes<kLanes>::read(lines + from * pitch, pitch, columns.out, by_pixel);
      AlongRow<kBytes>::run(&columns, static_cast<const A*>(by_pixel), int64_t{kLanes}, result);
      plan->out.store(static_cast<const A*>(result), n, from, h, columns.in,
                      min_of<int64_t>(kLanes, channels));
    }
  }
};

}  // namespace atrousx
