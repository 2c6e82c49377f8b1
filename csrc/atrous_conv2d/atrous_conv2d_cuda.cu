// CUDA launchers and registration of atrous_conv2d and its two backward operators.
#include "../cuda_launch.h"
#include "arguments.h"
#include "atrous_conv2d_direct_kernels.cuh"
#include "atrous_conv2d_kernels.cuh"
#include "depthwise_cuda.h"
#include "gather.h"
#include "plan_cache.h"
#include "tensorcore.h"

namespace atrousx {
namespace {}  // namespace

// source -> destination, one launch for each plan (nearly always one).
void gather_cuda(const Tensor& source, const GatherCall& call, bool allow_tf32) {
  const auto& [shape, weight, weight_strides, tail, destination, packed] = call;
  if (destination.numel() == 0) return;
  if (runs_on_tensorcores(source, shape, allow_tf32))
    return gather_on_tensorcores(shape, source, weight, weight_strides, tail, destination);
  if (gather_depthwise(shape, source, weight, weight_strides, tail, destination)) return;
  const LaunchContext context(source.get_device_index());
  dispatch_floating(source.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const Epilogue<T> epilogue = tail.epilogue<T>();
    T* to = static_cast<T*>(destination.mutable_data_ptr());
    if (gathers_directly(shape)) {
      atrous_conv2d_gather_direct_kernel<T>
          <<<grid_for(destination.numel()), kThreads, 0, context.stream()>>>(
              data<T>(source), data<T>(weight), epilogue, to, shape, strides4(source),
              weight_strides, strides4(destination));
      return check_cuda(cudaGetLastError(), "atrous_conv2d, narrow groups");
    }
    const auto plans = cached_tap_plans(shape.rows, shape.columns, shape.batch, kTile);
    for (const TapPlan& plan : *plans) {
      const int64_t jobs = plan.tiles() * shape.groups * ceil_div<int64_t>(shape.outer, kTile);
      atrous_conv2d_gather_kernel<T><<<job_grid(jobs), kProductThreads, 0, context.stream()>>>(
          data<T>(source), data<T>(weight), epilogue, to, plan, shape, strides4(source),
          weight_strides, strides4(destination));
      check_cuda(cudaGetLastError(), "atrous_conv2d");
    }
  });
}

namespace {

Tensor convolve(const Tensor& input, const Tensor& weight, Tail tail, const Sizes& stride,
                const Sizes& padding, const Sizes& dilation, int64_t groups, bool allow_tf32) {
  const ConvCall call = forward_call(input, weight, tail, stride, padding, dilation, groups);
  const Tensor output = empty4(input, call.size, call.channels_last);
  gather_cuda(input,
              {call.g.forward(), weight, call.g.forward_weight(strides4(weight)), tail, output},
              allow_tf32);
  return output;
}

Tensor atrous_conv2d_cuda(const Tensor& input, const Tensor& weight, std::optional<Tensor> bias,
                          Sizes stride, Sizes padding, Sizes dilation, int64_t groups,
                          bool allow_tf32) {
  return convolve(input, weight, {bias, std::nullopt, false}, stride, padding, dilation, groups,
                  allow_tf32);
}

Tensor atrous_conv2d_fused_cuda(const Tensor& input, const Tensor& weight,
                                std::optional<Tensor> bias, std::optional<Tensor> residual,
                                bool relu, Sizes stride, Sizes padding, Sizes dilation,
                                int64_t groups, bool allow_tf32, std::optional<Tensor> /*packed*/) {
  return convolve(input, weight, {bias, residual, relu}, stride, padding, dilation, groups,
                  allow_tf32);
}

// These kernels read the weight itself, or pack it faster than they multiply: nothing, of the
// dimensions and dtype that the CPU's packed weights have.
Tensor atrous_conv2d_pack_weight_cuda(const Tensor& weight, int64_t /*groups*/, Sizes points) {
  points.push_back(0);
  const bool wide = weight.scalar_type() == ScalarType::Double;
  return torch::stable::new_empty(weight, {points.data(), points.size()},
                                  wide ? ScalarType::Double : ScalarType::Float);
}

Tensor atrous_conv2d_backward_input_cuda(const Tensor& grad_output, const Tensor& weight,
                                         Sizes input_size, Sizes stride, Sizes padding,
                                         Sizes dilation, int64_t groups, bool allow_tf32) {
  const ConvCall call =
      grad_input_call(grad_output, weight, input_size, stride, padding, dilation, groups);
  const Tensor grad_input = empty4(grad_output, call.size, call.channels_last);
  gather_cuda(
      grad_output,
      {call.g.grad_input(), weight, call.g.grad_input_weight(strides4(weight)), Tail{}, grad_input},
      allow_tf32);
  return grad_input;
}

template <typename T>
void grad_weight(const ConvGeometry& g, const Tensor& grad_output, const Tensor& input,
                 const Tensor& result, cudaStream_t stream) {
  constexpr int64_t kWantedBlocks = 512;  // a few for each multiprocessor of a large GPU
  const GatherShape shape = g.forward();
  T* to = static_cast<T*>(result.mutable_data_ptr());
  if (grad_weight_directly(g)) {
    atrous_conv2d_grad_weight_direct_kernel<T>
        <<<job_grid(result.numel()), kDirectThreads, 0, stream>>>(
            data<T>(grad_output), data<T>(input), to, shape, strides4(grad_output), strides4(input),
            strides4(result));
    return check_cuda(cudaGetLastError(), "_atrous_conv2d_backward_weight, narrow groups");
  }
  const int64_t tasks = g.groups * g.kernel_h * g.kernel_w * ceil_div<int64_t>(shape.inner, kTile) *
                        ceil_div<int64_t>(shape.outer, kTile);
  const int64_t splits = grad_weight_splits(tasks, g.batch * g.out_h * g.out_w, kWantedBlocks);
  const Tensor parts = scratch(input, splits * result.numel());
  auto* part_data = static_cast<Accumulate<T>*>(parts.mutable_data_ptr());
  atrous_conv2d_grad_weight_kernel<T><<<job_grid(splits * tasks), kProductThreads, 0, stream>>>(
      data<T>(grad_output), data<T>(input), part_data, splits, shape, strides4(grad_output),
      strides4(input));
  check_cuda(cudaGetLastError(), "_atrous_conv2d_backward_weight");
  atrous_conv2d_sum_parts_kernel<T>
      <<<grid_for(result.size(0) * result.size(1)), kThreads, 0, stream>>>(part_data, to, splits,
                                                                           shape, strides4(result));
  check_cuda(cudaGetLastError(), "_atrous_conv2d_backward_weight, sum of parts");
}

Tensor atrous_conv2d_backward_weight_cuda(const Tensor& grad_output, const Tensor& input,
                                          Sizes weight_size, Sizes stride, Sizes padding,
                                          Sizes dilation, int64_t groups, bool allow_tf32) {
  const ConvCall call =
      grad_weight_call(grad_output, input, weight_size, stride, padding, dilation, groups);
  const ConvGeometry& g = call.g;
  const Tensor result = empty4(input, call.size, call.channels_last);
  if (result.numel() == 0) return result;
  if (runs_on_tensorcores(input, g.forward(), allow_tf32)) {
    grad_weight_on_tensorcores(g, grad_output, input, result);
    return result;
  }
  if (grad_weight_depthwise(g, grad_output, input, result)) return result;
  const LaunchContext context(input.get_device_index());
  dispatch_floating(input.scalar_type(), [&](auto zero) {
    grad_weight<decltype(zero)>(g, grad_output, input, result, context.stream());
  });
  return result;
}

}  // namespace
}  // namespace atrousx

STABLE_TORCH_LIBRARY_IMPL(atrousx, CUDA, m) {
  m.impl("atrous_conv2d", TORCH_BOX(&atrousx::atrous_conv2d_cuda));
  m.impl("_atrous_conv2d_pack_weight", TORCH_BOX(&atrousx::atrous_conv2d_pack_weight_cuda));
  m.impl("_atrous_conv2d_fused", TORCH_BOX(&atrousx::atrous_conv2d_fused_cuda));
  m.impl("_atrous_conv2d_backward_input", TORCH_BOX(&atrousx::atrous_conv2d_backward_input_cuda));
  m.impl("_atrous_conv2d_backward_weight", TORCH_BOX(&atrousx::atrous_conv2d_backward_weight_cuda));
}
