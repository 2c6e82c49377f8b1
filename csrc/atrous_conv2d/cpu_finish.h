// Finished sums on their way to memory on the CPU: an Epilogue applied to pixels' channels, by
// vectors where channels are neighbours there.
#pragma once

#include "../cpu_lanes.h"
#include "plan.h"

namespace atrousx {

// What is added to a pixel's channels; the residual's channels lie `residual_step` apart.
template <typename T>
struct PixelTail {
  const T *bias, *residual;  // [channels] or null
  int64_t residual_step;
  bool relu;
};

// to[c] = max(0, sums[c] + bias[c] + residual[c]), as Epilogue::finish has it.
template <int kBytes>
struct FinishPixel {
  template <typename T, typename A>
  static ATROUSX_ALWAYS_INLINE void run(const A* sums, int64_t channels, PixelTail<T> tail, T* to) {
    constexpr int kLanes = kLanesIn<kBytes, A>;
    int64_t c = 0;
    if (tail.residual == nullptr || tail.residual_step == 1)
      for (; c + kLanes <= channels; c += kLanes) finish<kLanes>(sums, c, c, tail, to);
    for (; c < channels; ++c) finish<1>(sums, c, c * tail.residual_step, tail, to);
  }

 private:
  template <int kLanes, typename T, typename A>
  static ATROUSX_ALWAYS_INLINE void finish(const A* sums, int64_t c, int64_t residual,
                                           const PixelTail<T>& tail, T* to) {
    using Vector = Lanes<A, kLanes>;
    Vector v = load_lanes<kLanes>(sums + c);
    if (tail.bias != nullptr) v += load_lanes<kLanes>(tail.bias + c);
    if (tail.residual != nullptr) v += load_lanes<kLanes>(tail.residual + residual);
    if (tail.relu) v = v < Vector{} ? Vector{} : v;  // NaN stays
    store_lanes<kLanes>(to + c, v);
  }
};

// Where pixels go, as offsets of their channel 0, and where their residuals are.
struct PixelPlaces {
  const int64_t *to, *residual;
  int64_t count;
};
// Channels [first, first + count), whose sums of one pixel lie `step` before the next one's.
struct ChannelRange {
  int64_t first, count, step;
};

template <typename T>
struct FinishedPixels {
  Epilogue<T> epilogue;
  T* destination;  // [N, channels, rows, columns]
  Strides4 strides;

  template <typename A>
  void store(const PixelPlaces& pixels, const ChannelRange& channels, const A* sums) const {
    const int64_t residual_step = epilogue.residual_strides.c, first = channels.first;
    if (strides.c == 1) {
      const auto from = [](const T* data, int64_t offset) {
        return data == nullptr ? nullptr : data + offset;
      };
      for (int64_t p = 0; p < pixels.count; ++p)
        run_with_lanes<FinishPixel>(
            sums + p * channels.step, channels.count,
            PixelTail<T>{from(epilogue.bias, first),
                         from(epilogue.residual, pixels.residual[p] + first * residual_step),
                         residual_step, epilogue.relu},
            destination + pixels.to[p] + first);
      return;
    }
    for (int64_t c = first; c < first + channels.count; ++c)
      for (int64_t p = 0; p < pixels.count; ++p)
        destination[pixels.to[p] + c * strides.c] = epilogue.finish(
            sums[p * channels.step + c - first], c, pixels.residual[p] + c * residual_step);
  }

  // Asks for the lines that will be stored to, and for the residual's.
  void prefetch(const PixelPlaces& pixels, const ChannelRange& channels) const {
    constexpr int64_t kLine = 64 / static_cast<int64_t>(sizeof(T));
    if (strides.c != 1) return;
    const T* residual = epilogue.residual_strides.c == 1 ? epilogue.residual : nullptr;
    for (int64_t p = 0; p < pixels.count; ++p)
      for (int64_t c = channels.first; c < channels.first + channels.count; c += kLine) {
        if (residual != nullptr) __builtin_prefetch(residual + pixels.residual[p] + c, 0, 2);
        __builtin_prefetch(destination + pixels.to[p] + c, 1, 2);
      }
  }
};

}  // namespace atrousx
