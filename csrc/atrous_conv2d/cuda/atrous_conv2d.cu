// CUDA launchers and registration of atrous_conv2d and its two backward operators.
#include "atrous_conv2d/arguments.h"
#include "atrous_conv2d/cuda/depthwise/depthwise.h"
#include "atrous_conv2d/cuda/direct/direct_kernels.cuh"
#include "atrous_conv2d/cuda/grad_weight/sum_parts.h"
#include "atrous_conv2d/cuda/simt/simt_kernels.cuh"
#include "atrous_conv2d/cuda/tensorcore/tensorcore.h"
#include "atrous_conv2d/cuda/tensorcore/tensorcore_operands.h"
#include "atrous_conv2d/plan_cache.h"
#include "cuda/launch.h"

namespace atrousx {

namespace {

template <typename T, int kColumns>
void launch_gather(const GatherShape& shape, const Tensor& source,
                   const VectorOperand<T, WeightStrides>& weight, const HeldEpilogue<T>& epilogue,
                   const Tensor& destination, cudaStream_t stream) {
  const auto plans = cached_tap_plans(shape.rows, shape.columns, shape.batch, kProductLanes);
  for (const TapPlan& plan : *plans) {
    const int64_t jobs = plan.tiles() * shape.groups * ceil_div<int64_t>(shape.outer, kColumns);
    launch({"atrous_conv2d", job_grid(jobs), kProductThreads, stream},
           atrous_conv2d_gather_kernel<T, kColumns>, reads<T>(source), weight.memory, epilogue,
           writes<T>(destination), plan, shape, strides4(source), weight.strides,
           strides4(destination));
  }
}

// Uses narrow tiles where wide tiles would be half empty or would not occupy the GPU.
template <typename T>
void gather_product(const GatherShape& shape, const Tensor& source,
                    const VectorOperand<T, WeightStrides>& weight, const HeldEpilogue<T>& epilogue,
                    const Tensor& destination, cudaStream_t stream) {
  constexpr int kWide = kWideColumns<T>;
  const int64_t pixels = shape.batch * shape.rows.destinations * shape.columns.destinations;
  const int64_t wide_jobs = ceil_div<int64_t>(pixels, kProductLanes) * shape.groups *
                            ceil_div<int64_t>(shape.outer, kWide);
  const int64_t processors =
      device_attribute(cudaDevAttrMultiProcessorCount, source.get_device_index());
  const bool narrow = shape.outer <= 32 || wide_jobs < kProductBlocks * processors;
  const auto gather = narrow ? launch_gather<T, 32> : launch_gather<T, kWide>;
  gather(shape, source, weight, epilogue, destination, stream);
}

}  // namespace

// Computes a gathering pass from `source` to `destination`.
void gather_cuda(const Tensor& source, const GatherCall& call, bool allow_tf32) {
  const auto& [shape, weight, weight_strides, tail, destination, packed] = call;
  if (destination.numel() == 0) return;
  if (runs_on_tensorcores(source, shape, allow_tf32)) return gather_on_tensorcores(source, call);
  if (gather_depthwise(source, call)) return;
  const LaunchContext context(source.get_device_index());
  dispatch_floating(source.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const auto epilogue = held_epilogue<T>(tail);
    if (gathers_directly(shape))
      return launch({"atrous_conv2d, narrow groups", grid_for(destination.numel()), kThreads,
                     context.stream()},
                    atrous_conv2d_gather_direct_kernel<T>, reads<T>(source), reads<T>(weight),
                    epilogue, writes<T>(destination), shape, strides4(source), weight_strides,
                    strides4(destination));
    const auto by = weight_operand<T>(weight, weight_size(shape), weight_strides, context.stream());
    gather_product<T>(shape, source, by, epilogue, destination, context.stream());
  });
}

namespace {

Tensor convolve(const Tensor& input, const Tensor& weight, Tail tail, const ConvOptions& options,
                bool allow_tf32) {
  const ConvCall call = forward_call(input, weight, tail, options);
  const Tensor output = empty4(input, call.size, call.channels_last);
  gather_cuda(input,
              {call.g.forward(), weight, call.g.forward_weight(strides4(weight)), tail, output},
              allow_tf32);
  return output;
}

Tensor atrous_conv2d_cuda(const Tensor& input, const Tensor& weight, std::optional<Tensor> bias,
                          Sizes stride, Sizes padding, Sizes dilation, int64_t groups,
                          bool allow_tf32) {
  return convolve(input, weight, {bias, std::nullopt, false},
                  {std::move(stride), std::move(padding), std::move(dilation), groups}, allow_tf32);
}

Tensor atrous_conv2d_fused_cuda(const Tensor& input, const Tensor& weight,
                                std::optional<Tensor> bias, std::optional<Tensor> residual,
                                bool relu, Sizes stride, Sizes padding, Sizes dilation,
                                int64_t groups, bool allow_tf32, std::optional<Tensor> /*packed*/) {
  return convolve(input, weight, {bias, residual, relu},
                  {std::move(stride), std::move(padding), std::move(dilation), groups}, allow_tf32);
}

// CUDA kernels read the weight itself, or pack it faster than they multiply, so the packed weight
// is empty. Its number of dimensions and its dtype are the same as on the CPU.
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
      grad_input_call(grad_output, weight, input_size,
                      {std::move(stride), std::move(padding), std::move(dilation), groups});
  const Tensor grad_input = empty4(grad_output, call.size, call.channels_last);
  gather_cuda(
      grad_output,
      {call.g.grad_input(), weight, call.g.grad_input_weight(strides4(weight)), Tail{}, grad_input},
      allow_tf32);
  return grad_input;
}

template <typename T, int kColumns>
void grad_weight_product(const GatherShape& shape, const Tensor& grad_output, const Tensor& input,
                         const Tensor& result, cudaStream_t stream) {
  const GradWeightParts cut = grad_weight_parts(shape, {shape.inner, kProductLanes, kColumns});
  const Tensor parts = scratch(input, cut.count * result.numel());
  launch({"_atrous_conv2d_backward_weight", job_grid(cut.jobs(shape)), kProductThreads, stream},
         atrous_conv2d_grad_weight_kernel<T, kColumns>, reads<T>(grad_output), reads<T>(input),
         writes<Accumulate<T>>(parts), cut, shape, strides4(grad_output), strides4(input));
  sum_parts<T>(shape, cut.count, parts, result, stream);
}

template <typename T>
void grad_weight(const ConvGeometry& g, const Tensor& grad_output, const Tensor& input,
                 const Tensor& result, cudaStream_t stream) {
  const GatherShape shape = g.forward();
  if (grad_weight_directly(g))
    return launch({"_atrous_conv2d_backward_weight, narrow groups", job_grid(result.numel()),
                   kDirectThreads, stream},
                  atrous_conv2d_grad_weight_direct_kernel<T>, reads<T>(grad_output),
                  reads<T>(input), writes<T>(result), shape, strides4(grad_output), strides4(input),
                  strides4(result));
  const auto product =
      shape.outer <= 32 ? grad_weight_product<T, 32> : grad_weight_product<T, kWideColumns<T>>;
  product(shape, grad_output, input, result, stream);
}

Tensor atrous_conv2d_backward_weight_cuda(const Tensor& grad_output, const Tensor& input,
                                          Sizes weight_size, Sizes stride, Sizes padding,
                                          Sizes dilation, int64_t groups, bool allow_tf32) {
  const ConvCall call =
      grad_weight_call(grad_output, input, weight_size,
                       {std::move(stride), std::move(padding), std::move(dilation), groups});
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

STABLE_TORCH_LIBRARY_IMPL(atrousx, ATROUSX_CUDA_KEY, m) {
  m.impl("atrous_conv2d", ATROUSX_BOX(atrousx::atrous_conv2d_cuda));
  m.impl("_atrous_conv2d_pack_weight", ATROUSX_BOX(atrousx::atrous_conv2d_pack_weight_cuda));
  m.impl("_atrous_conv2d_fused", ATROUSX_BOX(atrousx::atrous_conv2d_fused_cuda));
  m.impl("_atrous_conv2d_backward_input", ATROUSX_BOX(atrousx::atrous_conv2d_backward_input_cuda));
  m.impl("_atrous_conv2d_backward_weight",
         ATROUSX_BOX(atrousx::atrous_conv2d_backward_weight_cuda));
}
