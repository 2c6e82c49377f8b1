// Depthwise grad-weight on the CPU in channels_last. The products of a row's pixels are summed in
// registers, for a few taps and vectors of channels at a time. Then they are added to the sums of
// the task.
//
// One task owns a chunk of channels and a part of the rows. Parts are added in order, and their
// number depends on sizes alone. So the result has the same bits with any number of threads.
#pragma once

#include "atrous_conv2d/cpu/depthwise/channels_last.h"
#include "atrous_conv2d/cpu/gemm/microkernel.h"

namespace atrousx {

// A live tap of a run of pixels.
template <typename T, typename A>
struct TapProduct {
  const T* source;  // [channels] of the first pixel
  A* sums;          // [channels]
};

// taps[t].sums[c] += sum over pixels p of grad[p][c] * taps[t].source[p][c], for c < channels.
template <int kBytes>
struct SumTapProducts {
  template <typename T, typename A>
  static ATROUSX_ALWAYS_INLINE void run(const T* grad, const TapProduct<T, A>* taps, int64_t count,
                                        int64_t channels, SpacedPixels pixels) {
    constexpr int kLanes = kLanesIn<kBytes, A>;
    int64_t c = 0;
    for (; c + 2 * kLanes <= channels; c += 2 * kLanes)
      all_taps<2, kLanes>(grad + c, taps, count, c, pixels);
    rest<kLanes>(grad, taps, count, c, channels, pixels);
  }

 private:
  // Takes the channels from c on, with vectors of fewer and fewer lanes.
  template <int kLanes, typename T, typename A>
  static ATROUSX_ALWAYS_INLINE void rest(const T* grad, const TapProduct<T, A>* taps, int64_t count,
                                         int64_t c, int64_t channels, SpacedPixels pixels) {
    for (; c + kLanes <= channels; c += kLanes)
      all_taps<1, kLanes>(grad + c, taps, count, c, pixels);
    if constexpr (kLanes > 1)
      if (c < channels) rest<kLanes / 2>(grad, taps, count, c, channels, pixels);
  }

  template <int kVectors, int kLanes, typename T, typename A>
  static ATROUSX_ALWAYS_INLINE void all_taps(const T* grad, const TapProduct<T, A>* taps,
                                             int64_t count, int64_t c, SpacedPixels pixels) {
    int64_t t = 0;
    for (; t + 3 <= count; t += 3) few_taps<3, kVectors, kLanes>(grad, taps + t, c, pixels);
    for (; t < count; ++t) few_taps<1, kVectors, kLanes>(grad, taps + t, c, pixels);
  }

  template <int kTaps, int kVectors, int kLanes, typename T, typename A>
  static ATROUSX_ALWAYS_INLINE void few_taps(const T* grad, const TapProduct<T, A>* taps, int64_t c,
                                             SpacedPixels pixels) {
    using Vector = Lanes<A, kLanes>;
    Vector sums[kTaps][kVectors] = {};
    for (int64_t p = 0; p < pixels.count; ++p)
      for (int v = 0; v < kVectors; ++v) {
        const Vector g = load_lanes<kLanes>(grad + p * pixels.step + v * kLanes);
        for (int t = 0; t < kTaps; ++t)
          sums[t][v] +=
              g * load_lanes<kLanes>(taps[t].source + p * pixels.source_step + c + v * kLanes);
      }
    for (int t = 0; t < kTaps; ++t)
      for (int v = 0; v < kVectors; ++v) {
        A* to = taps[t].sums + c + v * kLanes;
        store_lanes<kLanes>(to, load_lanes<kLanes>(to) + sums[t][v]);
      }
  }
};

// The products of the rows of both maps.
template <typename T>
struct RowProducts {
  using A = Accumulate<T>;
  const ConvGeometry g;
  const TapAxis rows;
  const std::vector<AxisClass> classes;  // of columns
  const T* grad_output;                  // [N, OH, OW, C]
  const T* input;                        // [N, H, W, C]

  // Adds the products of one row of destinations, for channels [first, first + channels).
  void add(int64_t row, int64_t first, int64_t channels,
           A* sums,  // [KH, KW, C]
           std::vector<TapProduct<T, A>>& live) const {
    for (const AxisClass& c : classes) {
      live.clear();
      for (int64_t kh = 0; kh < g.kernel_h; ++kh) {
        const int64_t line = rows.source(row % g.out_h, kh);
        if (line < 0) continue;
        const int64_t pixel = (row / g.out_h * g.height + line) * g.width + c.source_first;
        for (int64_t i = 0; i < c.taps.count; ++i)
          live.push_back({input + (pixel + i * c.source_per_tap) * g.channels + first,
                          sums + (kh * g.kernel_w + c.taps.at(i)) * g.channels + first});
      }
      run_with_lanes<SumTapProducts>(
          grad_output + (row * g.out_w + c.destinations.first) * g.channels + first,
          static_cast<const TapProduct<T, A>*>(live.data()), static_cast<int64_t>(live.size()),
          channels,
          SpacedPixels{c.destinations.count, c.source_per_destination * g.channels,
                       c.destinations.step * g.channels});
    }
  }
};

template <typename T>
void grad_weight_pixels(const ConvGeometry& g,
                        const T* grad_output,  // [N, OH, OW, C]
                        const T* input,        // [N, H, W, C]
                        T* grad_weight,        // [C, 1, KH, KW], any strides
                        const Strides4& strides) {
  using A = Accumulate<T>;
  constexpr int64_t kChunk = 256;  // channels per task
  const GatherShape shape = g.forward();
  const RowProducts<T> products{g, shape.rows, axis_classes(shape.columns), grad_output, input};
  const int64_t rows = g.batch * g.out_h, taps = g.kernel_h * g.kernel_w;
  const int64_t chunks = ceil_div(g.channels, kChunk);
  const int64_t parts = grad_weight_splits(chunks, rows * g.out_w, 64);
  const Workspace<A> memory(parts * taps * g.channels);
  A* const sums = memory.data();  // [parts, KH, KW, C]
  for_each_task(parts * chunks, [&](int64_t task, int64_t) {
    const int64_t part = task / chunks, first = task % chunks * kChunk;
    const int64_t channels = std::min(kChunk, g.channels - first);
    A* own = sums + part * taps * g.channels;
    for (int64_t t = 0; t < taps; ++t) std::fill_n(own + t * g.channels + first, channels, A(0));
    std::vector<TapProduct<T, A>> live;
    for (int64_t row = part * rows / parts; row < (part + 1) * rows / parts; ++row)
      products.add(row, first, channels, own, live);
  });
  for_each_task(taps, [&](int64_t tap, int64_t) {
    T* to = grad_weight + strides.offset(0, 0, tap / g.kernel_w, tap % g.kernel_w);
    for (int64_t c = 0; c < g.channels; ++c) {
      A sum = 0;
      for (int64_t part = 0; part < parts; ++part)
        sum += sums[(part * taps + tap) * g.channels + c];
      to[c * strides.n] = static_cast<T>(sum);
    }
  });
}

}  // namespace atrousx
