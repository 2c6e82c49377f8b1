// The CUDA side of multi_rate_conv2d. On tensor cores, concatenated branches read one packed input,
// and summed branches are one launch over the union of their taps. Otherwise each branch is a pass
// of its own, as on the CPU.
#include "atrous_conv2d/cuda/tensorcore/tensorcore.h"
#include "atrous_conv2d/cuda/tensorcore/tensorcore_operands.h"
#include "multi_rate_conv2d/branches.h"
#include "multi_rate_conv2d/cuda/union_kernels.cuh"

namespace atrousx {
namespace {

// The passes of a sum, with weights that the kernel can read: for each branch the passes over all
// taps but the centre, and one pass for the centres.
template <typename T>
struct UnionOperands {
  std::vector<RatePass> passes;
  std::vector<Held<const T*>> memory;  // of each pass
  std::vector<int64_t> strides;        // of the outputs of each pass

  // Returns false if there are too many passes.
  bool add(const Tensor& weight, const ConvGeometry& g, bool centre, cudaStream_t stream) {
    const auto operand = weight_operand<T>(weight, weight_size(g.forward()),
                                           g.forward_weight(strides4(weight)), stream);
    const Strides4 from{operand.strides.outer, 1, operand.strides.h, operand.strides.w};
    const auto added =
        centre ? std::vector{rate_pass(g, from, {0, 1, 1}, {0, 1, 1})} : off_centre_passes(g, from);
    for (const RatePass& pass : added) {
      if (passes.size() == UnionPlan::kMaxPasses) return false;
      memory.push_back(operand.memory + from.offset(0, 0, pass.first_row, pass.first_column));
      strides.push_back(from.n);
      passes.push_back(pass);
    }
    return true;
  }

  auto weights() const {
    const auto make = [&](const std::vector<const T*>& addresses) {
      UnionWeights<T> weights{};
      for (size_t i = 0; i < passes.size(); ++i)
        weights.passes[i] = {addresses[i], strides[i], passes[i].weight_strides.h,
                             passes[i].weight_strides.w};
      return weights;
    };
    return combine(make, memory);
  }
};

template <typename T, int kColumns>
bool launch_union(const MultiRate& call, const Tensor& input, const std::vector<Tensor>& weights,
                  cudaStream_t stream) {
  const ConvGeometry& g = call.geometries[0];
  UnionOperands<T> operands;
  if (!operands.add(centre_sum(weights), pointwise(g), true, stream)) return false;
  for (size_t i = 0; i < weights.size(); ++i)
    if (!operands.add(weights[i], call.geometries[i], false, stream)) return false;
  const auto kept = cached_union_plan(operands.passes, g.batch, kTensorLanes);
  const std::optional<UnionPlan>& plan = *kept;
  if (!plan.has_value()) return false;
  const auto map = map_operand<T>(input, 1, stream);
  const int64_t jobs = plan->tiles() * ceil_div<int64_t>(g.outputs, kColumns);
  launch({"multi_rate_conv2d, sum on tensor cores", job_grid(jobs), kTensorThreads, stream,
          kTensorSharedBytes<kColumns>},
         multi_rate_sum_tensorcore_kernel<T, kColumns>, map.memory, operands.weights(),
         held_epilogue<T>(call.tail), writes<T>(call.output), *plan, g.batch, g.outputs,
         whole_vectors(g.channels, kVector<T>), map.strides, strides4(call.output));
  return true;
}

// Returns false, and does nothing, if the union has too many taps or borders for one launch.
bool add_at_once(const MultiRate& call, const Tensor& input, const std::vector<Tensor>& weights) {
  const LaunchContext context(input.get_device_index());
  bool served = false;
  dispatch_tensorcore(input.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const auto sum = call.geometries[0].outputs <= 32 ? launch_union<T, 32> : launch_union<T, 64>;
    served = sum(call, input, weights, context.stream());
  });
  return served;
}

Tensor run(const MultiRate& call, const Tensor& input, const std::vector<Tensor>& weights, bool sum,
           bool allow_tf32) {
  if (call.output.numel() == 0) return call.output;
  const bool tensorcores = runs_on_tensorcores(input, call.geometries[0].forward(), allow_tf32);
  if (tensorcores && sum && add_at_once(call, input, weights)) return call.output;
  // The map is packed once for all passes.
  const Tensor from = tensorcores ? map_for_tensorcores(input) : input;
  for (const GatherCall& pass : branch_calls(call, weights, sum))
    gather_cuda(from, pass, allow_tf32);
  return call.output;
}

Tensor multi_rate_conv2d_cuda(const Tensor& input, std::vector<Tensor> weights,
                              std::optional<Tensor> bias, Sizes dilations, bool sum,
                              bool allow_tf32) {
  return run(multi_rate_call(input, weights, bias, dilations, sum, false), input, weights, sum,
             allow_tf32);
}

Tensor multi_rate_conv2d_relu_cuda(const Tensor& input, std::vector<Tensor> weights,
                                   std::optional<Tensor> bias, Sizes dilations, bool sum,
                                   bool allow_tf32, std::vector<Tensor> /*packed*/) {
  return run(multi_rate_call(input, weights, bias, dilations, sum, true), input, weights, sum,
             allow_tf32);
}

}  // namespace
}  // namespace atrousx

STABLE_TORCH_LIBRARY_IMPL(atrousx, ATROUSX_CUDA_KEY, m) {
  m.impl("multi_rate_conv2d", ATROUSX_BOX(atrousx::multi_rate_conv2d_cuda));
  m.impl("_multi_rate_conv2d_relu", ATROUSX_BOX(atrousx::multi_rate_conv2d_relu_cuda));
}
