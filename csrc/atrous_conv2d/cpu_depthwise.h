// Depthwise forward and grad-input on the CPU in channels_last: the sums of a few vectors of
// channels stay in registers over all live taps, so an element is written once.
#pragma once

#include <type_traits>
#include <vector>

#include "../cpu_dispatch.h"
#include "../tensor.h"
#include "arguments.h"
#include "plan.h"

namespace atrousx {

inline int64_t rows_per_task(int64_t multiply_adds) {
  constexpr int64_t kPerTask = 65536;
  return max_of<int64_t>(1, kPerTask / max_of<int64_t>(1, multiply_adds));
}

// 16 numbers of an accumulation type, loaded from and stored to any dtype.
template <typename A>
struct Wide {
  static constexpr int kLanes = 16;
  typedef A Vector __attribute__((vector_size(kLanes * sizeof(A)), aligned(sizeof(A)), may_alias));

  template <typename T>
  static ATROUSX_ALWAYS_INLINE void load(const T* from, Vector& v) {
    if constexpr (std::is_same_v<T, A>) {
      v = *reinterpret_cast<const Vector*>(from);
    } else {
      A widened[kLanes];
      for (int l = 0; l < kLanes; ++l) widened[l] = static_cast<A>(from[l]);
      v = *reinterpret_cast<const Vector*>(widened);
    }
  }

  template <typename T>
  static ATROUSX_ALWAYS_INLINE void store(const Vector& v, T* to) {
    if constexpr (std::is_same_v<T, A>) {
      *reinterpret_cast<Vector*>(to) = v;
    } else {
      A wide[kLanes];
      *reinterpret_cast<Vector*>(wide) = v;
      for (int l = 0; l < kLanes; ++l) to[l] = static_cast<T>(wide[l]);
    }
  }
};

// A live tap of a stretch of depthwise pixels: channels are neighbours, each with its own weight.
template <typename T, typename A>
struct PixelTap {
  const T* source;   // [channels] of the first pixel
  const A* weights;  // [channels]
};

// Pixels that share their live taps, and how far apart they lie.
struct PixelRun {
  int64_t count, source_step, step;
};

// out[p][c] = bias[c] + sum over taps of weights[c] * source[p][c]. The sums of four pixels'
// vectors stay in registers over all taps: a pixel is written once, and a weight is loaded once for
// four.
struct SumPixelTaps {
  template <typename T, typename A>
  static ATROUSX_ALWAYS_INLINE void run(const PixelTap<T, A>* taps, int64_t count,
                                        const T* bias,  // [channels] or null
                                        int64_t channels, PixelRun pixels, T* out) {
    int64_t p = 0;
    for (; p + 4 <= pixels.count; p += 4) sum<4>(taps, count, bias, channels, p, pixels, out);
    for (; p < pixels.count; ++p) sum<1>(taps, count, bias, channels, p, pixels, out);
  }

 private:
  template <int kPixels, typename T, typename A>
  static ATROUSX_ALWAYS_INLINE void sum(const PixelTap<T, A>* taps, int64_t count, const T* bias,
                                        int64_t channels, int64_t p, PixelRun pixels, T* out) {
    constexpr int64_t kLanes = Wide<A>::kLanes;
    int64_t c = 0;
    for (; c + 2 * kLanes <= channels; c += 2 * kLanes)
      vectors<kPixels, 2>(taps, count, bias, c, p, pixels, out);
    for (; c + kLanes <= channels; c += kLanes)
      vectors<kPixels, 1>(taps, count, bias, c, p, pixels, out);
    for (; c < channels; ++c)
      for (int64_t q = p; q < p + kPixels; ++q) {
        A sum = bias == nullptr ? A(0) : static_cast<A>(bias[c]);
        for (int64_t t = 0; t < count; ++t)
          sum += taps[t].weights[c] * static_cast<A>(taps[t].source[q * pixels.source_step + c]);
        out[q * pixels.step + c] = static_cast<T>(sum);
      }
  }

  template <int kPixels, int kVectors, typename T, typename A>
  static ATROUSX_ALWAYS_INLINE void vectors(const PixelTap<T, A>* taps, int64_t count,
                                            const T* bias, int64_t c, int64_t p, PixelRun pixels,
                                            T* out) {
    using W = Wide<A>;
    typename W::Vector sums[kPixels][kVectors] = {}, weight, value;
    if (bias != nullptr)
      for (int q = 0; q < kPixels; ++q)
        for (int v = 0; v < kVectors; ++v) W::load(bias + c + v * W::kLanes, sums[q][v]);
    for (int64_t t = 0; t < count; ++t) {
      const T* source = taps[t].source + p * pixels.source_step + c;
      for (int v = 0; v < kVectors; ++v) {
        W::load(taps[t].weights + c + v * W::kLanes, weight);
        for (int q = 0; q < kPixels; ++q) {
          W::load(source + q * pixels.source_step + v * W::kLanes, value);
          sums[q][v] += weight * value;
        }
      }
    }
    for (int q = 0; q < kPixels; ++q)
      for (int v = 0; v < kVectors; ++v)
        W::store(sums[q][v], out + (p + q) * pixels.step + c + v * W::kLanes);
  }
};

// Depthwise (inner = outer = 1) in channels_last.
template <typename T>
void gather_pixels(const GatherShape& shape,
                   const T* source,  // [N, source rows, source columns, groups]
                   const T* weight, const WeightStrides& ws,
                   const T* bias,   // [groups] or null
                   T* destination,  // [N, rows, columns, groups]
                   const Tensor& like) {
  using A = Accumulate<T>;
  const int64_t height = shape.rows.destinations, channels = shape.groups;
  const int64_t width = shape.columns.destinations, taps = shape.columns.taps;
  const Tensor by_tap = scratch(like, shape.rows.taps * taps * channels);
  A* weights = static_cast<A*>(by_tap.mutable_data_ptr());  // [KH, KW, groups]
  for (int64_t kh = 0; kh < shape.rows.taps; ++kh)
    for (int64_t kw = 0; kw < taps; ++kw)
      for (int64_t c = 0; c < channels; ++c)
        weights[(kh * taps + kw) * channels + c] =
            static_cast<A>(weight[c * ws.group + kh * ws.h + kw * ws.w]);
  const auto classes = axis_classes(shape.columns);
  const int64_t grain = rows_per_task(width * channels * shape.rows.taps * taps);
  torch::stable::parallel_for(0, shape.batch * height, grain, [&](int64_t begin, int64_t end) {
    std::vector<PixelTap<T, A>> live(shape.rows.taps * taps);
    for (int64_t r = begin; r < end; ++r)
      for (const AxisClass& c : classes) {
        int64_t count = 0;
        for (int64_t kh = 0; kh < shape.rows.taps; ++kh) {
          const int64_t line = shape.rows.source(r % height, kh);
          if (line < 0) continue;
          const int64_t pixel =
              (r / height * shape.rows.sources + line) * shape.columns.sources + c.source_first;
          for (int64_t i = 0; i < c.taps.count; ++i)
            live[count++] = {source + (pixel + i * c.source_per_tap) * channels,
                             weights + (kh * taps + c.taps.at(i)) * channels};
        }
        run_best<SumPixelTaps>(static_cast<const PixelTap<T, A>*>(live.data()), count, bias,
                               channels,
                               PixelRun{c.destinations.count, c.source_per_destination * channels,
                                        c.destinations.step * channels},
                               destination + (r * width + c.destinations.first) * channels);
      }
  });
}

}  // namespace atrousx
