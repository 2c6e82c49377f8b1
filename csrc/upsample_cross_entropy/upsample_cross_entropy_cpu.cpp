// CPU kernels and registration of upsample_cross_entropy and its backward.
//
// A task is a cell of rows: the pixel rows between two neighbouring rows of logits. It walks them
// block by block (cpu_blocks.h); a block's values are used for all that is asked and forgotten.
#include "../upsample_bilinear2d/cpu_blocks.h"
#include "arguments.h"
#include "cpu_loops.h"

namespace atrousx {
namespace {

// What both directions share.
template <typename T, typename Label>
class CpuCrossEntropy : protected UpsampledBlocks<T> {
 protected:
  using typename UpsampledBlocks<T>::A;

  CpuCrossEntropy(const LossArguments& arguments, const T* logits, const Label* target)
      : UpsampledBlocks<T>(arguments.r, logits),
        loss_(arguments.loss<A>()),
        total_(loss_.total_weight()),
        target_(target) {}

  const PixelLoss<A> loss_;
  const A total_;              // of the class weights
  const Label* const target_;  // [N, OH, OW]
};

template <typename T, typename Label>
class CpuForward : CpuCrossEntropy<T, Label> {
  using Base = CpuCrossEntropy<T, Label>;
  using typename Base::A;

 public:
  CpuForward(const LossArguments& arguments, const T* logits, const Label* target)
      : Base(arguments, logits, target) {}

  void run(A* log_sum, A* pixel_losses, double* row_loss, double* row_weight) const {
    const int64_t height = this->r_.out_height;
    torch::stable::parallel_for(
        0, this->r_.batch * this->bands(), 1, [&](int64_t begin, int64_t end) {
          std::vector<A> row(this->row_size()), values(this->r_.channels * kBlockPitch);
          for (int64_t task = begin; task < end; ++task) {
            const Cell& band = this->rows_[task % this->bands()];
            const int64_t n = task / this->bands();
            for (int64_t oh = band.first; oh < band.first + band.count; ++oh) {
              this->blend(n, oh, row.data());
              run_line(n * height + oh, row.data(), values.data(), log_sum, pixel_losses, row_loss,
                       row_weight);
            }
          }
        });
  }

 private:
  void run_line(int64_t line, const A* row, A* values, A* log_sum, A* pixel_losses,
                double* row_loss, double* row_weight) const {
    double loss = 0, weight = 0;
    for (int64_t b = 0; b < this->columns_.blocks(); ++b) {
      const int64_t count = this->columns_.block_count(b);
      const int64_t at = line * this->r_.out_width + this->columns_.block_first(b);
      this->interpolate(b, row, values);
      A best[kBlockOutputs], sum[kBlockOutputs], weighted[kBlockOutputs] = {};
      run_best<SoftmaxSums>(static_cast<const A*>(values), this->r_.channels, count,
                            static_cast<A*>(best), static_cast<A*>(sum));
      if (this->loss_.smoothing != A(0))
        run_best<WeightedSums>(static_cast<const A*>(values), this->loss_.class_weight,
                               this->r_.channels, count, static_cast<A*>(weighted));
      for (int64_t j = 0; j < count; ++j) {
        const auto label = static_cast<int64_t>(this->target_[at + j]);
        const A lse = best[j] + std::log(sum[j]);
        const A own = this->loss_.valid(label) ? values[label * kBlockPitch + j] : A(0);
        const A value = this->loss_.loss(label, lse, own, weighted[j], this->total_);
        log_sum[at + j] = lse;
        if (pixel_losses != nullptr) pixel_losses[at + j] = value;
        loss += static_cast<double>(value);
        weight += static_cast<double>(this->loss_.pixel_weight(label));
      }
    }
    row_loss[line] = loss;
    row_weight[line] = weight;
  }
};

template <typename T, typename Label>
class CpuBackward : CpuCrossEntropy<T, Label> {
  using Base = CpuCrossEntropy<T, Label>;
  using typename Base::A;

 public:
  CpuBackward(const LossArguments& arguments, const T* logits, const Label* target,
              const A* log_sum, const A* grad, const Strides4& grad_strides)
      : Base(arguments, logits, target),
        log_sum_(log_sum),
        grad_(grad),
        grad_strides_(grad_strides) {}

  // Image by image: each band of rows writes its gradients of the two rows of logits around it to
  // scratch [bands, 2, C, W]; a row of grad_logits is then the sum of those that meet in it, in
  // order.
  void run(A* scratch, T* grad_logits) const {
    const int64_t size = this->row_size();
    for (int64_t n = 0; n < this->r_.batch; ++n) {
      torch::stable::parallel_for(0, this->bands(), 1, [&](int64_t begin, int64_t end) {
        std::vector<A> row(size), grad_row(size), values(this->r_.channels * kBlockPitch);
        for (int64_t band = begin; band < end; ++band)
          run_band(n, this->rows_[band], scratch + band * 2 * size, row, grad_row, values);
      });
      torch::stable::parallel_for(0, this->r_.height, 1, [&](int64_t begin, int64_t end) {
        std::vector<A> sum(size);
        for (int64_t h = begin; h < end; ++h) {
          add_bands(h, scratch, sum);
          for (int64_t c = 0; c < this->r_.channels; ++c)
            for (int64_t w = 0; w < this->r_.width; ++w)
              grad_logits[((n * this->r_.channels + c) * this->r_.height + h) * this->r_.width +
                          w] = static_cast<T>(sum[c * this->r_.width + w]);
        }
      });
    }
  }

 private:
  void run_band(int64_t n, const Cell& band, A* to, std::vector<A>& row, std::vector<A>& grad_row,
                std::vector<A>& values) const {
    const int64_t size = this->row_size();
    std::fill_n(to, 2 * size, A(0));
    for (int64_t oh = band.first; oh < band.first + band.count; ++oh) {
      this->blend(n, oh, row.data());
      std::fill(grad_row.begin(), grad_row.end(), A(0));
      for (int64_t b = 0; b < this->columns_.blocks(); ++b) {
        const int64_t begin = this->columns_.block_start[b];
        const int64_t padded = this->columns_.padded_start[begin];
        this->interpolate(b, row.data(), values.data());
        slopes(n, oh, b, values.data());
        run_best<GatherBlock>(static_cast<const A*>(values.data()), this->r_.channels,
                              this->r_.width, this->columns_.cells.data() + begin,
                              this->columns_.block_start[b + 1] - begin,
                              this->columns_.padded_lower.data() + padded,
                              this->columns_.padded_upper.data() + padded, grad_row.data());
      }
      run_best<AddToRows>(static_cast<const A*>(grad_row.data()), this->plan_.rows.tap(oh).weight,
                          to, to + size, size);
    }
  }

  // Turns a block's values into their gradients, in place.
  void slopes(int64_t n, int64_t oh, int64_t b, A* values) const {
    const int64_t first = this->columns_.block_first(b), count = this->columns_.block_count(b);
    const int64_t at = (n * this->r_.out_height + oh) * this->r_.out_width + first;
    A scale[kBlockOutputs] = {}, spread[kBlockOutputs] = {}, own[kBlockOutputs] = {};
    for (int64_t j = 0; j < count; ++j) {
      const auto label = static_cast<int64_t>(this->target_[at + j]);
      const bool counts = !this->loss_.ignored(label);
      const A g = counts ? grad_[grad_strides_.offset(n, 0, oh, first + j)] : A(0);
      scale[j] = counts ? g * this->loss_.softmax_scale(label, this->total_) : A(0);
      spread[j] = g * this->loss_.spread();
      own[j] = g * (A(1) - this->loss_.smoothing);
    }
    run_best<SoftmaxSlopes>(values, this->r_.channels, count, log_sum_ + at,
                            static_cast<const A*>(scale), static_cast<const A*>(spread),
                            this->loss_.class_weight);
    for (int64_t j = 0; j < count; ++j) {
      const auto label = static_cast<int64_t>(this->target_[at + j]);
      if (this->loss_.valid(label) && !this->loss_.ignored(label))
        values[label * kBlockPitch + j] -= own[j] * this->loss_.weight(label);
    }
  }

  // Bands that read row h, in order: as their upper neighbour, their lower one, or both.
  void add_bands(int64_t h, const A* scratch, std::vector<A>& sum) const {
    const int64_t size = this->row_size();
    std::fill(sum.begin(), sum.end(), A(0));
    for (int64_t band = 0; band < this->bands(); ++band) {
      const Cell& cell = this->rows_[band];
      const A* from = scratch + band * 2 * size;
      if (cell.lower == h)
        for (int64_t j = 0; j < size; ++j) sum[j] += from[j];
      if (cell.upper == h)
        for (int64_t j = 0; j < size; ++j) sum[j] += from[size + j];
    }
  }

  const A* const log_sum_;  // [N, OH, OW]
  const A* const grad_;     // one per pixel
  const Strides4 grad_strides_;
};

std::tuple<Tensor, Tensor, Tensor, Tensor> upsample_cross_entropy_cpu(
    const Tensor& logits, const Tensor& target, std::optional<Tensor> weight, int64_t ignore_index,
    double label_smoothing, bool align_corners, bool per_pixel) {
  const auto arguments =
      LossArguments::make(logits, target, weight, ignore_index, label_smoothing, align_corners);
  const Tensor source = torch::stable::contiguous(logits);
  return loss_maps(arguments, logits, target, per_pixel, [&](const LossMaps& maps, auto types) {
    using Types = decltype(types);
    CpuForward<typename Types::T, typename Types::Label>(arguments, Types::logits(source),
                                                         Types::labels(target))
        .run(Types::new_numbers(maps.log_sum), maps.pixel_losses<typename Types::A>(),
             static_cast<double*>(maps.row_loss.mutable_data_ptr()),
             static_cast<double*>(maps.row_weight.mutable_data_ptr()));
  });
}

Tensor upsample_cross_entropy_backward_cpu(const Tensor& grad, const Tensor& logits,
                                           const Tensor& target, std::optional<Tensor> weight,
                                           const Tensor& log_sum, int64_t ignore_index,
                                           double label_smoothing, bool align_corners) {
  const auto arguments =
      LossArguments::make(logits, target, weight, ignore_index, label_smoothing, align_corners);
  check_loss_gradient(grad, logits, target, log_sum);
  const Resampling& r = arguments.r;
  const Tensor grad_logits = empty4(logits, r.input_size(), false);
  const Tensor source = torch::stable::contiguous(logits);
  dispatch_loss(logits, target, [&](auto types) {
    using Types = decltype(types);
    const auto bands = static_cast<int64_t>(all_cells(r.plan<typename Types::T>().rows).size());
    const Tensor scratch = arguments.empty({bands * 2 * r.channels * r.width},
                                           LossArguments::sum_dtype(logits), logits);
    CpuBackward<typename Types::T, typename Types::Label>(
        arguments, Types::logits(source), Types::labels(target), Types::numbers(log_sum),
        Types::numbers(grad), pixel_strides(grad))
        .run(Types::new_numbers(scratch), Types::new_logits(grad_logits));
  });
  return torch::stable::contiguous(grad_logits, memory_format(is_channels_last(logits)));
}

}  // namespace
}  // namespace atrousx

STABLE_TORCH_LIBRARY_IMPL(atrousx, CPU, m) {
  m.impl("_upsample_cross_entropy", TORCH_BOX(&atrousx::upsample_cross_entropy_cpu));
  m.impl("_upsample_cross_entropy_backward",
         TORCH_BOX(&atrousx::upsample_cross_entropy_backward_cpu));
}
