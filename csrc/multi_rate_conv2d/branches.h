// The operator over either device's gathering pass, called as gather_cpu is: checks, allocation,
// order of the passes.
#pragma once

#include "../atrous_conv2d/gather.h"
#include "plan.h"

namespace atrousx {

// A view of `count` indices along one dimension. (torch's own narrow takes a variable.)
inline Tensor slice(Tensor t, int64_t dim, int64_t first, int64_t count) {
  return torch::stable::narrow(t, dim, first, count);
}

inline std::vector<ConvGeometry> branch_geometries(const Tensor& input,
                                                   const std::vector<Tensor>& weights,
                                                   const Sizes& dilations, bool sum) {
  STD_TORCH_CHECK(!weights.empty() && weights.size() == dilations.size(),
                  "there must be a weight for each dilation, at least one");
  std::vector<ConvGeometry> geometries;
  for (size_t i = 0; i < weights.size(); ++i) {
    const Sizes weight = sizes4(weights[i], "weights"), size = sizes4(input, "input");
    STD_TORCH_CHECK(weight[2] % 2 == 1 && weight[3] % 2 == 1, "weights must have odd kernels");
    STD_TORCH_CHECK(!sum || weight[0] == weights[0].size(0), "summed weights must have one K");
    check_same_kind(weights[i], input, "weights");
    const int64_t d = dilations[i], rows = d * (weight[2] / 2), columns = d * (weight[3] / 2);
    geometries.push_back(
        conv_geometry(size, weight, {1, 1}, {rows, columns, rows, columns}, {d, d}, 1));
  }
  return geometries;
}

// The sum of the branches' centre taps, [K, C, 1, 1]: at every pixel they read the same element.
inline Tensor centre_sum(const std::vector<Tensor>& weights) {
  const auto count = static_cast<int64_t>(weights.size());
  const int64_t outputs = weights[0].size(0), channels = weights[0].size(1);
  const Tensor all = torch::stable::new_empty(weights[0], {count, outputs, channels, 1, 1});
  for (int64_t i = 0; i < count; ++i) {
    const Tensor& w = weights[i];
    Tensor to = torch::stable::select(all, 0, i);
    torch::stable::copy_(to, slice(slice(w, 2, w.size(2) / 2, 1), 3, w.size(3) / 2, 1));
  }
  const int64_t dim = 0;
  return torch::stable::sum(all, torch::headeronly::IntHeaderOnlyArrayRef(&dim, 1));
}

template <typename Gather>
void run_pass(const RatePass& pass, const Tensor& input, const Tensor& weight, const Tail& tail,
              const Tensor& output, const Gather& gather) {
  const Tensor from = slice(slice(weight, 2, pass.first_row, 1), 3, pass.first_column, 1);
  gather(pass.shape, input, from, pass.weight_strides, tail, output);
}

// Centre taps first, bias with them; every other pass adds to what the output holds, ReLU last.
template <typename Gather>
void add_branches(const std::vector<ConvGeometry>& geometries, const Tensor& input,
                  const std::vector<Tensor>& weights, const Tail& tail, const Tensor& output,
                  const Gather& gather) {
  struct Step {
    Tensor weight;
    RatePass pass;
  };
  const Tensor centre = centre_sum(weights);
  std::vector<Step> steps;
  steps.push_back(
      {centre, rate_pass(pointwise(geometries[0]), strides4(centre), {0, 1, 1}, {0, 1, 1})});
  for (size_t i = 0; i < weights.size(); ++i)
    for (const RatePass& pass : off_centre_passes(geometries[i], strides4(weights[i])))
      steps.push_back({weights[i], pass});
  for (size_t s = 0; s < steps.size(); ++s) {
    Tail step;
    if (s == 0) step.bias = tail.bias;
    if (s > 0) step.residual = output;
    step.relu = tail.relu && s + 1 == steps.size();
    run_pass(steps[s].pass, input, steps[s].weight, step, output, gather);
  }
}

// A checked call and its output, not yet written.
struct MultiRate {
  std::vector<ConvGeometry> geometries;
  Tensor output;
  Tail tail;
};

inline MultiRate multi_rate_call(const Tensor& input, const std::vector<Tensor>& weights,
                                 std::optional<Tensor> bias, const Sizes& dilations, bool sum,
                                 bool relu) {
  auto geometries = branch_geometries(input, weights, dilations, sum);
  int64_t total = 0;
  bool channels_last = is_channels_last(input);
  for (const Tensor& weight : weights) {
    total = sum ? weight.size(0) : total + weight.size(0);
    channels_last = channels_last || is_channels_last(weight);
  }
  if (bias.has_value()) {
    STD_TORCH_CHECK(bias->dim() == 1 && bias->size(0) == total, "bias has a wrong size");
    check_same_kind(*bias, input, "bias");
    bias = torch::stable::contiguous(*bias);
  }
  const ConvGeometry& g = geometries[0];
  const Tensor output = empty4(input, {g.batch, total, g.height, g.width}, channels_last);
  return {std::move(geometries), output, {bias, std::nullopt, relu}};
}

template <typename Gather>
void join_branches(const MultiRate& call, const Tensor& input, const std::vector<Tensor>& weights,
                   const Gather& gather) {
  int64_t first = 0;
  for (size_t i = 0; i < weights.size(); ++i) {
    const ConvGeometry& g = call.geometries[i];
    Tail tail{std::nullopt, std::nullopt, call.tail.relu};
    if (call.tail.bias.has_value()) tail.bias = slice(*call.tail.bias, 0, first, g.outputs);
    gather(g.forward(), input, weights[i], g.forward_weight(strides4(weights[i])), tail,
           slice(call.output, 1, first, g.outputs));
    first += g.outputs;
  }
}

// One pass or more for each branch.
template <typename Gather>
Tensor run_branches(const MultiRate& call, const Tensor& input, const std::vector<Tensor>& weights,
                    bool sum, const Gather& gather) {
  if (call.output.numel() == 0) return call.output;
  if (sum)
    add_branches(call.geometries, input, weights, call.tail, call.output, gather);
  else
    join_branches(call, input, weights, gather);
  return call.output;
}

template <typename Gather>
Tensor multi_rate(const Tensor& input, const std::vector<Tensor>& weights,
                  std::optional<Tensor> bias, const Sizes& dilations, bool sum, bool relu,
                  const Gather& gather) {
  return run_branches(multi_rate_call(input, weights, std::move(bias), dilations, sum, relu), input,
                      weights, sum, gather);
}

}  // namespace atrousx
