// CPU kernel, checks and registration of upsample_argmax.
//
// A task is a cell of rows: the outputs between two neighbouring rows of logits. Interpolation only
// averages, and rounding keeps order: where the four logits around a cell of pixels agree on the
// label, so does every pixel between them, and it is filled in without computing a single value.
#include "../upsample_bilinear2d/cpu_cells.h"
#include "../vector_math.h"
#include "label_maps.h"

namespace atrousx {
namespace {

// label[j] = the channel of the greatest value; the first of equals, and NaN above all.
struct ArgmaxColumns {
  template <typename A>
  static ATROUSX_ALWAYS_INLINE void run(const A* values, int64_t channels, int64_t pitch,
                                        int64_t count, A* best, int32_t* label) {
    for (int64_t j = 0; j < count; ++j) {
      best[j] = values[j];
      label[j] = 0;
    }
    for (int64_t c = 1; c < channels; ++c) {
      const A* row = values + c * pitch;
      for (int64_t j = 0; j < count; ++j) {
        const bool wins = !(row[j] <= best[j]) && best[j] == best[j];
        best[j] = wins ? row[j] : best[j];
        label[j] = wins ? static_cast<int32_t>(c) : label[j];
      }
    }
  }
};

// probability[j] = 1 / sum over channels of exp(value - best): the winner's share of the softmax.
struct WinnerProbability {
  template <typename A>
  static ATROUSX_ALWAYS_INLINE void run(const A* values, int64_t channels, int64_t count,
                                        const A* best, A* probability) {
    for (int64_t j = 0; j < count; ++j) probability[j] = A(0);
    for (int64_t c = 0; c < channels; ++c)
      for (int64_t j = 0; j < count; ++j)
        probability[j] += exp_nonpositive(values[c * kBlockPitch + j] - best[j]);
    for (int64_t j = 0; j < count; ++j) probability[j] = A(1) / probability[j];
  }
};

template <typename T, typename Label>
class CpuArgmax {
  using A = Accumulate<T>;

 public:
  CpuArgmax(const Resampling& r, const T* logits, Label* labels, A* probability)
      : r_(r),
        logits_(logits),
        labels_(labels),
        probability_(probability),
        plan_(r.plan<T>()),
        rows_(all_cells(plan_.rows)),
        columns_(plan_.columns) {}

  void run() const {
    const auto bands = static_cast<int64_t>(rows_.size());
    torch::stable::parallel_for(0, r_.batch * bands, 1, [&](int64_t begin, int64_t end) {
      Workspace w(r_.channels, r_.width, columns_.cells.size());
      for (int64_t task = begin; task < end; ++task) run_band(task / bands, rows_[task % bands], w);
    });
  }

 private:
  struct Workspace {
    std::vector<A> lower, upper, row, values, best;
    std::vector<int32_t> lower_label, upper_label, label, known;

    Workspace(int64_t channels, int64_t width, size_t cells)
        : lower(channels * width),
          upper(channels * width),
          row(channels * width),
          values(channels * kBlockPitch),
          best(std::max(width, kBlockPitch)),
          lower_label(width),
          upper_label(width),
          label(kBlockPitch),
          known(cells) {}
  };

  // One row of logits, all channels, widened: [C, W].
  void read_row(int64_t n, int64_t row, std::vector<A>& to) const {
    for (int64_t c = 0; c < r_.channels; ++c) {
      const T* from = logits_ + ((n * r_.channels + c) * r_.height + row) * r_.width;
      for (int64_t w = 0; w < r_.width; ++w) to[c * r_.width + w] = static_cast<A>(from[w]);
    }
  }

  void find_labels(const std::vector<A>& row, Workspace& w, std::vector<int32_t>& label) const {
    run_best<ArgmaxColumns>(row.data(), r_.channels, r_.width, r_.width, w.best.data(),
                            label.data());
  }

  // The label on which the four corners of a cell agree, or -1.
  static int32_t agreed(const Cell& cell, const Workspace& w) {
    const int32_t label = w.lower_label[cell.lower];
    const bool all = w.lower_label[cell.upper] == label && w.upper_label[cell.lower] == label &&
                     w.upper_label[cell.upper] == label;
    return all ? label : -1;
  }

  void run_band(int64_t n, const Cell& band, Workspace& w) const {
    read_row(n, band.lower, w.lower);
    read_row(n, band.upper, w.upper);
    find_labels(w.lower, w, w.lower_label);
    find_labels(w.upper, w, w.upper_label);
    bool all_agree = true;
    for (size_t k = 0; k < columns_.cells.size(); ++k) {
      // A probability takes every channel's value.
      w.known[k] = probability_ == nullptr ? agreed(columns_.cells[k], w) : -1;
      all_agree = all_agree && w.known[k] >= 0;
    }
    for (int64_t oh = band.first; oh < band.first + band.count; ++oh) {
      if (!all_agree)
        run_best<BlendRows>(static_cast<const A*>(w.lower.data()),
                            static_cast<const A*>(w.upper.data()), plan_.rows.tap(oh).weight,
                            w.row.data(), r_.channels * r_.width);
      run_line((n * r_.out_height + oh) * r_.out_width, w);
    }
  }

  // One row of pixels: known cells are filled, runs of others, up to a block long, computed.
  void run_line(int64_t line, Workspace& w) const {
    const auto cells = static_cast<int64_t>(columns_.cells.size());
    for (int64_t k = 0; k < cells;) {
      const Cell& cell = columns_.cells[k];
      if (w.known[k] >= 0) {
        std::fill_n(labels_ + line + cell.first, cell.count, static_cast<Label>(w.known[k]));
        ++k;
        continue;
      }
      int64_t end = k, outputs = 0;
      while (end < cells && w.known[end] < 0 &&
             outputs + columns_.cells[end].count <= kBlockOutputs)
        outputs += columns_.cells[end++].count;
      compute_run(k, end, outputs, line + cell.first, w);
      k = end;
    }
  }

  void compute_run(int64_t begin, int64_t end, int64_t count, int64_t to, Workspace& w) const {
    run_best<InterpolateBlock>(
        static_cast<const A*>(w.row.data()), r_.channels, r_.width, columns_.cells.data() + begin,
        end - begin, columns_.weight.data() + columns_.cells[begin].first, w.values.data());
    run_best<ArgmaxColumns>(static_cast<const A*>(w.values.data()), r_.channels,
                            int64_t{kBlockPitch}, count, w.best.data(), w.label.data());
    for (int64_t j = 0; j < count; ++j) labels_[to + j] = static_cast<Label>(w.label[j]);
    if (probability_ != nullptr)
      run_best<WinnerProbability>(static_cast<const A*>(w.values.data()), r_.channels, count,
                                  static_cast<const A*>(w.best.data()), probability_ + to);
  }

  const Resampling r_;
  const T* const logits_;  // [N, C, H, W]
  Label* const labels_;    // [N, OH, OW]
  A* const probability_;   // [N, OH, OW] or null
  const BilinearPlan<A> plan_;
  const std::vector<Cell> rows_;
  const CellAxis<A> columns_;
};

std::tuple<Tensor, Tensor> upsample_argmax_cpu(const Tensor& logits,
                                               std::vector<int64_t> output_size, bool align_corners,
                                               bool with_probability, bool narrow) {
  const auto r = Resampling::forward(logits, output_size, align_corners, {}, {});
  const auto [labels, probability] = label_maps(logits, r, with_probability, narrow);
  if (labels.numel() == 0) return {labels, probability};
  const Tensor source = dense4(logits, false);
  dispatch_floating(logits.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using A = Accumulate<T>;
    const T* from = static_cast<const T*>(source.const_data_ptr());
    A* share = with_probability ? static_cast<A*>(probability.mutable_data_ptr()) : nullptr;
    if (narrow)
      CpuArgmax<T, uint8_t>(r, from, static_cast<uint8_t*>(labels.mutable_data_ptr()), share).run();
    else
      CpuArgmax<T, int64_t>(r, from, static_cast<int64_t*>(labels.mutable_data_ptr()), share).run();
  });
  return {labels, probability};
}

}  // namespace
}  // namespace atrousx

STABLE_TORCH_LIBRARY_IMPL(atrousx, CPU, m) {
  m.impl("_upsample_argmax", TORCH_BOX(&atrousx::upsample_argmax_cpu));
}
