// CPU kernels, checks and registration of upsample_bilinear2d and its backward.
//
// Work is divided into rows of the destination. A contiguous row holds one channel and blends
// columns; a channels_last row holds all channels and blends whole pixels, so in both formats the
// inner loop runs over neighbouring addresses.
#include "../cpu_dispatch.h"
#include "arguments.h"

namespace atrousx {
namespace {

using torch::stable::parallel_for;

// Rows per task: enough elements to pay for waking a thread.
int64_t row_grain(int64_t row_elements) {
  constexpr int64_t kElementsPerTask = 16384;
  return std::max<int64_t>(1, kElementsPerTask / std::max<int64_t>(1, row_elements));
}

template <typename A>
std::vector<BilinearTap<A>> all_taps(const BilinearAxis<A>& axis) {
  std::vector<BilinearTap<A>> taps(axis.out);
  for (int64_t o = 0; o < axis.out; ++o) taps[o] = axis.tap(o);
  return taps;
}

// The transpose of all_taps in compressed rows: readers of input i, in increasing order, are
// entries [start[i], start[i + 1]).
template <typename A>
struct Readers {
  std::vector<int64_t> start, output;
  std::vector<A> weight;

  explicit Readers(const BilinearAxis<A>& axis) : start(axis.in + 1, 0) {
    for (int64_t i = 0; i < axis.in; ++i) {
      const auto range = axis.readers(i);
      for (int64_t o = range.first; o < range.last; ++o) {
        const A w = axis.weight_of(o, i);
        if (w == A(0)) continue;
        output.push_back(o);
        weight.push_back(w);
      }
      start[i + 1] = static_cast<int64_t>(output.size());
    }
  }
};

// out[w] = blend of two input rows at the columns' taps; one channel.
struct ForwardRow {
  template <typename T, typename A>
  static ATROUSX_ALWAYS_INLINE void run(const T* top, const T* bottom, A wy, T* out,
                                        const BilinearTap<A>* columns, int64_t width) {
    for (int64_t w = 0; w < width; ++w) {
      const BilinearTap<A> t = columns[w];
      const A upper = (A(1) - t.weight) * static_cast<A>(top[t.lower]) +
                      t.weight * static_cast<A>(top[t.upper]);
      const A lower = (A(1) - t.weight) * static_cast<A>(bottom[t.lower]) +
                      t.weight * static_cast<A>(bottom[t.upper]);
      out[w] = static_cast<T>((A(1) - wy) * upper + wy * lower);
    }
  }
};

// The same for a row of whole pixels: every channel of a pixel has the same four weights.
struct ForwardPixelRow {
  template <typename T, typename A>
  static ATROUSX_ALWAYS_INLINE void run(const T* top, const T* bottom, A wy, T* out,
                                        const BilinearTap<A>* columns, int64_t width,
                                        int64_t channels) {
    for (int64_t w = 0; w < width; ++w) {
      const BilinearTap<A> t = columns[w];
      const T *a = top + t.lower * channels, *b = top + t.upper * channels;
      const T *c = bottom + t.lower * channels, *d = bottom + t.upper * channels;
      for (int64_t k = 0; k < channels; ++k) {
        const A upper = (A(1) - t.weight) * static_cast<A>(a[k]) + t.weight * static_cast<A>(b[k]);
        const A lower = (A(1) - t.weight) * static_cast<A>(c[k]) + t.weight * static_cast<A>(d[k]);
        out[w * channels + k] = static_cast<T>((A(1) - wy) * upper + wy * lower);
      }
    }
  }
};

template <typename T, typename A>
void forward(const T* input,  // [N, C, H, W] or [N, H, W, C]
             T* output,       // [N, C, OH, OW] or [N, OH, OW, C]
             int64_t batch, int64_t channels, const BilinearPlan<A>& plan, bool channels_last) {
  const auto rows = all_taps(plan.rows), columns = all_taps(plan.columns);
  const int64_t planes = channels_last ? batch : batch * channels;
  const int64_t pixel = channels_last ? channels : 1;
  const int64_t in_row = plan.columns.in * pixel, out_row = plan.columns.out * pixel;
  const int64_t height = plan.rows.out;
  parallel_for(0, planes * height, row_grain(out_row), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const BilinearTap<A> row = rows[r % height];
      const T* plane = input + r / height * plan.rows.in * in_row;
      const T *top = plane + row.lower * in_row, *bottom = plane + row.upper * in_row;
      T* out = output + r * out_row;
      if (channels_last)
        run_best<ForwardPixelRow>(top, bottom, row.weight, out, columns.data(), plan.columns.out,
                                  channels);
      else
        run_best<ForwardRow>(top, bottom, row.weight, out, columns.data(), plan.columns.out);
    }
  });
}

// sums[j] += weight * line[j]
struct AddScaledRow {
  template <typename T, typename A>
  static ATROUSX_ALWAYS_INLINE void run(const T* line, A weight, A* sums, int64_t count) {
    for (int64_t j = 0; j < count; ++j) sums[j] += weight * static_cast<A>(line[j]);
  }
};

// grad_input row = the readers of each column, summed in order; `pixel` channels side by side.
struct GatherColumns {
  template <typename T, typename A>
  static ATROUSX_ALWAYS_INLINE void run(const A* sums, const int64_t* start, const int64_t* output,
                                        const A* weight, T* grad, A* pixel_sum, int64_t width,
                                        int64_t pixel) {
    for (int64_t w = 0; w < width; ++w) {
      for (int64_t k = 0; k < pixel; ++k) pixel_sum[k] = A(0);
      for (int64_t e = start[w]; e < start[w + 1]; ++e)
        for (int64_t k = 0; k < pixel; ++k) pixel_sum[k] += weight[e] * sums[output[e] * pixel + k];
      for (int64_t k = 0; k < pixel; ++k) grad[w * pixel + k] = static_cast<T>(pixel_sum[k]);
    }
  }
};

template <typename T, typename A>
void backward(const T* grad_output,  // [N, C, OH, OW] or [N, OH, OW, C]
              T* grad_input,         // [N, C, H, W] or [N, H, W, C]
              int64_t batch, int64_t channels, const BilinearPlan<A>& plan, bool channels_last) {
  const Readers<A> rows(plan.rows), columns(plan.columns);
  const int64_t planes = channels_last ? batch : batch * channels;
  const int64_t pixel = channels_last ? channels : 1;
  const int64_t in_row = plan.columns.in * pixel, out_row = plan.columns.out * pixel;
  const int64_t height = plan.rows.in;
  const int64_t rows_read = std::max<int64_t>(1, plan.rows.out / height);
  parallel_for(0, planes * height, row_grain(out_row * rows_read), [&](int64_t begin, int64_t end) {
    // First down the rows into one output-wide line, then along it: separable, like the weights.
    std::vector<A> sums(out_row), pixel_sum(pixel);
    for (int64_t r = begin; r < end; ++r) {
      const T* plane = grad_output + r / height * plan.rows.out * out_row;
      std::fill(sums.begin(), sums.end(), A(0));
      for (int64_t e = rows.start[r % height]; e < rows.start[r % height + 1]; ++e)
        run_best<AddScaledRow>(plane + rows.output[e] * out_row, rows.weight[e], sums.data(),
                               out_row);
      run_best<GatherColumns>(static_cast<const A*>(sums.data()), columns.start.data(),
                              columns.output.data(), columns.weight.data(), grad_input + r * in_row,
                              pixel_sum.data(), plan.columns.in, pixel);
    }
  });
}

Tensor upsample_bilinear2d_cpu(const Tensor& input, std::vector<int64_t> output_size,
                               bool align_corners, std::optional<double> scale_h,
                               std::optional<double> scale_w) {
  const auto r = Resampling::forward(input, output_size, align_corners, scale_h, scale_w);
  const bool channels_last = is_channels_last(input);
  const Tensor output = empty4(input, r.output_size(), channels_last);
  if (output.numel() == 0) return output;
  const Tensor source = torch::stable::contiguous(input, memory_format(channels_last));
  dispatch_floating(input.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    forward(static_cast<const T*>(source.const_data_ptr()),
            static_cast<T*>(output.mutable_data_ptr()), r.batch, r.channels, r.plan<T>(),
            channels_last);
  });
  return output;
}

Tensor upsample_bilinear2d_backward_cpu(const Tensor& grad_output, std::vector<int64_t> input_size,
                                        bool align_corners, std::optional<double> scale_h,
                                        std::optional<double> scale_w) {
  const auto r = Resampling::backward(grad_output, input_size, align_corners, scale_h, scale_w);
  const bool channels_last = is_channels_last(grad_output);
  const Tensor grad_input = empty4(grad_output, r.input_size(), channels_last);
  if (grad_input.numel() == 0) return grad_input;
  const Tensor source = torch::stable::contiguous(grad_output, memory_format(channels_last));
  dispatch_floating(grad_output.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    backward(static_cast<const T*>(source.const_data_ptr()),
             static_cast<T*>(grad_input.mutable_data_ptr()), r.batch, r.channels, r.plan<T>(),
             channels_last);
  });
  return grad_input;
}

}  // namespace
}  // namespace atrousx

STABLE_TORCH_LIBRARY_IMPL(atrousx, CPU, m) {
  m.impl("upsample_bilinear2d", TORCH_BOX(&atrousx::upsample_bilinear2d_cpu));
  m.impl("_upsample_bilinear2d_backward", TORCH_BOX(&atrousx::upsample_bilinear2d_backward_cpu));
}
