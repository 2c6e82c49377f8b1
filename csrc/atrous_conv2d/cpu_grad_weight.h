// Grad-weight on the CPU: per tap, an indirect matrix product over that tap's live pixels.
//
// One task owns, for one tap and one part of its live pixels, a rectangle of input channels times
// output channels. Parts are written to scratch and summed in order, and their number depends on
// sizes alone: the same bits come out under any number of threads.
#pragma once

#include "../tensor.h"
#include "cpu_product.h"
#include "cpu_slabs.h"
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
  using A = typename R::A;
  static constexpr int kSlab = 8 * R::kLanes;    // input channels that lie together
  static constexpr int kDepth = 256;             // pixels of one product
  static constexpr int64_t kTaskChannels = 224;  // of the input, at most
  static constexpr int64_t kTaskColumns = 256;   // output channels, at most
  static constexpr int64_t kWantedTasks = 64;
  using Lanes = Slabs<A, kSlab>;
  using Columns = Slabs<A, R::kColumns>;

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
        blocks_(ceil_div<int64_t>(geometry.group_outputs(), R::kColumns)),
        task_slabs_(std::max<int64_t>(1, kTaskChannels / kSlab)),
        task_blocks_(std::max<int64_t>(1, kTaskColumns / R::kColumns)),
        channel_tasks_(ceil_div(ceil_div<int64_t>(geometry.group_channels(), kSlab), task_slabs_)),
        output_tasks_(ceil_div(blocks_, task_blocks_)),
        splits_(grad_weight_splits(taps_ * g_.groups * channel_tasks_ * output_tasks_,
                                   g_.batch * g_.out_h * g_.out_w, kWantedTasks)) {}

  void run(T* grad_weight, const Strides4& strides, const Tensor& like) {
    const int64_t weights = g_.outputs * g_.group_channels() * taps_;
    const Tensor parts = scratch(like, splits_ * weights);
    A* part_data = static_cast<A*>(parts.mutable_data_ptr());
    const MapSize input{g_.batch,  g_.groups, g_.group_channels(),
                        g_.height, g_.width,  g_.group_channels()};
    const MapSize grad{g_.batch, g_.groups, g_.group_outputs(),
                       g_.out_h, g_.out_w,  g_.group_outputs()};
    const Tensor input_memory = Lanes::memory(input, like);
    const Tensor grad_memory = Columns::memory(grad, like);
    const Lanes lanes(input, input_, input_strides_,
                      static_cast<A*>(input_memory.mutable_data_ptr()));
    const Columns columns(grad, grad_output_, grad_output_strides_,
                          static_cast<A*>(grad_memory.mutable_data_ptr()));
    const int64_t tasks = splits_ * g_.groups * taps_ * channel_tasks_ * output_tasks_;
    const int64_t per_worker = task_slabs_ * kSlab * task_blocks_ * R::kColumns;
    const Tensor buffer = scratch(like, cpu_workers(tasks) * per_worker);
    A* buffers = static_cast<A*>(buffer.mutable_data_ptr());
    for_each_task(tasks, [&](int64_t task, int64_t worker) {
      run_task(task, lanes, columns, buffers + worker * per_worker, part_data);
    });
    sum_parts(part_data, grad_weight, strides);
  }

 private:
  void run_task(int64_t task, const Lanes& lanes, const Columns& columns,
                A* sums,  // [blocks, channels, kColumns]
                A* parts) {
    const int64_t block = task % output_tasks_ * task_blocks_;
    task /= output_tasks_;
    const int64_t slab = task % channel_tasks_ * task_slabs_;
    task /= channel_tasks_;
    const int64_t tap = task % taps_, group = task / taps_ % g_.groups;
    const int64_t split = task / taps_ / g_.groups;

    const int64_t channel = slab * kSlab, output = block * R::kColumns;
    const int64_t channels = std::min(task_slabs_ * kSlab, g_.group_channels() - channel);
    const int64_t blocks = std::min(task_blocks_, blocks_ - block);
    std::fill(sums, sums + channels * blocks * R::kColumns, A(0));
    const A* from = lanes.data() + group * lanes.group_size() + slab * lanes.slab_size();
    const A* grad = columns.data() + group * columns.group_size() + block * columns.slab_size();
    const TapSpan row_span = shape_.rows.span(tap / g_.kernel_w);
    const TapSpan column_span = shape_.columns.span(tap % g_.kernel_w);
    const int64_t pixels = g_.batch * row_span.destinations.count * column_span.destinations.count;
    const int64_t part = ceil_div(pixels, splits_);
    const int64_t end = std::min(pixels, (split + 1) * part);
    SegmentList segments;
    const auto multiply = [&] {
      for (int64_t first = 0; first < channels; first += kSlab)
        multiply_slab(segments, from + first / kSlab * lanes.slab_size(),
                      std::min<int64_t>(kSlab, channels - first), grad, columns.slab_size(), blocks,
                      channels, sums + first * R::kColumns);
      segments.clear();
    };
    for (int64_t p = split * part; p < end;) {
      const int64_t width = column_span.destinations.count, column = p % width, line = p / width;
      const int64_t row = line % row_span.destinations.count;
      const int64_t n = line / row_span.destinations.count;
      if (segments.depth == kDepth) multiply();
      // Along a row, pixel after pixel.
      const int64_t run = std::min({width - column, end - p, kDepth - segments.depth});
      const int64_t source =
          lanes.strides().offset(n, 0, row_span.source_first + row * row_span.source_step,
                                 column_span.source_first + column * column_span.source_step);
      const int64_t destination = columns.strides().offset(n, 0, row_span.destinations.at(row),
                                                           column_span.destinations.at(column));
      if (column_span.source_step == 1) {
        segments.add({source, destination, run}, kSlab, R::kColumns);
        p += run;
      } else {
        segments.add({source, destination, 1}, kSlab, R::kColumns);
        ++p;
      }
    }
    if (!segments.items.empty()) multiply();
    for (int64_t b = 0; b < blocks; ++b)
      for (int64_t c = 0; c < channels; ++c) {
        const int64_t first = output + b * R::kColumns;
        std::copy_n(
            sums + (b * channels + c) * R::kColumns,
            std::min<int64_t>(R::kColumns, g_.group_outputs() - first),
            parts + part_offset(split, tap, channel + c) + group * g_.group_outputs() + first);
      }
  }

  // The product of one slab of channels with all blocks of outputs.
  static void multiply_slab(const SegmentList& segments, const A* lanes, int64_t width,
                            const A* columns, int64_t columns_size, int64_t blocks,
                            int64_t channels,
                            A* sums) {  // [blocks, channels, kColumns], from the slab's first on
    static constexpr auto kNeighbours = [] {
      std::array<int64_t, R::kLanes> lanes{};
      for (int l = 0; l < R::kLanes; ++l) lanes[l] = l;
      return lanes;
    }();
    const LanePieces pieces(width, R::kLanes);
    for (int64_t s = 0; s < pieces.count; ++s)
      for (int64_t b = 0; b < blocks; ++b)
        multiply_lanes<R, kSlab>(pieces.size(s), lanes + pieces.first(s), kNeighbours.data(),
                                 columns + b * columns_size, segments, nullptr,
                                 sums + (b * channels + pieces.first(s)) * R::kColumns);
  }

  // Where a part keeps the outputs of one channel of the groups, [splits, taps, C/groups, K].
  int64_t part_offset(int64_t split, int64_t tap, int64_t channel) const {
    return ((split * taps_ + tap) * g_.group_channels() + channel) * g_.outputs;
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
  const int64_t taps_, blocks_, task_slabs_, task_blocks_, channel_tasks_, output_tasks_, splits_;
};

}  // namespace atrousx
