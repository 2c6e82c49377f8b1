// Applies an Epilogue to finished sums and stores them, on the CPU. Vectors hold channels if the
// channels of a pixel are neighbours in the destination. Otherwise vectors hold pixels.
#pragma once

#include "atrous_conv2d/plan.h"
#include "cpu/transpose.h"

namespace atrousx {

// Returns the epilogue whose channel 0 is the given channel.
template <typename T>
Epilogue<T> from_channel(Epilogue<T> epilogue, int64_t channel) {
  if (epilogue.bias != nullptr) epilogue.bias += channel;
  if (epilogue.residual != nullptr) epilogue.residual += channel * epilogue.residual_strides.c;
  return epilogue;
}

// to[l] = max(0, sums[l] + bias[l] + residual[l]), like Epilogue::finish.
template <int kLanes, typename T, typename A>
ATROUSX_ALWAYS_INLINE void finish_lanes(const A* sums, Lanes<A, kLanes> bias, const T* residual,
                                        bool relu, T* to) {
  using Vector = Lanes<A, kLanes>;
  Vector v = load_lanes<kLanes>(sums) + bias;
  if (residual != nullptr) v += load_lanes<kLanes>(residual);
  if (relu) v = v < Vector{} ? Vector{} : v;  // NaN stays NaN
  store_lanes<kLanes>(to, v);
}

// The offsets of channel 0 of each pixel, in the destination and in the residual.
struct PixelPlaces {
  const int64_t *to, *residual;
  int64_t count;
};
// Channels [first, first + count). The sums of the next pixel lie `step` further on.
struct ChannelRange {
  int64_t first, count, step;
};

// For pixels whose channels are neighbours. The loop over pixels is inside, because a pixel takes
// less time than a call.
template <int kBytes>
struct FinishPixels {
  template <typename T, typename A>
  static ATROUSX_ALWAYS_INLINE void run(const A* sums, PixelPlaces pixels, ChannelRange channels,
                                        Epilogue<T> epilogue, T* to) {
    constexpr int kLanes = kLanesIn<kBytes, A>;
    const bool by_vectors = epilogue.residual == nullptr || epilogue.residual_strides.c == 1;
    for (int64_t p = 0; p < pixels.count; ++p, sums += channels.step) {
      const T* residual =
          epilogue.residual == nullptr ? nullptr : epilogue.residual + pixels.residual[p];
      int64_t c = 0;
      if (by_vectors)
        for (; c + kLanes <= channels.count; c += kLanes)
          finish<kLanes>(sums, c, residual, c, epilogue, to + pixels.to[p]);
      for (; c < channels.count; ++c)
        finish<1>(sums, c, residual, c * epilogue.residual_strides.c, epilogue, to + pixels.to[p]);
    }
  }

 private:
  template <int kLanes, typename T, typename A>
  static ATROUSX_ALWAYS_INLINE void finish(const A* sums, int64_t c, const T* residual,
                                           int64_t residual_offset, const Epilogue<T>& epilogue,
                                           T* to) {
    Lanes<A, kLanes> bias = -Lanes<A, kLanes>{};  // adding -0 changes no sum, not even -0
    if (epilogue.bias != nullptr) bias = load_lanes<kLanes>(epilogue.bias + c);
    finish_lanes<kLanes>(sums + c, bias, residual == nullptr ? nullptr : residual + residual_offset,
                         epilogue.relu, to + c);
  }
};

// Pixels [first, first + count), which are neighbours in the destination and in the residual. `to`
// and `residual` are the offsets of channel 0 of the first pixel.
struct PixelRun {
  int64_t first, count, to, residual;
};
// The runs that `pixels` pixels consist of.
struct PixelRuns {
  const PixelRun* runs;
  int64_t count, pixels;
};

// For a few pixels of a destination in which each channel is a plane. The sums are transposed, then
// stored run by run.
template <int kBytes>
struct FinishPlanes {
  static constexpr int64_t kPixels = 64;  // most pixels of a call
  static constexpr int64_t kAhead = 12;   // channels to prefetch ahead

  template <typename T, typename A>
  static ATROUSX_ALWAYS_INLINE void run(const A* sums,  // [pixels, step]
                                        PixelRuns all, ChannelRange channels, Epilogue<T> epilogue,
                                        T* to, int64_t plane) {
    constexpr int kLanes = kLanesIn<kBytes, A>;
    const auto [runs, count, pixels] = all;
    A by_channel[kLanes * kPixels];
    for (int64_t c = 0; c < channels.count; c += kLanes) {
      // The last square overlaps the one before.
      const int64_t first = std::min(c, channels.step - kLanes);
      transpose<kLanes>(sums + first, channels.step, pixels, by_channel);
      for (int64_t k = c; k < std::min(c + kLanes, channels.count); ++k) {
        const A bias = epilogue.bias == nullptr ? -A(0) : static_cast<A>(epilogue.bias[k]);
        const T* residual = epilogue.residual == nullptr
                                ? nullptr
                                : epilogue.residual + k * epilogue.residual_strides.c;
        // The planes are far apart. Without this, stores would wait for each cache line in turn.
        for (int64_t r = 0; r < count; ++r)
          __builtin_prefetch(to + (k + kAhead) * plane + runs[r].to, 1);
        for (int64_t r = 0; r < count; ++r)
          finish<kLanes>(by_channel + (k - first) * kPixels + runs[r].first, runs[r].count, bias,
                         residual == nullptr ? nullptr : residual + runs[r].residual, epilogue.relu,
                         to + k * plane + runs[r].to);
      }
    }
  }

 private:
  template <int kLanes, typename A>
  static ATROUSX_ALWAYS_INLINE void transpose(const A* sums, int64_t step, int64_t pixels,
                                              A* by_channel) {  // [kLanes, kPixels]
    for (int64_t p = 0; p < pixels; p += kLanes)
      transpose_square<kLanes>(
          [&](int i) ATROUSX_INLINE_LAMBDA {
            return p + i < pixels ? load_lanes<kLanes>(sums + (p + i) * step) : Lanes<A, kLanes>{};
          },
          [&](int k, auto v)
              ATROUSX_INLINE_LAMBDA { store_lanes<kLanes>(by_channel + k * kPixels + p, v); });
  }

  // The rest goes to shorter and shorter vectors.
  template <int kLanes, typename T, typename A>
  static ATROUSX_ALWAYS_INLINE void finish(const A* sums, int64_t count, A bias, const T* residual,
                                           bool relu, T* to) {
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes)
      finish_lanes<kLanes>(sums + i, bias - Lanes<A, kLanes>{},
                           residual == nullptr ? nullptr : residual + i, relu, to + i);
    if constexpr (kLanes > 1)
      if (i < count)
        finish<kLanes / 2>(sums + i, count - i, bias, residual == nullptr ? nullptr : residual + i,
                           relu, to + i);
  }
};

template <typename T>
struct FinishedPixels {
  Epilogue<T> epilogue;
  T* destination;  // [N, channels, rows, columns]
  Strides4 strides;
  static constexpr int64_t kRunPixels = FinishPlanes<64>::kPixels;

  // Returns how many pixels should be stored at a time. Planes need long runs.
  int64_t pixels_at_once(int64_t least) const { return strides.c == 1 ? least : kRunPixels; }

  template <typename A>
  void store(const PixelPlaces& pixels, const ChannelRange& channels, const A* sums) const {
    const int64_t first = channels.first;
    const Epilogue<T> own = from_channel(epilogue, first);
    if (strides.c == 1)
      return run_with_lanes<atrousx::FinishPixels>(sums, pixels, channels, own,
                                                   destination + first);
    for (int64_t p = 0; p < pixels.count; p += kRunPixels) {
      PixelRun runs[kRunPixels];
      const int64_t some = std::min(kRunPixels, pixels.count - p);
      const int64_t count = find_runs(pixels, p, some, runs);
      run_with_lanes<FinishPlanes>(sums + p * channels.step, PixelRuns{runs, count, some}, channels,
                                   own, destination + first * strides.c, strides.c);
    }
  }

  // Prefetches the cache lines of the destination and of the residual.
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

 private:
  // Finds the runs among pixels [p, p + count) and returns their number.
  int64_t find_runs(const PixelPlaces& pixels, int64_t p, int64_t count, PixelRun* runs) const {
    const int64_t step = epilogue.residual == nullptr ? 0 : 1;
    int64_t found = 0;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t to = pixels.to[p + i], residual = pixels.residual[p + i];
      if (found > 0) {
        PixelRun& last = runs[found - 1];
        if (to == last.to + last.count && residual * step == last.residual + last.count * step) {
          ++last.count;
          continue;
        }
      }
      runs[found++] = {i, 1, to, residual * step};
    }
    return found;
  }
};

}  // namespace atrousx
