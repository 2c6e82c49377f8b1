// Grad-weight on the CPU: per tap, an indirect matrix product over that tap's live pixels.
//
// One task owns, for one tap and one part of its live pixels, a rectangle of input channels times
// output channels. Parts are written to scratch and summed in order, and their number depends on
// sizes alone: the same bits come out under any number of threads.
#pragma once

#include "../tensor.h"
#include "cpu_product.h"
#include "plan.h"

namespace atrousx {

// to[i] += from[i].
struct AddRow {
  template <typename A>
  static ATROUSX_ALWAYS_INLINE void run(const A* from, int64_t count, A* to) {
    for (int64_t i = 0; i < count; ++i) to[i] += from[i];
  }
};

template <typename T, typename R>
class CpuGradWeight {
  using A = Accumulate<T>;
  static constexpr int64_t kDepth = 128;    // pixels of a panel
  static constexpr int64_t kSubtiles = 16;  // register tiles of input channels in a task
  static constexpr int64_t kBlocks = 8;     // register tiles of output channels in a task
  static constexpr int64_t kWantedTasks = 64;

 public:
  CpuGradWeight(const ConvGeometry& geometry, const T* grad_output,
                const Strides4& grad_output_strides, const T* input, const Strides4& input_strides)
      : g_(geometry),
        shape_(geometry.forward()),
        grad_output_(grad_output),
        grad_output_strides_(grad_output_strides),
        input_(input),
        input_strides_(input_strides),
        taps_(geometry.kernel_h * geometry.kernel_w),
        channel_tasks_(ceil_div<int64_t>(geometry.group_channels(), kSubtiles * R::kLanes)),
        output_tasks_(ceil_div<int64_t>(geometry.group_outputs(), kBlocks * R::kColumns)),
        splits_(grad_weight_splits(taps_ * g_.groups * channel_tasks_ * output_tasks_,
                                   g_.batch * g_.out_h * g_.out_w, kWantedTasks)) {}

  void run(T* grad_weight, const Strides4& strides, const Tensor& like) {
    const int64_t weights = g_.outputs * g_.group_channels() * taps_;
    const Tensor parts = scratch(like, splits_ * weights);
    A* part_data = static_cast<A*>(parts.mutable_data_ptr());
    const int64_t tasks = splits_ * g_.groups * taps_ * channel_tasks_ * output_tasks_;
    const Tensor buffer = scratch(like, cpu_workers(tasks) * kPerWorker);
    A* buffers = static_cast<A*>(buffer.mutable_data_ptr());
    for_each_task(tasks, [&](int64_t task, int64_t worker) {
      run_task(task, buffers + worker * kPerWorker, part_data);
    });
    sum_parts(part_data, grad_weight, strides);
  }

 private:
  static constexpr int64_t kLanePanels = kSubtiles * kDepth * R::kLanes;
  static constexpr int64_t kColumnPanels = kBlocks * kDepth * R::kColumns;
  static constexpr int64_t kPerWorker =
      kLanePanels + kColumnPanels + kSubtiles * kBlocks * R::kSums;

  void run_task(int64_t task, A* buffer, A* parts) {
    const int64_t output_task = task % output_tasks_;
    task /= output_tasks_;
    const int64_t channel_task = task % channel_tasks_;
    task /= channel_tasks_;
    const int64_t tap = task % taps_, group = task / taps_ % g_.groups;
    const int64_t split = task / taps_ / g_.groups;

    // As even as can be: a rest of a few channels would cost as much packing as a full rectangle.
    const int64_t channel = channel_task * g_.group_channels() / channel_tasks_;
    const int64_t channels = (channel_task + 1) * g_.group_channels() / channel_tasks_ - channel;
    const int64_t output = output_task * kBlocks * R::kColumns;
    const int64_t outputs = std::min(kBlocks * R::kColumns, g_.group_outputs() - output);
    const T* input = input_ + (group * g_.group_channels() + channel) * input_strides_.c;
    const T* grad = grad_output_ + (group * g_.group_outputs() + output) * grad_output_strides_.c;
    A* sums = buffer + kLanePanels + kColumnPanels;
    std::fill(sums, sums + kSubtiles * kBlocks * R::kSums, A(0));  // [blocks, channels, kColumns]

    const TapSpan rows = shape_.rows.span(tap / g_.kernel_w);
    const TapSpan columns = shape_.columns.span(tap % g_.kernel_w);
    const int64_t pixels = g_.batch * rows.destinations.count * columns.destinations.count;
    const int64_t part = ceil_div(pixels, splits_);
    const int64_t end = std::min(pixels, (split + 1) * part);
    for (int64_t start = split * part; start < end; start += kDepth)
      add_pixels(rows, columns, start, std::min(kDepth, end - start), input, channels, grad,
                 outputs, buffer);

    for (int64_t b = 0; b * R::kColumns < outputs; ++b)
      for (int64_t c = 0; c < channels; ++c) {
        const int64_t columns = std::min<int64_t>(R::kColumns, outputs - b * R::kColumns);
        std::copy_n(sums + (b * channels + c) * R::kColumns, columns,
                    parts + part_offset(split, tap, channel + c) + group * g_.group_outputs() +
                        output + b * R::kColumns);
      }
  }

  // Where a part keeps the outputs of one channel of the groups, [splits, taps, C/groups, K].
  int64_t part_offset(int64_t split, int64_t tap, int64_t channel) const {
    return ((split * taps_ + tap) * g_.group_channels() + channel) * g_.outputs;
  }

  // sums += the product over live pixels [start, start + depth) of one tap.
  void add_pixels(const TapSpan& rows, const TapSpan& columns, int64_t start, int64_t depth,
                  const T* input, int64_t channels, const T* grad, int64_t outputs, A* buffer) {
    int64_t input_depth[kDepth], grad_depth[kDepth];
    for (int64_t d = 0; d < depth; ++d) {
      const int64_t column = (start + d) % columns.destinations.count;
      const int64_t line = (start + d) / columns.destinations.count;
      const int64_t row = line % rows.destinations.count, n = line / rows.destinations.count;
      input_depth[d] = input_strides_.offset(n, 0, rows.source_first + row * rows.source_step,
                                             columns.source_first + column * columns.source_step);
      grad_depth[d] = grad_output_strides_.offset(n, 0, rows.destinations.at(row),
                                                  columns.destinations.at(column));
    }
    A *lanes = buffer, *panels = buffer + kLanePanels, *sums = panels + kColumnPanels;
    const LanePieces pieces(channels, R::kLanes);
    for (int64_t s = 0; s < pieces.count; ++s)
      pack<R::kLanes>(input + pieces.first(s) * input_strides_.c, input_strides_.c,
                      {input_depth, depth}, pieces.size(s), lanes + s * kDepth * R::kLanes);
    const int64_t blocks = ceil_div<int64_t>(outputs, R::kColumns);
    for (int64_t b = 0; b < blocks; ++b) {
      const int64_t first = b * R::kColumns;
      pack<R::kColumns>(grad + first * grad_output_strides_.c, grad_output_strides_.c,
                        {grad_depth, depth}, std::min<int64_t>(R::kColumns, outputs - first),
                        panels + b * kDepth * R::kColumns);
    }
    const Segment all{0, depth};
    for (int64_t b = 0; b < blocks; ++b)
      for (int64_t s = 0; s < pieces.count; ++s)
        multiply_panels<R, 1, R::kLanes>(pieces.size(s), lanes + s * kDepth * R::kLanes,
                                         panels + b * kDepth * R::kColumns, &all, 1,
                                         sums + (b * channels + pieces.first(s)) * R::kColumns);
  }

  // One panel of `count` channels.
  template <int kWidth>
  static void pack(const T* source, int64_t channel_stride, PanelRows rows, int64_t count,
                   A* panel) {
    int64_t lane_offsets[kWidth];
    for (int64_t l = 0; l < count; ++l) lane_offsets[l] = l * channel_stride;
    pack_panel<kWidth>(source, rows, lane_offsets, count, panel);
  }

  // The weights of one output are numbered in the order of memory: by channel and tap, or, where
  // channels are neighbours, by tap and channel.
  void sum_parts(A* parts,  // [splits, taps, C/groups, K], the first of which becomes their sum
                 T* grad_weight, const Strides4& strides) const {
    constexpr int kLanes = 16;
    const int64_t channels = g_.group_channels(), weights = channels * taps_;
    const bool channel_fastest = strides.c < strides.w;
    for_each_task(ceil_div<int64_t>(weights, kLanes), [&](int64_t task, int64_t) {
      const int64_t first = task * kLanes, count = std::min<int64_t>(kLanes, weights - first);
      int64_t from[kLanes], to[kLanes];
      for (int64_t l = 0; l < count; ++l) {
        const int64_t tap = channel_fastest ? (first + l) / channels : (first + l) % taps_;
        const int64_t c = channel_fastest ? (first + l) % channels : (first + l) / taps_;
        from[l] = part_offset(0, tap, c);
        to[l] = strides.offset(0, c, tap / g_.kernel_w, tap % g_.kernel_w);
        for (int64_t s = 1; s < splits_; ++s)
          run_best<AddRow>(static_cast<const A*>(parts + part_offset(s, tap, c)), g_.outputs,
                           parts + from[l]);
      }
      write_weights(parts, from, count, grad_weight, to, strides.n);
    });
  }

  // grad_weight[to[l] + k * stride] = sums[from[l] + k] for all outputs k.
  void write_weights(const A* sums, const int64_t* from, int64_t count, T* grad_weight,
                     const int64_t* to, int64_t stride) const {
    constexpr int kLanes = 16;
    if constexpr (std::is_same_v<T, A>) {
      // Neighbours in memory are a panel as the multiplication's are, one row an output.
      if (count == kLanes && to[kLanes - 1] == to[0] + kLanes - 1) {
        std::vector<int64_t> outputs(g_.outputs), rows(g_.outputs);
        for (int64_t k = 0; k < g_.outputs; ++k) outputs[k] = k, rows[k] = to[0] + k * stride;
        return pack_panel<kLanes>(sums, {outputs.data(), g_.outputs, rows.data()}, from, kLanes,
                                  grad_weight);
      }
    }
    for (int64_t k = 0; k < g_.outputs; ++k)
      for (int64_t l = 0; l < count; ++l)
        grad_weight[to[l] + k * stride] = static_cast<T>(sums[from[l] + k]);
  }

  const ConvGeometry g_;
  const GatherShape shape_;
  const T* const grad_output_;  // [N, K, OH, OW]
  const Strides4 grad_output_strides_;
  const T* const input_;  // [N, C, H, W]
  const Strides4 input_strides_;
  const int64_t taps_, channel_tasks_, output_tasks_, splits_;
};

}  // namespace atrousx
