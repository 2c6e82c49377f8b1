// Narrow groups on the CPU. This code adds rows to rows and uses no matrix product. It reads and
// writes only the stretch of a row where a tap is live. It is slow, but it is correct for all cases
// that the faster kernels do not handle.
#pragma once

#include <vector>

#include "atrous_conv2d/cpu/depthwise/channels_last.h"
#include "atrous_conv2d/cpu/gemm/microkernel.h"
#include "atrous_conv2d/plan.h"
#include "cpu/dispatch.h"
#include "tensor.h"

namespace atrousx {

// sums[destination] += weight * source, along the stretch of a row where a tap is live.
struct AddTapRow {
  template <typename T, typename A>
  static ATROUSX_ALWAYS_INLINE void run(const T* source, A weight, TapSpan span, A* sums) {
    const T* from = source + span.source_first;
    A* to = sums + span.destinations.first;
    const int64_t count = span.destinations.count;
    if (span.destinations.step == 1 && span.source_step == 1)
      for (int64_t j = 0; j < count; ++j) to[j] += weight * static_cast<A>(from[j]);
    else
      for (int64_t j = 0; j < count; ++j)
        to[j * span.destinations.step] += weight * static_cast<A>(from[j * span.source_step]);
  }
};

// *sum += the sum of a[j] * b[j * step]. It has 16 running sums, so that the compiler can vectorise
// the loop without changing the order of additions.
struct DotRow {
  template <typename T, typename A>
  static ATROUSX_ALWAYS_INLINE void run(const T* a, const T* b, int64_t step, int64_t count,
                                        A* sum) {
    constexpr int64_t kLanes = 16;
    A lanes[kLanes] = {};
    int64_t j = 0;
    if (step == 1)
      for (; j + kLanes <= count; j += kLanes)
        for (int64_t l = 0; l < kLanes; ++l)
          lanes[l] += static_cast<A>(a[j + l]) * static_cast<A>(b[j + l]);
    for (; j < count; ++j) lanes[j % kLanes] += static_cast<A>(a[j]) * static_cast<A>(b[j * step]);
    for (int64_t half = kLanes / 2; half > 0; half /= 2)
      for (int64_t l = 0; l < half; ++l) lanes[l] += lanes[l + half];
    *sum += lanes[0];
  }
};

inline std::vector<TapSpan> all_spans(const TapAxis& axis) {
  std::vector<TapSpan> spans(axis.taps);
  for (int64_t k = 0; k < axis.taps; ++k) spans[k] = axis.span(k);
  return spans;
}

// The weights of one output channel and one input channel.
template <typename W>
struct PlaneFilter {
  const W* weights;
  int64_t row_step, column_step;  // the distance between taps

  W at(int64_t kh, int64_t kw) const { return weights[kh * row_step + kw * column_step]; }
};

// Adds to the sums of a destination row the products of one source plane and the live taps of one
// filter.
template <typename T, typename W, typename A>
void add_taps(const GatherShape& shape, int64_t row, const std::vector<TapSpan>& spans,
              const T* plane, const PlaneFilter<W>& filter, A* sums) {
  for (int64_t kh = 0; kh < shape.rows.taps; ++kh) {
    const int64_t line = shape.rows.source(row, kh);
    if (line < 0) continue;
    for (int64_t kw = 0; kw < shape.columns.taps; ++kw)
      run_best<AddTapRow>(plane + line * shape.columns.sources, static_cast<A>(filter.at(kh, kw)),
                          spans[kw], sums);
  }
}

// Forward and grad-input for any groups, one channel plane at a time.
template <typename T>
void gather_planes(const GatherShape& shape,
                   const T* source,  // [N, groups * inner, source rows, source columns]
                   const T* weight, const WeightStrides& ws, Epilogue<T> epilogue,
                   T* destination)  // [N, groups * outer, rows, columns]
{
  using A = Accumulate<T>;
  const auto spans = all_spans(shape.columns);
  const int64_t height = shape.rows.destinations, width = shape.columns.destinations;
  const int64_t channels = shape.groups * shape.outer;
  const int64_t source_plane = shape.rows.sources * shape.columns.sources;
  const int64_t grain = rows_per_task(width * shape.inner * shape.rows.taps * shape.columns.taps);
  torch::stable::parallel_for(
      0, shape.batch * channels * height, grain, [&](int64_t begin, int64_t end) {
        // A sum over many channels is made of the sums of blocks of channels. This rounds less than
        // one running sum.
        constexpr int64_t kRunning = 144;
        const int64_t block = max_of<int64_t>(1, kRunning / (shape.rows.taps * shape.columns.taps));
        std::vector<A> sums(width), part(width);
        const A least = least_sum(epilogue);
        for (int64_t r = begin; r < end; ++r) {
          const int64_t row = r % height, channel = r / height % channels;
          const int64_t n = r / height / channels, group = channel / shape.outer;
          std::fill(sums.begin(), sums.end(), first_sum(epilogue, channel));
          const T* planes = source + (n * shape.groups + group) * shape.inner * source_plane;
          const T* filter = weight + group * ws.group + channel % shape.outer * ws.outer;
          for (int64_t first = 0; first < shape.inner; first += block) {
            std::fill(part.begin(), part.end(), A(0));
            for (int64_t c = first; c < std::min(first + block, shape.inner); ++c)
              add_taps(shape, row, spans, planes + c * source_plane,
                       PlaneFilter<T>{filter + c * ws.inner, ws.h, ws.w}, part.data());
            for (int64_t j = 0; j < width; ++j) sums[j] += part[j];
          }
          T* out = destination + r * width;
          for (int64_t j = 0; j < width; ++j) out[j] = static_cast<T>(at_least(sums[j], least));
        }
      });
}

// sums[kh][kw] = sum over images and live pixels of grad_output * input, for one output channel and
// one input channel of its group.
template <typename T, typename A>
void sum_products(const ConvGeometry& g, const std::vector<TapSpan>& spans,
                  const T* grad_output,  // [N, K, OH, OW], from that output channel on
                  const T* input,        // [N, C, H, W], from that input channel on
                  A* sums)               // [KH, KW]
{
  const TapAxis rows = g.forward().rows;
  std::fill_n(sums, g.kernel_h * g.kernel_w, A(0));
  for (int64_t n = 0; n < g.batch; ++n)
    for (int64_t kh = 0; kh < g.kernel_h; ++kh) {
      const TapSpan lines = rows.span(kh);
      for (int64_t j = 0; j < lines.destinations.count; ++j) {
        const int64_t line = lines.source_first + j * lines.source_step;
        const T* grad =
            grad_output + (n * g.outputs * g.out_h + lines.destinations.at(j)) * g.out_w;
        const T* from = input + (n * g.channels * g.height + line) * g.width;
        for (int64_t kw = 0; kw < g.kernel_w; ++kw)
          run_best<DotRow>(grad + spans[kw].destinations.first, from + spans[kw].source_first,
                           spans[kw].source_step, spans[kw].destinations.count,
                           &sums[kh * g.kernel_w + kw]);
      }
    }
}

}  // namespace atrousx
