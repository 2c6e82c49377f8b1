// Depthwise grad-weight on the CPU in NCHW. It also computes grad-weight of narrow groups: each
// pair of a gradient plane and an input plane is treated as depthwise.
//
// Both planes are packed with the same pitch (padded_plane.h), so a tap is a distance between them.
// Input rows with the same live taps form one stretch of memory. On it, three shifts of the input
// times three rows of gradients give nine vectors of sums in registers: six loads for nine
// products. Meanwhile the data after the planes in memory is prefetched. One task owns a pair, so
// its sums have a fixed order.
#pragma once

#include "atrous_conv2d/cpu/depthwise/padded_plane.h"
#include "atrous_conv2d/cpu/direct/direct_conv.h"
#include "atrous_conv2d/cpu/gemm/microkernel.h"

namespace atrousx {

// What all pairs of planes share.
template <typename A>
struct PlaneProducts {
  ConvGeometry g;
  PaddedColumns<A> columns;
  std::vector<AxisClass> rows;  // of the input, classed by the rows of the gradient that touch them
  int64_t strip;                // rows of the input packed at a time; 0 if packing does not pay
  PaddedPlane grad, source;

  explicit PlaneProducts(const ConvGeometry& geometry)
      : g(geometry),
        columns(g.forward().columns),
        rows(axis_classes(g.grad_input().rows)),
        strip(columns.dense ? strip_rows(g.height, reach(), columns.pitch) : 0) {
    strip = ceil_div(strip, g.stride_h) * g.stride_h;
    const int64_t touching = (std::min(strip, g.height) + reach()) / g.stride_h + 2;
    grad = {std::min(touching, g.out_h), g.out_w, 1, 1, columns.pitch};
    source = {std::min(strip, g.height), g.width, g.stride_h, g.stride_w, columns.pitch};
    if (!source.is_dense<A>()) strip = 0;
  }

  // Rows of the input from the first tap of a gradient to its last.
  int64_t reach() const { return (g.kernel_h - 1) * g.dilation_h; }

  // The first row of gradients that touches rows [first, end), and the one after the last.
  std::pair<int64_t, int64_t> touching(int64_t first, int64_t end) const {
    const int64_t least = std::max<int64_t>(0, first + g.padding_top - reach()) / g.stride_h;
    const int64_t most = std::min(g.out_h, (end - 1 + g.padding_top) / g.stride_h + 1);
    return {least, std::max(least, most)};
  }

  int64_t sums() const { return g.kernel_h * g.kernel_w * kPitchUnit<A>; }
  int64_t space() const { return sums() + grad.size() + columns.space(source); }
};

// Rows of an input plane and the rows of the gradient plane that touch them, both packed.
template <typename T, typename A>
struct PackedStrip {
  int64_t first, end, grad_first, grad_end;
  const T *input, *grad_output;  // the data after them in memory, which is packed soon
  const A *source, *grads;       // packed
};

template <int kBytes>
struct SumPlaneProducts {
  // totals[kh][kw] = sum over images and pixels of grad_output * input.
  template <typename T, typename A>
  static ATROUSX_ALWAYS_INLINE void run(const PlaneProducts<A>* plan,
                                        const T* grad_output,  // [N, K, OH, OW], from the pair's k
                                        const T* input,        // [N, C, H, W], from the pair's c
                                        A* memory,             // [plan->space()], zeros at first
                                        A* totals)             // [KH, KW]
  {
    const ConvGeometry& g = plan->g;
    A *sums = memory, *grads = sums + plan->sums();
    A* source = grads + plan->grad.size() + plan->columns.before();
    std::fill_n(sums, plan->sums(), A(0));
    for (int64_t n = 0; n < g.batch; ++n)
      for (int64_t first = 0; first < g.height; first += plan->strip) {
        const int64_t end = std::min(first + plan->strip, g.height);
        const auto [grad_first, grad_end] = plan->touching(first, end);
        const T* plane = input + n * g.channels * g.height * g.width;
        const T* grad = grad_output + n * g.outputs * g.out_h * g.out_w;
        PackPlane<kBytes>::run(plan->source, plane + first * g.width, end - first, source);
        PackPlane<kBytes>::run(plan->grad, grad + grad_first * g.out_w, grad_end - grad_first,
                               grads);
        const PackedStrip<T, A> strip{
            first,  end,  grad_first, grad_end, plane + end * g.width, grad + grad_end * g.out_w,
            source, grads};
        for (const AxisClass& rows : plan->rows) add_rows(*plan, strip, rows, sums);
      }
    for (int64_t t = 0; t < g.kernel_h * g.kernel_w; ++t)
      totals[t] = total<kLanesIn<kBytes, A>>(sums + t * kPitchUnit<A>);
  }

 private:
  template <int kLanes, typename A>
  static ATROUSX_ALWAYS_INLINE A total(A* lanes) {
    if constexpr (kLanes == 1) {
      return *lanes;
    } else {
      constexpr int kHalf = kLanes / 2;
      store_lanes<kHalf>(lanes, load_lanes<kHalf>(lanes) + load_lanes<kHalf>(lanes + kHalf));
      return total<kHalf>(lanes);
    }
  }

  // A stretch of the input, and the rows of gradients that some taps match to it.
  template <typename T, typename A>
  struct Block {
    int64_t count;
    const A *source, *grads;
    int64_t grad_step;
    A* sums;
    int64_t sum_step;
    const T *input, *grad_output;  // prefetched meanwhile
  };

  // Adds the products of a class's rows in a strip, a piece at a time. After each piece the
  // registers are added to memory, so that long sums round little. A piece's rows stay in L1 for
  // all blocks of taps.
  template <typename T, typename A>
  static ATROUSX_ALWAYS_INLINE void add_rows(const PlaneProducts<A>& plan,
                                             const PackedStrip<T, A>& strip, const AxisClass& rows,
                                             A* sums) {
    constexpr int64_t kPiece = 256 * kPitchUnit<A>;
    const Progression& lines = rows.destinations;
    const auto members_before = [&](int64_t row) {
      return std::clamp(ceil_div(row - lines.first, lines.step), int64_t{0}, lines.count);
    };
    const int64_t begin = members_before(strip.first), count = members_before(strip.end) - begin;
    if (count <= 0) return;
    const int64_t pitch = plan.columns.pitch, line = lines.at(begin) - strip.first;
    for (int64_t piece = 0; piece < count * pitch; piece += kPiece)
      for (int64_t i = 0; i < rows.taps.count; i += 3) {
        const int64_t grad = rows.source_first + begin + i * rows.source_per_tap - strip.grad_first;
        const int64_t row_sums = plan.g.kernel_w * kPitchUnit<A>;
        const Block<T, A> block{
            std::min(kPiece, count * pitch - piece), strip.source + plan.source.row(line) + piece,
            strip.grads + grad * pitch + piece,      rows.source_per_tap * pitch,
            sums + rows.taps.at(i) * row_sums,       rows.taps.step * row_sums,
            strip.input + line * pitch + piece,      strip.grad_output + line * pitch + piece};
        if (rows.taps.count - i == 1)
          add_shifts<1>(plan, block);
        else if (rows.taps.count - i == 2)
          add_shifts<2>(plan, block);
        else
          add_shifts<3>(plan, block);
      }
  }

  template <int kRows, typename T, typename A>
  static ATROUSX_ALWAYS_INLINE void add_shifts(const PlaneProducts<A>& plan,
                                               const Block<T, A>& block) {
    const auto& taps = plan.columns.taps;
    const int64_t count = static_cast<int64_t>(taps.size()), phase = plan.source.phase();
    int64_t j = 0;
    for (; j + 3 <= count; j += 3) add_block<kRows, 3>(block, &taps[j], phase);
    for (; j < count; ++j) add_block<kRows, 1>(block, &taps[j], phase);
  }

  // sums[i][j] += sum over a stretch of grads of row i * source shifted by j.
  template <int kRows, int kShifts, typename T, typename A>
  static ATROUSX_ALWAYS_INLINE void add_block(const Block<T, A>& block, const ColumnTap* taps,
                                              int64_t phase) {
    constexpr int kLanes = kLanesIn<kBytes, A>;
    using Vector = Lanes<A, kLanes>;
    Vector sums[kRows][kShifts] = {}, grads[kRows];
    const A* source[kShifts];
    for (int j = 0; j < kShifts; ++j)
      source[j] = block.source + taps[j].phase * phase + taps[j].shift;
    for (int64_t f = 0; f < block.count; f += kLanes) {
      prefetch_next(block.input + f);
      prefetch_next(block.grad_output + f);
      for (int i = 0; i < kRows; ++i)
        grads[i] = in_register(load_lanes<kLanes>(block.grads + i * block.grad_step + f));
      for (int j = 0; j < kShifts; ++j) {
        const Vector value = in_register(load_lanes<kLanes>(source[j] + f));
        for (int i = 0; i < kRows; ++i) sums[i][j] += grads[i] * value;
      }
    }
    for (int i = 0; i < kRows; ++i)
      for (int j = 0; j < kShifts; ++j) {
        A* to = block.sums + i * block.sum_step + taps[j].tap * kPitchUnit<A>;
        store_lanes<kLanes>(to, load_lanes<kLanes>(to) + sums[i][j]);
      }
  }
};

// One task owns the filter that links one output channel to one input channel of its group.
template <typename T>
void grad_weight_planes(const ConvGeometry& g,
                        const T* grad_output,  // [N, K, OH, OW]
                        const T* input,        // [N, C, H, W]
                        T* grad_weight, const Strides4& strides) {
  using A = Accumulate<T>;
  const PlaneProducts<A> plan(g);
  const auto spans = all_spans(g.forward().columns);
  const int64_t channels = g.group_channels(), tasks = g.outputs * channels;
  std::vector<PaddedMemory<A>> memory(cpu_workers(tasks));
  for_each_plane(tasks, [&](int64_t task, int64_t worker) {
    const int64_t k = task / channels, c = task % channels;
    const T* grad = grad_output + k * g.out_h * g.out_w;
    const T* from = input + (k / g.group_outputs() * channels + c) * g.height * g.width;
    std::vector<A> sums(g.kernel_h * g.kernel_w, A(0));
    A zero = 0;  // becomes NaN if a sum is not finite
    if (plan.strip > 0) {
      run_with_lanes<SumPlaneProducts>(&plan, grad, from, memory[worker].get(plan.space()),
                                       sums.data());
      for (const A sum : sums) zero += sum * A(0);
    }
    if (plan.strip == 0 || zero != A(0)) sum_products(g, spans, grad, from, sums.data());
    for (int64_t kh = 0; kh < g.kernel_h; ++kh)
      for (int64_t kw = 0; kw < g.kernel_w; ++kw)
        grad_weight[strides.offset(k, c, kh, kw)] = static_cast<T>(sums[kh * g.kernel_w + kw]);
  });
}

}  // namespace atrousx
