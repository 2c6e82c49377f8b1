// multi_rate_conv2d as gathering passes over one input, for CPU and CUDA: checks, allocation, and
// the list of passes in order.
#pragma once

#include "atrous_conv2d/gather.h"
#include "multi_rate_conv2d/plan.h"

namespace atrousx {

// Returns a view of `count` indices along one dimension. torch::stable::narrow alone does not
// accept a temporary.
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
    const int64_t d = dilations[i];
    const int64_t rows = checked_mul(d, weight[2] / 2), columns = checked_mul(d, weight[3] / 2);
    geometries.push_back(
        conv_geometry(size, weight, {{1, 1}, {rows, columns, rows, columns}, {d, d}, 1}));
  }
  return geometries;
}

// Returns the sum of the centre taps of all branches, [K, C, 1, 1]. They can be summed because they
// read the same element at every pixel.
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

// A checked call and its output, which is not yet written.
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
    total = sum ? weight.size(0) : checked_add(total, weight.size(0));
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

// Returns the passes that write the branches side by side. `packed` is empty or has a packed tensor
// for each weight.
inline std::vector<GatherCall> join_branches(const MultiRate& call,
                                             const std::vector<Tensor>& weights,
                                             const std::vector<Tensor>& packed) {
  std::vector<GatherCall> calls;
  int64_t first = 0;
  for (size_t i = 0; i < weights.size(); ++i) {
    const ConvGeometry& g = call.geometries[i];
    Tail tail{std::nullopt, std::nullopt, call.tail.relu};
    if (call.tail.bias.has_value()) tail.bias = slice(*call.tail.bias, 0, first, g.outputs);
    calls.push_back({g.forward(), weights[i], g.forward_weight(strides4(weights[i])), tail,
                     slice(call.output, 1, first, g.outputs)});
    if (!packed.empty()) calls.back().packed = packed.at(i);
    first += g.outputs;
  }
  return calls;
}

// Returns the passes that sum the branches. The first pass has all centre taps and the bias. Every
// other pass adds to the output, and the last one applies the ReLU.
inline std::vector<GatherCall> add_branches(const MultiRate& call,
                                            const std::vector<Tensor>& weights) {
  std::vector<GatherCall> calls;
  const auto add = [&](const Tensor& weight, const RatePass& pass) {
    const Tensor from = slice(slice(weight, 2, pass.first_row, 1), 3, pass.first_column, 1);
    Tail tail;
    if (!calls.empty()) tail.residual = call.output;
    calls.push_back({pass.shape, from, pass.weight_strides, tail, call.output});
  };
  const Tensor centre = centre_sum(weights);
  add(centre, rate_pass(pointwise(call.geometries[0]), strides4(centre), {0, 1, 1}, {0, 1, 1}));
  calls[0].tail.bias = call.tail.bias;
  for (size_t i = 0; i < weights.size(); ++i)
    for (const RatePass& pass : off_centre_passes(call.geometries[i], strides4(weights[i])))
      add(weights[i], pass);
  calls.back().tail.relu = call.tail.relu;
  return calls;
}

inline std::vector<GatherCall> branch_calls(const MultiRate& call,
                                            const std::vector<Tensor>& weights, bool sum,
                                            const std::vector<Tensor>& packed = {}) {
  STD_TORCH_CHECK(packed.empty() || (!sum && packed.size() == weights.size()),
                  "packed must be empty or, without sum, have a tensor for each weight");
  return sum ? add_branches(call, weights) : join_branches(call, weights, packed);
}

}  // namespace atrousx
