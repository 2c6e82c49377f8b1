// Depthwise forward and grad-input on the CPU in channels_last. The sums of a few vectors of
// channels stay in registers over all live taps, so each element is written once.
#pragma once

#include <limits>
#include <vector>

#include "atrous_conv2d/arguments.h"
#include "atrous_conv2d/plan.h"
#include "cpu/lanes.h"
#include "cpu/workspace.h"
#include "tensor.h"

namespace atrousx {

inline int64_t rows_per_task(int64_t multiply_adds) {
  constexpr int64_t kPerTask = 65536;
  return max_of<int64_t>(1, kPerTask / max_of<int64_t>(1, multiply_adds));
}

// A live tap for some pixels of a row. Channels are neighbours in memory, and each has its own
// weight.
template <typename T, typename A>
struct PixelTap {
  const T* source;   // [channels] of the first pixel
  const A* weights;  // [channels]
};

template <typename T, typename A>
struct PixelTaps {
  const PixelTap<T, A>* taps;
  int64_t count;
};

// Pixels with the same live taps: their number, and the distance between their sources and between
// the pixels.
struct SpacedPixels {
  int64_t count, source_step, step;
};

// The line that the next row of destinations reads for the first time, and how many of its pixels
// to prefetch for each pixel of a run. They are prefetched into L2, because L1 is for data that
// taps share.
template <typename T>
struct NextLine {
  const T* from;
  int64_t pixels;
};

// The first value of a direct sum, and the least value of the finished sum. A later pass adds an
// epilogue's residual and applies the ReLU after it (atrous_conv2d.cpp).
template <typename T>
ATROUSX_ALWAYS_INLINE Accumulate<T> first_sum(const Epilogue<T>& epilogue, int64_t channel) {
  return epilogue.bias == nullptr ? Accumulate<T>(0)
                                  : static_cast<Accumulate<T>>(epilogue.bias[channel]);
}
template <typename T>
ATROUSX_ALWAYS_INLINE Accumulate<T> least_sum(const Epilogue<T>& epilogue) {
  return epilogue.relu ? Accumulate<T>(0) : -std::numeric_limits<Accumulate<T>>::infinity();
}

// NaN stays NaN.
template <typename Vector>
ATROUSX_ALWAYS_INLINE Vector at_least(Vector v, Vector least) {
  return v < least ? least : v;
}

// out[p][c] = max(least_sum, bias[c] + sum over taps of weights[c] * source[p][c]). The sums of
// four pixels stay in registers over all taps. So a pixel is written once, and a weight is loaded
// once for four pixels. The loop takes a kilobyte of channels at a time, so that a pixel finds in
// L1 what its neighbours have read.
template <int kBytes>
struct SumPixelTaps {
  template <typename T, typename A>
  static ATROUSX_ALWAYS_INLINE void run(PixelTaps<T, A> live, Epilogue<T> epilogue,
                                        int64_t channels, SpacedPixels pixels, NextLine<T> next,
                                        T* out) {
    constexpr int64_t kChunk = 1024 / sizeof(A);
    for (int64_t c = 0; c < channels; c += kChunk) {
      const Channels<T, A> chunk{live,     epilogue, c,    std::min(kChunk, channels - c),
                                 channels, pixels,   next, out};
      int64_t p = 0;
      for (; p + 4 <= pixels.count; p += 4) sum<4, kLanesIn<kBytes, A>>(chunk, p);
      if (pixels.count - p == 3) sum<3, kLanesIn<kBytes, A>>(chunk, p);
      if (pixels.count - p == 2) sum<2, kLanesIn<kBytes, A>>(chunk, p);
      if (pixels.count - p == 1) sum<1, kLanesIn<kBytes, A>>(chunk, p);
    }
  }

 private:
  template <typename T, typename A>
  struct Channels {
    PixelTaps<T, A> live;
    Epilogue<T> epilogue;
    int64_t first, count, all;
    SpacedPixels pixels;
    NextLine<T> next;
    T* out;
  };

  // The last vector overlaps the one before it. If there are fewer channels than lanes, vectors are
  // shorter.
  template <int kPixels, int kLanes, typename T, typename A>
  static ATROUSX_ALWAYS_INLINE void sum(const Channels<T, A>& c, int64_t p) {
    if constexpr (kLanes > 1)
      if (c.count < kLanes) return sum<kPixels, kLanes / 2>(c, p);
    int64_t i = 0;
    for (; i + 2 * kLanes <= c.count; i += 2 * kLanes)
      vectors<kPixels, 2, kLanes>(c, c.first + i, p);
    for (; i < c.count; i += kLanes)
      vectors<kPixels, 1, kLanes>(c, c.first + std::min(i, c.count - kLanes), p);
  }

  template <int kPixels, int kVectors, int kLanes, typename T, typename A>
  static ATROUSX_ALWAYS_INLINE void vectors(const Channels<T, A>& all, int64_t c, int64_t p) {
    using Vector = Lanes<A, kLanes>;
    const int64_t step = all.pixels.source_step;
    Vector sums[kPixels][kVectors] = {};
    if (all.epilogue.bias != nullptr)
      for (int v = 0; v < kVectors; ++v) {
        sums[0][v] = load_lanes<kLanes>(all.epilogue.bias + c + v * kLanes);
        for (int q = 1; q < kPixels; ++q) sums[q][v] = sums[0][v];
      }
    const PixelTap<T, A>* const end = all.live.taps + all.live.count;
    for (const PixelTap<T, A>* tap = all.live.taps; tap < end; ++tap) {
      const T* source = tap->source + p * step + c;
      Vector weights[kVectors];
      for (int v = 0; v < kVectors; ++v)
        weights[v] = load_lanes<kLanes>(tap->weights + c + v * kLanes);
      for (int q = 0; q < kPixels; ++q)
        for (int v = 0; v < kVectors; ++v)
          sums[q][v] += weights[v] * load_lanes<kLanes>(source + q * step + v * kLanes);
    }
    const T* next = all.next.from + p * all.next.pixels * all.all + c;
    for (int64_t k = 0; k < kPixels * all.next.pixels; ++k)
      for (int v = 0; v < kVectors; v += 64 / sizeof(T) / kLanes)
        __builtin_prefetch(next + k * all.all + v * kLanes, 0, 2);
    const Vector least = Vector{} + least_sum(all.epilogue);
    for (int q = 0; q < kPixels; ++q)
      for (int v = 0; v < kVectors; ++v)
        store_lanes<kLanes>(all.out + (p + q) * all.pixels.step + c + v * kLanes,
                            at_least(sums[q][v], least));
  }
};

// Copies the weights of a depthwise pass to [KH, KW, groups].
template <typename T, typename A>
void weights_by_tap(const GatherShape& shape, const T* weight, const WeightStrides& ws, A* to) {
  for (int64_t kh = 0; kh < shape.rows.taps; ++kh)
    for (int64_t kw = 0; kw < shape.columns.taps; ++kw)
      for (int64_t c = 0; c < shape.groups; ++c)
        *to++ = static_cast<A>(weight[c * ws.group + kh * ws.h + kw * ws.w]);
}

// The live taps for a class of pixels of row r, and the last line that they read. Rows are counted
// over the batch.
template <typename T, typename A>
struct LiveTaps {
  std::vector<PixelTap<T, A>> taps;
  int64_t count = 0, last_line = 0;

  void find(const GatherShape& shape, const AxisClass& c, int64_t r, const T* source,
            const A* weights) {
    const int64_t channels = shape.groups, height = shape.rows.destinations;
    count = last_line = 0;
    for (int64_t kh = 0; kh < shape.rows.taps; ++kh) {
      const int64_t line = shape.rows.source(r % height, kh);
      if (line < 0) continue;
      last_line = std::max(last_line, line);
      const int64_t pixel =
          (r / height * shape.rows.sources + line) * shape.columns.sources + c.source_first;
      for (int64_t i = 0; i < c.taps.count; ++i)
        taps[count++] = {source + (pixel + i * c.source_per_tap) * channels,
                         weights + (kh * shape.columns.taps + c.taps.at(i)) * channels};
    }
  }
};

// Depthwise (inner = outer = 1) in channels_last.
template <typename T>
void gather_pixels(const GatherShape& shape,
                   const T* source,  // [N, source rows, source columns, groups]
                   const T* weight, const WeightStrides& ws, Epilogue<T> epilogue,
                   T* destination)  // [N, rows, columns, groups]
{
  using A = Accumulate<T>;
  const int64_t height = shape.rows.destinations, channels = shape.groups;
  const int64_t width = shape.columns.destinations;
  const Workspace<A> by_tap(shape.taps() * channels);
  weights_by_tap(shape, weight, ws, by_tap.data());
  const auto classes = axis_classes(shape.columns);
  const int64_t grain = rows_per_task(width * channels * shape.taps());
  torch::stable::parallel_for(0, shape.batch * height, grain, [&](int64_t begin, int64_t end) {
    LiveTaps<T, A> live{std::vector<PixelTap<T, A>>(shape.taps())};
    for (int64_t r = begin; r < end; ++r)
      for (const AxisClass& c : classes) {
        live.find(shape, c, r, source, by_tap.data());
        const NextLine<T> next{source + (r / height * shape.rows.sources + live.last_line + 1) *
                                            shape.columns.sources * channels,
                               min_of(shape.rows.scale, shape.rows.sources) *
                                   min_of(shape.columns.scale, shape.columns.sources)};
        run_with_lanes<SumPixelTaps>(
            PixelTaps<T, A>{live.taps.data(), live.count}, epilogue, channels,
            SpacedPixels{c.destinations.count, c.source_per_destination * channels,
                         c.destinations.step * channels},
            next, destination + (r * width + c.destinations.first) * channels);
      }
  });
}

}  // namespace atrousx
