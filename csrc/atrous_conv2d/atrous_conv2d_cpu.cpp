// CPU checks, allocation and registration of atrous_conv2d and its two backward operators. Wide
// groups are matrix products (cpu_gather.h, cpu_grad_weight.h; cpu_winograd.h where the weight
// comes transformed), narrow ones direct (cpu_direct.h).
#include <functional>
#include <memory>

#include "arguments.h"
#include "cpu_depthwise_grad_weight.h"
#include "cpu_direct.h"
#include "cpu_gather.h"
#include "cpu_grad_weight.h"
#include "cpu_winograd.h"
#include "gather.h"

namespace atrousx {
namespace {

template <typename T>
const T* data(const Tensor& t) {
  return static_cast<const T*>(t.const_data_ptr());
}

// The weight of a pass as tile type R multiplies it: as the caller packed it, or packed now.
template <typename T, typename R>
Tensor packed_weight(const GatherCall& call) {
  const PackedWeight<R> weight(call.shape);
  if (!call.packed.has_value() || call.packed->numel() == 0)
    return weight.pack(data<T>(call.weight), call.weight_strides, call.weight);
  using A = typename R::A;
  STD_TORCH_CHECK(call.packed->numel() == weight.size() && call.packed->is_contiguous() &&
                      call.packed->device() == call.weight.device() &&
                      call.packed->element_size() == sizeof(A),
                  "packed is not this weight, packed on this CPU");
  return *call.packed;
}

// What a call does at each step of the source.
template <typename A>
using StepWork = std::function<void(const GatherStep&, const SourceView<A>&)>;

template <typename T, typename A, int kPack>
StepWork<A> step_work(const GatherCall& call) {
  StepWork<A> work;
  with_register_tile<A, kPack>(call.shape.outer, [&](auto tile) {
    using R = decltype(tile);
    const auto gather = std::make_shared<CpuGather<T, R>>(
        call.shape, packed_weight<T, R>(call), call.tail.epilogue<T>(),
        static_cast<T*>(call.destination.mutable_data_ptr()), strides4(call.destination));
    work = [gather](const GatherStep& step, const SourceView<A>& source) {
      gather->multiply(step, source);
    };
  });
  return work;
}

// Whether a call's weight came transformed, for cpu_winograd.h.
bool is_transformed(const Tensor& source, const GatherCall& call) {
  if (!call.packed.has_value() || source.scalar_type() != ScalarType::Float ||
      !winograd_serves(call.shape))
    return false;
  int64_t size = 0;
  with_register_tile<float>(call.shape.outer, [&](auto tile) {
    size = WinogradWeight<decltype(tile)>(call.shape).size();
  });
  return call.packed->numel() == size && call.packed->is_contiguous() &&
         call.packed->scalar_type() == ScalarType::Float &&
         call.packed->device() == source.device();
}

void gather_transformed(const Tensor& source, const GatherCall& call) {
  const GatherShape& shape = call.shape;
  const Tensor from = dense4(source, true), &to = call.destination;
  const bool apart = to.stride(1) != 1;  // channels are no neighbours there
  const std::array<int64_t, 4> size{shape.batch, shape.outer, shape.rows.destinations,
                                    shape.columns.destinations};
  const Tensor result = apart ? empty4(source, size, true) : to;
  with_register_tile<float>(shape.outer, [&](auto tile) {
    CpuWinograd<decltype(tile)>(shape, data<float>(*call.packed), call.tail.epilogue<float>())
        .run(data<float>(from), strides4(from), static_cast<float*>(result.mutable_data_ptr()),
             strides4(result), source);
  });
  if (apart) {
    Tensor destination = to;
    torch::stable::copy_(destination, result);
  }
}

// Passes over one packed source.
void gather_together(const Tensor& source, const std::vector<GatherCall>& calls) {
  if (calls.empty()) return;
  dispatch_floating(source.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    with_pack<T>([&](auto pack) {
      using A = Accumulate<T>;
      constexpr int kPack = decltype(pack)::value;
      std::vector<StepWork<A>> works;
      for (const GatherCall& call : calls) works.push_back(step_work<T, A, kPack>(call));
      const auto fewer = [](const GatherCall& a, const GatherCall& b) {
        return a.shape.taps() < b.shape.taps();
      };
      for_each_gather_step<A, kPack>(std::max_element(calls.begin(), calls.end(), fewer)->shape,
                                     data<T>(source), strides4(source), source,
                                     [&](const GatherStep& step, const SourceView<A>& view) {
                                       for (const auto& work : works) work(step, view);
                                     });
    });
  });
}

}  // namespace

// Matrix products whatever the width of the groups.
void gather_cpu(const Tensor& source, const std::vector<GatherCall>& calls) {
  if (source.size(0) == 0) return;
  std::vector<GatherCall> waiting;
  for (const GatherCall& call : calls) {
    if (!is_transformed(source, call)) {
      waiting.push_back(call);
      continue;
    }
    gather_together(source, waiting);
    waiting.clear();
    gather_transformed(source, call);
  }
  gather_together(source, waiting);
}

namespace {

Tensor atrous_conv2d_pack_weight_cpu(const Tensor& weight, int64_t groups, bool winograd) {
  const Sizes size = sizes4(weight, "weight");
  STD_TORCH_CHECK(groups > 0 && size[0] % groups == 0, "groups must divide weight's outputs");
  GatherShape shape{};
  shape.groups = groups;
  shape.outer = size[0] / groups;
  shape.inner = size[1];
  shape.rows.taps = size[2];
  shape.columns.taps = size[3];
  const Strides4 strides = strides4(weight);
  const WeightStrides seen{shape.outer * strides.n, strides.n, strides.c, strides.h, strides.w};
  std::optional<Tensor> packed;
  if (winograd) {
    STD_TORCH_CHECK(shape.rows.taps == 3 && shape.columns.taps == 3 && groups == 1 &&
                        weight.scalar_type() == ScalarType::Float,
                    "only 3x3 filters in float32 without groups are transformed");
    with_register_tile<float>(shape.outer, [&](auto tile) {
      packed = WinogradWeight<decltype(tile)>(shape).pack(data<float>(weight), seen, weight);
    });
    return *packed;
  }
  if (gathers_directly(shape)) return scratch(weight, 0);
  dispatch_floating(weight.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    with_pack<T>([&](auto pack) {
      with_register_tile<Accumulate<T>, decltype(pack)::value>(shape.outer, [&](auto tile) {
        packed = PackedWeight<decltype(tile)>(shape).pack(data<T>(weight), seen, weight);
      });
    });
  });
  return *packed;
}

// Narrow groups. Returns the destination, in the memory format asked for.
Tensor gather_directly(const GatherShape& shape, const Tensor& source, const Tensor& weight,
                       const WeightStrides& weight_strides, const std::optional<Tensor>& bias,
                       const std::array<int64_t, 4>& size, bool channels_last) {
  // Pixels hold many channels side by side only when every group is one channel wide.
  const bool depthwise = shape.outer == 1 && shape.inner == 1,
             by_pixel = channels_last && depthwise;
  const Tensor from = torch::stable::contiguous(source, memory_format(by_pixel));
  const Tensor destination = empty4(source, size, by_pixel);
  prefer_huge_pages(destination.mutable_data_ptr(),
                    destination.numel() * destination.element_size());
  dispatch_floating(source.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const T* added = bias.has_value() ? data<T>(*bias) : nullptr;
    T* to = static_cast<T*>(destination.mutable_data_ptr());
    if (by_pixel)
      gather_pixels(shape, data<T>(from), data<T>(weight), weight_strides, added, to, source);
    else if (depthwise && shape.columns.scale == 1 && shape.columns.divisor == 1)
      gather_rows(shape, data<T>(from), data<T>(weight), weight_strides, added, to);
    else
      gather_planes(shape, data<T>(from), data<T>(weight), weight_strides, added, to);
  });
  return torch::stable::contiguous(destination, memory_format(channels_last));
}

// Rows added to rows leave the residual and ReLU to a pass of their own.
void finish_directly(const Tail& tail, const Tensor& destination) {
  if (!tail.residual.has_value() && !tail.relu) return;
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

// A large weight is packed and multiplied by some outputs at a time: what was packed then still
// lies in the outer cache when it is multiplied, in memory that is used again. Every step packs the
// source anew, so that must be small beside the weight.
void gather_by_outputs(const Tensor& source, const GatherCall& call) {
  constexpr int64_t kStep = 4 << 20;  // elements of weight
  const GatherShape& shape = call.shape;
  const int64_t weights = shape.outer * shape.inner * shape.taps(), steps = weights / kStep;
  const bool is_packed = call.packed.has_value() && call.packed->numel() > 0;
  if (shape.groups > 1 || is_packed || steps < 2 || steps * source.numel() > weights / 2)
    return gather_cpu(source, {call});
  constexpr int64_t kColumns = 128;  // whole tiles, of any width
  const int64_t outputs = ceil_div(ceil_div(shape.outer, steps), kColumns) * kColumns;
  const int64_t dim = call.weight_strides.outer == call.weight.stride(0) ? 0 : 1;
  for (int64_t first = 0; first < shape.outer; first += outputs) {
    const int64_t count = std::min(outputs, shape.outer - first);
    const auto part = [&](Tensor t, int64_t of) {
      return torch::stable::narrow(t, of, first, count);
    };
    GatherCall step = call;
    step.shape.outer = count;
    step.weight = part(call.weight, dim);
    step.destination = part(call.destination, 1);
    if (call.tail.bias.has_value()) step.tail.bias = part(*call.tail.bias, 0);
    if (call.tail.residual.has_value()) step.tail.residual = part(*call.tail.residual, 1);
    gather_cpu(source, {step});
  }
}

Tensor gather(const GatherShape& shape, const Tensor& source, const Tensor& weight,
              const WeightStrides& weight_strides, const Tail& tail,
              const std::array<int64_t, 4>& size, bool channels_last,
              const std::optional<Tensor>& packed = std::nullopt) {
  if (size[0] * size[1] * size[2] * size[3] == 0) return empty4(source, size, channels_last);
  if (gathers_directly(shape)) {
    const Tensor destination =
        gather_directly(shape, source, weight, weight_strides, tail.bias, size, channels_last);
    finish_directly(tail, destination);
    return destination;
  }
  const Tensor destination = empty4(source, size, channels_last);
  prefer_huge_pages(destination.mutable_data_ptr(),
                    destination.numel() * destination.element_size());
  gather_by_outputs(source, {shape, weight, weight_strides, tail, destination, packed});
  return destination;
}

Tensor convolve(const Tensor& input, const Tensor& weight, Tail tail, const Sizes& stride,
                const Sizes& padding, const Sizes& dilation, int64_t groups,
                const std::optional<Tensor>& packed = std::nullopt) {
  const ConvCall call = forward_call(input, weight, tail, stride, padding, dilation, groups);
  return gather(call.g.forward(), input, weight, call.g.forward_weight(strides4(weight)), tail,
                call.size, call.channels_last, packed);
}

Tensor atrous_conv2d_cpu(const Tensor& input, const Tensor& weight, std::optional<Tensor> bias,
                         Sizes stride, Sizes padding, Sizes dilation, int64_t groups,
                         bool /*allow_tf32*/) {
  return convolve(input, weight, {bias, std::nullopt, false}, stride, padding, dilation, groups);
}

Tensor atrous_conv2d_fused_cpu(const Tensor& input, const Tensor& weight,
                               std::optional<Tensor> bias, std::optional<Tensor> residual,
                               bool relu, Sizes stride, Sizes padding, Sizes dilation,
                               int64_t groups, bool /*allow_tf32*/, std::optional<Tensor> packed) {
  return convolve(input, weight, {bias, residual, relu}, stride, padding, dilation, groups, packed);
}

Tensor atrous_conv2d_backward_input_cpu(const Tensor& grad_output, const Tensor& weight,
                                        Sizes input_size, Sizes stride, Sizes padding,
                                        Sizes dilation, int64_t groups, bool /*allow_tf32*/) {
  const ConvCall call =
      grad_input_call(grad_output, weight, input_size, stride, padding, dilation, groups);
  return gather(call.g.grad_input(), grad_output, weight,
                call.g.grad_input_weight(strides4(weight)), Tail{}, call.size, call.channels_last);
}

Tensor atrous_conv2d_backward_weight_cpu(const Tensor& grad_output, const Tensor& input,
                                         Sizes weight_size, Sizes stride, Sizes padding,
                                         Sizes dilation, int64_t groups, bool /*allow_tf32*/) {
  const ConvCall call =
      grad_weight_call(grad_output, input, weight_size, stride, padding, dilation, groups);
  const ConvGeometry& g = call.g;
  const Tensor grad_weight = empty4(input, call.size, call.channels_last);
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
        return grad_weight_pixels(g, data<T>(grad), data<T>(from), to, strides4(grad_weight),
                                  input);
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
  m.impl("atrous_conv2d", TORCH_BOX(&atrousx::atrous_conv2d_cpu));
  m.impl("_atrous_conv2d_pack_weight", TORCH_BOX(&atrousx::atrous_conv2d_pack_weight_cpu));
  m.impl("_atrous_conv2d_fused", TORCH_BOX(&atrousx::atrous_conv2d_fused_cpu));
  m.impl("_atrous_conv2d_backward_input", TORCH_BOX(&atrousx::atrous_conv2d_backward_input_cpu));
  m.impl("_atrous_conv2d_backward_weight", TORCH_BOX(&atrousx::atrous_conv2d_backward_weight_cpu));
}
