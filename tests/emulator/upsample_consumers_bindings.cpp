// Host-executed kernels of the operators that consume upsampled logits without storing them.
#include "arrays.h"
#include "upsample_argmax/upsample_argmax_kernels.cuh"
#include "upsample_cross_entropy/upsample_cross_entropy_backward_kernels.cuh"
#include "upsample_softmax_add/upsample_softmax_add_kernels.cuh"

namespace {

namespace py = pybind11;
using Pair = std::array<int64_t, 2>;

template <typename A>
atrousx::BilinearPlan<A> make_plan(const Pair& in, const Pair& out, bool align_corners) {
  using Axis = atrousx::BilinearAxis<A>;
  return {Axis::make(in[0], out[0], align_corners, std::nullopt),
          Axis::make(in[1], out[1], align_corners, std::nullopt)};
}

// Labels and probabilities of float32 logits.
py::tuple argmax(const py::array_t<float>& array, const Pair& size, bool align_corners,
                 bool channels_last) {
  emulator::Tensor4<float> logits(array, channels_last);
  const int64_t batch = logits.size(0), pixels = batch * size[0] * size[1];
  emulator::Buffer<uint8_t> labels(pixels);
  emulator::Buffer<float> probability(pixels);
  emulator::launch(3, 64, 0, atrousx::upsample_argmax_kernel<float, uint8_t>, logits.data(),
                   labels.data(), probability.data(), batch, logits.size(1),
                   make_plan<float>({logits.size(2), logits.size(3)}, size, align_corners),
                   logits.strides());
  const std::vector<py::ssize_t> shape{batch, size[0], size[1]};
  return py::make_tuple(labels.to_array(shape, py::dtype::of<uint8_t>()),
                        probability.to_array(shape, array.dtype()));
}

// Losses, their sum or mean, the total weight, and the gradient under `grad`: one number a pixel,
// or of the reduced loss.
py::tuple cross_entropy(const py::array_t<float>& array, const py::array_t<int64_t>& labels,
                        const py::array_t<float>& class_weight, int64_t ignore_index,
                        float smoothing, bool align_corners, const py::array_t<float>& grad,
                        bool mean, bool channels_last) {
  emulator::Tensor4<float> logits(array, channels_last);
  emulator::Tensor4<float> grad_logits(
      {logits.size(0), logits.size(1), logits.size(2), logits.size(3)}, channels_last);
  const int64_t batch = labels.shape(0), height = labels.shape(1), width = labels.shape(2);
  emulator::Buffer<int64_t> target(labels);
  emulator::Buffer<float> weight(class_weight), grads(grad);
  emulator::Buffer<float> log_sum(target.size()), losses(target.size()), loss(1);
  const auto jobs = atrousx::LossJobs::make(batch, height, width);
  emulator::Buffer<double> job_loss(jobs.count()), job_weight(jobs.count()), total_weight(1);
  const auto plan =
      make_plan<float>({logits.size(2), logits.size(3)}, {height, width}, align_corners);
  const atrousx::PixelLoss<float> pixel{weight.data(), logits.size(1), ignore_index, smoothing};
  emulator::launch(2, atrousx::kLossThreads, 0,
                   atrousx::upsample_cross_entropy_forward_kernel<float, int64_t>, logits.data(),
                   target.data(), log_sum.data(), losses.data(), job_loss.data(), job_weight.data(),
                   jobs, plan, pixel, logits.strides());
  emulator::launch(1, atrousx::kLossThreads, 0, atrousx::upsample_cross_entropy_total_kernel<float>,
                   job_loss.data(), job_weight.data(), jobs.count(), mean, loss.data(),
                   total_weight.data());
  const bool per_pixel = grads.size() > 1;
  const atrousx::PixelGradient<float> gradient{
      grads.data(), mean && !per_pixel ? total_weight.data() : nullptr, per_pixel};
  emulator::launch(
      2, atrousx::kLossThreads, 0, atrousx::upsample_cross_entropy_backward_kernel<float, int64_t>,
      gradient, logits.data(), target.data(), log_sum.data(), grad_logits.data(),
      atrousx::SlopeJobs::make(batch, plan), plan, pixel, logits.strides(), grad_logits.strides());
  return py::make_tuple(losses.to_array({batch, height, width}, array.dtype()), loss.data()[0],
                        total_weight.data()[0], grad_logits.to_array(array.dtype()));
}

// The sum of 1 and of alpha times the probabilities.
py::array softmax_add(const py::array_t<float>& array, const Pair& size, float alpha, bool flip,
                      bool channels_last) {
  emulator::Tensor4<float> logits(array, channels_last);
  const int64_t batch = logits.size(0), channels = logits.size(1);
  emulator::Tensor4<float> sum({batch, channels, size[0], size[1]}, channels_last);
  std::fill_n(sum.data(), batch * channels * size[0] * size[1], 1.0f);
  emulator::launch(3, 64, 0, atrousx::upsample_softmax_add_kernel<float>, logits.data(), sum.data(),
                   batch, channels, make_plan<float>({logits.size(2), logits.size(3)}, size, false),
                   alpha, flip, logits.strides(), sum.strides());
  return sum.to_array(array.dtype());
}

// Two sums of a block, one after the other through the same memory; what every thread got.
__global__ void block_sum_kernel(const double* values,  // [2, threads]
                                 double* sums) {        // [2, threads]
  ATROUSX_SHARED(double, room, atrousx::kLossThreads);
  const auto threads = static_cast<int>(blockDim.x);
  for (int i = 0; i < 2; ++i) {
    const int at = i * threads + static_cast<int>(threadIdx.x);
    sums[at] = atrousx::block_sum(values[at], room, threads);
  }
}

py::array block_sums(const py::array_t<double>& values) {
  emulator::Buffer<double> from(values), sums(from.size());
  const auto threads = static_cast<unsigned int>(values.shape(1));
  emulator::launch(1, threads, 0, block_sum_kernel, from.data(), sums.data());
  return sums.to_array({2, values.shape(1)}, values.dtype());
}

}  // namespace

void bind_upsample_consumers(py::module_& m) {
  m.def("block_sums", &block_sums);
  m.def("upsample_argmax", &argmax);
  m.def("upsample_cross_entropy", &cross_entropy);
  m.def("upsample_softmax_add", &softmax_add);
}
