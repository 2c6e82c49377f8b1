// Checks, allocation and registration of atrous_conv2d and its two backward operators on the CPU.
// Wide groups are computed as matrix products (indirect_conv.cpp, indirect_grad_weight.h). Narrow
// groups go to the direct and depthwise kernels (direct_conv.h, depthwise/).
#include "atrous_conv2d/arguments.h"
#include "atrous_conv2d/cpu/depthwise/channels_last_grad_weight.h"
#include "atrous_conv2d/cpu/depthwise/planes.h"
#include "atrous_conv2d/cpu/depthwise/planes_grad_weight.h"
#include "atrous_conv2d/cpu/depthwise/row_driver.h"
#include "atrous_conv2d/cpu/direct/direct_conv.h"
#include "atrous_conv2d/cpu/indirect/indirect_grad_weight.h"
#include "atrous_conv2d/cpu/winograd/winograd_weight.h"
#include "atrous_conv2d/gather.h"

namespace atrousx {
namespace {

// Call this for a new result: the time of a call includes the page faults of its result.
Tensor in_huge_pages(const Tensor& result) {
  prefer_huge_pages(result.mutable_data_ptr(), result.numel() * result.element_size());
  return result;
}

// Returns the weight packed by `form`. The size is [points of rows, points of columns, numbers], or
// [numbers] if `points` is empty.
template <typename T, typename Form>
Tensor packed_as(const Form& form, const Tensor& weight, const WeightStrides& strides,
                 Sizes points) {
  Sizes size = std::move(points);
  const int64_t all = form.size();
  size.push_back(size.empty() ? all : all / (size[0] * size[1]));
  const bool wide = sizeof(typename Form::A) == sizeof(double);
  const Tensor packed = torch::stable::empty({size.data(), size.size()},
                                             wide ? ScalarType::Double : ScalarType::Float,
                                             std::nullopt, weight.device());
  in_huge_pages(packed);
  form.pack(data<T>(weight), strides, static_cast<typename Form::A*>(packed.mutable_data_ptr()));
  return packed;
}

// Returns the weight transformed for minimal filtering. `points` holds two form numbers.
Tensor transformed_weight(const GatherShape& shape, const Tensor& weight,
                          const WeightStrides& strides, const Sizes& points) {
  STD_TORCH_CHECK(shape.rows.taps == 3 && shape.columns.taps == 3 && shape.groups == 1 &&
                      weight.scalar_type() != ScalarType::Double,
                  "only 3x3 filters in float32 or a half type without groups are transformed");
  const bool half = weight.scalar_type() != ScalarType::Float;
  const auto both = points.size() == 2 ? points_by_numbers(points[0], points[1], half)
                                       : std::optional<WinogradPoints>{};
  STD_TORCH_CHECK(
      both.has_value(), "points must be two, ",
      half ? "6 and 6 in a half type" : "each 3 or 4, or both 5, or both 7, in float32");
  std::optional<Tensor> packed;
  dispatch_floating(weight.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    if constexpr (!std::is_same_v<T, double>)
      with_register_tile<float>(shape.outer, [&](auto tile) {
        packed =
            packed_as<T>(WinogradWeight<decltype(tile)>(shape, *both), weight, strides, points);
      });
  });
  return *packed;
}

Tensor atrous_conv2d_pack_weight_cpu(const Tensor& weight, int64_t groups, Sizes points) {
  const Sizes size = sizes4(weight, "weight");
  STD_TORCH_CHECK(groups > 0 && size[0] % groups == 0, "groups must divide weight's outputs");
  checked_numel(size);
  GatherShape shape{};
  shape.groups = groups;
  shape.outer = size[0] / groups;
  shape.inner = size[1];
  shape.rows.taps = size[2];
  shape.columns.taps = size[3];
  const Strides4 strides = strides4(weight);
  const WeightStrides seen{shape.outer * strides.n, strides.n, strides.c, strides.h, strides.w};
  if (!points.empty()) return transformed_weight(shape, weight, seen, points);
  if (gathers_directly(shape)) return scratch(weight, 0);
  std::optional<Tensor> packed;
  dispatch_floating(weight.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    with_pack<T>([&](auto pack) {
      with_register_tile<Accumulate<T>, decltype(pack)::value>(shape.outer, [&](auto tile) {
        packed = packed_as<T>(PackedWeight<decltype(tile)>(shape), weight, seen, {});
      });
    });
  });
  return *packed;
}

// The weight of a gathering pass, and its strides in this pass. `packed` may hold it packed.
struct PassWeight {
  Tensor tensor;
  WeightStrides strides;
  std::optional<Tensor> packed = std::nullopt;
};

// Computes narrow groups. Returns the destination in the memory format asked for.
Tensor gather_directly(const ConvCall& call, const GatherShape& shape, const Tensor& source,
                       const PassWeight& given, const Tail& tail) {
  // The channels_last kernels need groups that are one channel wide.
  const bool depthwise = shape.outer == 1 && shape.inner == 1,
             by_pixel = call.channels_last && depthwise;
  const Tensor& weight = given.tensor;
  const WeightStrides& weight_strides = given.strides;
  const Tensor from = torch::stable::contiguous(source, memory_format(by_pixel));
  const Tensor destination = in_huge_pages(empty4(source, call.size, by_pixel));
  dispatch_floating(source.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    Epilogue<T> epilogue;  // finish_directly adds the residual
    epilogue.bias = data<T>(tail.bias);
    epilogue.relu = tail.relu && !tail.residual.has_value();
    T* to = static_cast<T*>(destination.mutable_data_ptr());
    if (by_pixel && PixelWalks<T>::fit(shape))
      PixelWalks<T>(shape, data<T>(from), data<T>(weight), weight_strides, epilogue, to).run();
    else if (by_pixel)
      gather_pixels(shape, data<T>(from), data<T>(weight), weight_strides, epilogue, to);
    else if (depthwise)
      gather_depthwise_planes(shape, data<T>(from), data<T>(weight), weight_strides, epilogue, to);
    else
      gather_planes(shape, data<T>(from), data<T>(weight), weight_strides, epilogue, to);
  });
  return torch::stable::contiguous(destination, memory_format(call.channels_last));
}

// The direct kernels do not add a residual. This separate pass adds it and applies the ReLU.
void finish_directly(const Tail& tail, const Tensor& destination) {
  if (!tail.residual.has_value()) return;
  dispatch_floating(destination.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    Epilogue<T> epilogue = tail.epilogue<T>();
    epilogue.bias = nullptr;  // already added
    const Strides4 strides = strides4(destination), from = epilogue.residual_strides;
    const int64_t channels = destination.size(1), height = destination.size(2);
    T* to = static_cast<T*>(destination.mutable_data_ptr());
    torch::stable::parallel_for(
        0, destination.size(0) * channels * height, 64, [&](int64_t begin, int64_t end) {
          for (int64_t r = begin; r < end; ++r) {
            const int64_t n = r / height / channels, c = r / height % channels, h = r % height;
            for (int64_t w = 0; w < destination.size(3); ++w) {
              T& value = to[strides.offset(n, c, h, w)];
              value = epilogue.finish(value, c, from.offset(n, c, h, w));
            }
          }
        });
  });
}

Tensor gather(const ConvCall& call, const GatherShape& shape, const Tensor& source,
              const PassWeight& weight, const Tail& tail) {
  const auto& size = call.size;
  if (size[0] * size[1] * size[2] * size[3] == 0) return empty4(source, size, call.channels_last);
  if (gathers_directly(shape)) {
    const Tensor destination = gather_directly(call, shape, source, weight, tail);
    finish_directly(tail, destination);
    return destination;
  }
  const Tensor destination = in_huge_pages(empty4(source, size, call.channels_last));
  gather_cpu(source, {{shape, weight.tensor, weight.strides, tail, destination, weight.packed}});
  return destination;
}

Tensor convolve(const Tensor& input, const Tensor& weight, Tail tail, const ConvOptions& options,
                const std::optional<Tensor>& packed = std::nullopt) {
  const ConvCall call = forward_call(input, weight, tail, options);
  return gather(call, call.g.forward(), input,
                {weight, call.g.forward_weight(strides4(weight)), packed}, tail);
}

Tensor atrous_conv2d_cpu(const Tensor& input, const Tensor& weight, std::optional<Tensor> bias,
                         Sizes stride, Sizes padding, Sizes dilation, int64_t groups,
                         bool /*allow_tf32*/) {
  return convolve(input, weight, {bias, std::nullopt, false},
                  {std::move(stride), std::move(padding), std::move(dilation), groups});
}

Tensor atrous_conv2d_fused_cpu(const Tensor& input, const Tensor& weight,
                               std::optional<Tensor> bias, std::optional<Tensor> residual,
                               bool relu, Sizes stride, Sizes padding, Sizes dilation,
                               int64_t groups, bool /*allow_tf32*/, std::optional<Tensor> packed) {
  return convolve(input, weight, {bias, residual, relu},
                  {std::move(stride), std::move(padding), std::move(dilation), groups}, packed);
}

Tensor atrous_conv2d_backward_input_cpu(const Tensor& grad_output, const Tensor& weight,
                                        Sizes input_size, Sizes stride, Sizes padding,
                                        Sizes dilation, int64_t groups, bool /*allow_tf32*/) {
  const ConvCall call =
      grad_input_call(grad_output, weight, input_size,
                      {std::move(stride), std::move(padding), std::move(dilation), groups});
  return gather(call, call.g.grad_input(), grad_output,
                {weight, call.g.grad_input_weight(strides4(weight))}, Tail{});
}

Tensor atrous_conv2d_backward_weight_cpu(const Tensor& grad_output, const Tensor& input,
                                         Sizes weight_size, Sizes stride, Sizes padding,
                                         Sizes dilation, int64_t groups, bool /*allow_tf32*/) {
  const ConvCall call =
      grad_weight_call(grad_output, input, weight_size,
                       {std::move(stride), std::move(padding), std::move(dilation), groups});
  const ConvGeometry& g = call.g;
  const Tensor grad_weight = in_huge_pages(empty4(input, call.size, call.channels_last));
  if (grad_weight.numel() == 0) return grad_weight;
  dispatch_floating(input.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    T* to = static_cast<T*>(grad_weight.mutable_data_ptr());
    if (g.batch == 0) return (void)std::fill_n(to, grad_weight.numel(), T(0));
    if (grad_weight_directly(g)) {
      const bool by_pixel = call.channels_last && g.group_channels() == 1 && g.group_outputs() == 1;
      const Tensor grad = torch::stable::contiguous(grad_output, memory_format(by_pixel));
      const Tensor from = torch::stable::contiguous(input, memory_format(by_pixel));
      if (by_pixel)
        return grad_weight_pixels(g, data<T>(grad), data<T>(from), to, strides4(grad_weight));
      return grad_weight_planes(g, data<T>(grad), data<T>(from), to, strides4(grad_weight));
    }
    with_pack<T>([&](auto pack) {
      with_register_tile<Accumulate<T>, decltype(pack)::value>(g.group_outputs(), [&](auto tile) {
        CpuGradWeight<T, decltype(tile)>(g, grad_output, input).run(to, strides4(grad_weight));
      });
    });
  });
  return grad_weight;
}

}  // namespace
}  // namespace atrousx

STABLE_TORCH_LIBRARY_IMPL(atrousx, CPU, m) {
  m.impl("atrous_conv2d", ATROUSX_BOX(atrousx::atrous_conv2d_cpu));
  m.impl("_atrous_conv2d_pack_weight", ATROUSX_BOX(atrousx::atrous_conv2d_pack_weight_cpu));
  m.impl("_atrous_conv2d_fused", ATROUSX_BOX(atrousx::atrous_conv2d_fused_cpu));
  m.impl("_atrous_conv2d_backward_input", ATROUSX_BOX(atrousx::atrous_conv2d_backward_input_cpu));
  m.impl("_atrous_conv2d_backward_weight", ATROUSX_BOX(atrousx::atrous_conv2d_backward_weight_cpu));
}
