// CUDA launchers of atrous_conv2d's tensor-core kernels. Results keep their own layout.
#include "atrous_conv2d/cuda/grad_weight/sum_parts.h"
#include "atrous_conv2d/cuda/tensorcore/tensorcore.h"
#include "atrous_conv2d/cuda/tensorcore/tensorcore_grad_weight_kernels.cuh"
#include "atrous_conv2d/cuda/tensorcore/tensorcore_kernels.cuh"
#include "atrous_conv2d/cuda/tensorcore/tensorcore_operands.h"
#include "atrous_conv2d/plan_cache.h"

namespace atrousx {
namespace {

// The map and the weight of a gathering pass, as the kernels read them.
template <typename T>
struct GatherOperands {
  Held<const T*> source, weight;
  TensorGatherStrides strides;
};

template <typename T, int kColumns>
void launch_gather(const GatherShape& shape, const GatherOperands<T>& operands, const Tail& tail,
                   const Tensor& destination, cudaStream_t stream) {
  const auto plans = cached_tap_plans(shape.rows, shape.columns, shape.batch, kTensorLanes);
  for (const TapPlan& plan : *plans) {
    const int64_t jobs = plan.tiles() * shape.groups * ceil_div<int64_t>(shape.outer, kColumns);
    launch({"atrous_conv2d on tensor cores", job_grid(jobs), kTensorThreads, stream,
            kTensorSharedBytes<kColumns>},
           atrous_conv2d_gather_tensorcore_kernel<T, kColumns>, operands.source, operands.weight,
           held_epilogue<T>(tail), writes<T>(destination), plan, shape, operands.strides);
  }
}

// Whether this GPU runs code that was compiled for compute capability 8.0 or later. Code that was
// compiled for an earlier one traps on every GPU.
bool has_instructions(int32_t device) {
  const LaunchContext context(device);
  return prepare(atrous_conv2d_gather_tensorcore_kernel<Half, 64>, 0, "a tensor-core kernel") >= 80;
}

}  // namespace

bool runs_on_tensorcores(const Tensor& t, const GatherShape& shape, bool allow_tf32) {
  // Smaller groups leave tiles so empty that kernels without tensor cores are faster. Also, padding
  // their channels to whole vectors would make maps much larger.
  constexpr int64_t kLeastProducts = 8;
  const ScalarType dtype = t.scalar_type();
  const bool served = dtype == ScalarType::Half || dtype == ScalarType::BFloat16 ||
                      (dtype == ScalarType::Float && allow_tf32);
  // The kernels use 32 bits to count pixels along an axis, channels, and the weights of a filter.
  // Offsets have 64 bits.
  const int64_t longest =
      std::max({shape.batch, shape.inner, shape.rows.destinations, shape.columns.destinations});
  const bool countable =
      longest <= INT32_MAX && whole_vectors(shape.inner, 8) <= kMostWeightStride / shape.taps();
  return served && countable && shape.outer * shape.inner >= kLeastProducts &&
         has_instructions(t.get_device_index());
}

Tensor map_for_tensorcores(const Tensor& t) {
  const LaunchContext context(t.get_device_index());
  std::optional<Tensor> packed;
  dispatch_tensorcore(t.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const auto map = dense_operand<T>(t, 1);
    if (map_has_vectors(map.size, map.strides, map.memory.value(), kVector<T>)) return;
    if (map.size.channels % kVector<T> != 0) return;  // padded: no tensor of these sizes
    packed = empty4(t, {t.size(0), t.size(1), t.size(2), t.size(3)}, true);
    pack_map(map, *packed, context.stream());
  });
  return packed.value_or(t);
}

void gather_on_tensorcores(const Tensor& source, const GatherCall& call) {
  const GatherShape& shape = call.shape;
  const int32_t device = source.get_device_index();
  const LaunchContext context(device);
  // Uses narrow tiles where wide tiles would be half empty, or too few for two rounds of the two
  // blocks that a multiprocessor holds. A nearly empty last round costs more than narrow tiles.
  constexpr int64_t kLeastWide = 4;
  const int64_t pixels = shape.batch * shape.rows.destinations * shape.columns.destinations;
  const int64_t wide_jobs =
      ceil_div<int64_t>(pixels, kTensorLanes) * shape.groups * ceil_div<int64_t>(shape.outer, 128);
  const bool wide =
      shape.outer > 64 &&
      wide_jobs >= kLeastWide * device_attribute(cudaDevAttrMultiProcessorCount, device);
  dispatch_tensorcore(source.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const auto from = map_operand<T>(source, shape.groups, context.stream());
    const auto by =
        weight_operand<T>(call.weight, weight_size(shape), call.weight_strides, context.stream());
    GatherShape whole = shape;
    whole.inner = whole_vectors(shape.inner, kVector<T>);
    const GatherOperands<T> operands{
        from.memory,
        by.memory,
        {from.strides, whole.inner, by.strides, strides4(call.destination)}};
    const auto gather = shape.outer <= 32 ? launch_gather<T, 32>
                        : wide            ? launch_gather<T, 128>
                                          : launch_gather<T, 64>;
    gather(whole, operands, call.tail, call.destination, context.stream());
  });
}

void grad_weight_on_tensorcores(const ConvGeometry& g, const Tensor& grad_output,
                                const Tensor& input, const Tensor& result) {
  const LaunchContext context(input.get_device_index());
  const GatherShape shape = g.forward();
  dispatch_tensorcore(input.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const auto grad = map_operand<T>(grad_output, g.groups, context.stream());
    const auto from = map_operand<T>(input, g.groups, context.stream());
    const TensorGradWeightStrides strides{grad.strides, from.strides,
                                          whole_vectors(shape.outer, kVector<T>),
                                          whole_vectors(shape.inner, kVector<T>)};
    const GradWeightParts cut = grad_weight_parts(
        shape, {whole_vectors(shape.inner, kVector<T>), kTensorLanes, kTensorLanes});
    const Tensor parts = scratch(input, cut.count * result.numel());
    launch({"_atrous_conv2d_backward_weight on tensor cores", job_grid(cut.jobs(shape)),
            kTensorThreads, context.stream(), kTensorSharedBytes<kTensorLanes>},
           atrous_conv2d_grad_weight_tensorcore_kernel<T>, grad.memory, from.memory,
           writes<float>(parts), cut, shape, strides);
    sum_parts<T>(shape, cut.count, parts, result, context.stream());
  });
}

}  // namespace atrousx
