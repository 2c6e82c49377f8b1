// Reads rows of logits of any floating dtype and layout on the CPU, into one row for each channel.
#pragma once

#include "cpu/transpose.h"
#include "tensor.h"
#include "upsample_bilinear2d/cpu/axis.h"
#include "upsample_bilinear2d/cpu/blend.h"

namespace atrousx {

// Prefetches neighbouring numbers that are read soon. The row of a channel is too short for the CPU
// to foresee this.
template <typename T>
ATROUSX_ALWAYS_INLINE void fetch_ahead(const T* from, int64_t count) {
  constexpr int64_t kLine = 64 / sizeof(T);
  for (int64_t j = 0; j < count; j += kLine) __builtin_prefetch(from + j);
}

// A row of pixels of all channels.
template <typename T>
struct LogitRow {
  const T* data;
  int64_t channels, channel_stride, column_stride;
};

// A line for each channel.
template <typename A>
struct ChannelLines {
  A* data;
  int64_t pitch;  // the distance from one line to the next
};

// to[c][w] = from[c * channel_stride + w * column_stride]
template <int kBytes>
struct ReadLogits {
  template <typename T, typename A>
  static ATROUSX_ALWAYS_INLINE void run(LogitRow<T> row, int64_t width, ChannelLines<A> lines) {
    constexpr int kLanes = kLanesIn<kBytes, A>;
    const auto [from, channels, channel_stride, column_stride] = row;
    const auto [to, pitch] = lines;
    if (column_stride == 1) {
      for (int64_t c = 0; c < channels; ++c) {
        if (c + 1 < channels) fetch_ahead(from + (c + 1) * channel_stride, width);
        Rows<kBytes>::convert(from + c * channel_stride, to + c * pitch, width);
      }
    } else if (channel_stride == 1 && channels >= kLanes && width >= kLanes) {
      transpose_block<kLanes>(from, column_stride, width, channels, to, pitch);
    } else {
      for (int64_t c = 0; c < channels; ++c)
        for (int64_t w = 0; w < width; ++w)
          to[c * pitch + w] = static_cast<A>(from[c * channel_stride + w * column_stride]);
    }
  }
};

// Reads and shrinks: each column is blended from the two around it as they are read.
template <int kBytes>
struct ShrinkLogits {
  template <typename T, typename A>
  static ATROUSX_ALWAYS_INLINE void run(LogitRow<T> row, const CpuAxis<A>* columns,
                                        ChannelLines<A> lines) {
    constexpr int kLanes = kLanesIn<kBytes, A>;
    const auto [from, channels, channel_stride, column_stride] = row;
    const auto [to, pitch] = lines;
    const int64_t *lower = columns->lower.data(), out = columns->out;
    const A* weight = columns->weight.data();
    if (channel_stride == 1 && channels >= kLanes && out >= kLanes) {
      for (int64_t o = 0; o < out; o += kLanes)
        for (int64_t c = 0; c < channels; c += kLanes)
          blend_square(from + min_of(c, channels - kLanes), columns, min_of(o, out - kLanes),
                       column_stride, to + min_of(c, channels - kLanes) * pitch, pitch);
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

  // Blends kLanes columns from output o on, for kLanes channels.
  template <typename T, typename A>
  static ATROUSX_ALWAYS_INLINE void blend_square(const T* from, const CpuAxis<A>* columns,
                                                 int64_t o, int64_t column_stride, A* to,
                                                 int64_t pitch) {
    constexpr int kLanes = kLanesIn<kBytes, A>;
    const int64_t* lower = columns->lower.data();
    const A* weight = columns->weight.data();
    transpose_square<kLanes>(
        [&](int i) ATROUSX_INLINE_LAMBDA {
          const A w = weight[o + i];
          const T* left = from + lower[o + i] * column_stride;
          const T* right = left + (w > A(0) ? column_stride : 0);
          return (A(1) - w) * load_lanes<kLanes>(left) + w * load_lanes<kLanes>(right);
        },
        [&](int i, auto v) ATROUSX_INLINE_LAMBDA { store_lanes<kLanes>(to + i * pitch + o, v); });
  }
};

// The logits, in any floating dtype and layout.
struct LogitRows {
  const void* data;
  ScalarType dtype;
  Strides4 strides;

  explicit LogitRows(const Tensor& t)
      : data(t.const_data_ptr()), dtype(t.scalar_type()), strides(strides4(t)) {}

  // Reads row h of image n and widens it.
  template <typename A>
  void read(int64_t n, int64_t h, int64_t channels, int64_t width, ChannelLines<A> to) const {
    row<A>(n, h, [&]<typename T>(const T* from) {
      run_with_lanes<ReadLogits>(LogitRow<T>{from, channels, strides.c, strides.w}, width, to);
    });
  }

  // Also resamples the row to columns->out columns. `mirrored`: reverses its columns.
  template <typename A>
  void shrink(int64_t n, int64_t h, int64_t channels, const CpuAxis<A>& columns, bool mirrored,
              ChannelLines<A> to) const {
    row<A>(n, h, [&]<typename T>(const T* from) {
      const LogitRow<T> row{mirrored ? from + (columns.in - 1) * strides.w : from, channels,
                            strides.c, mirrored ? -strides.w : strides.w};
      run_with_lanes<ShrinkLogits>(row, &columns, to);
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

}  // namespace atrousx
