// CUDA launchers of atrous_conv2d's tensor-core kernels. Operands that do not lie in whole vectors
// of channels - NCHW maps, odd numbers of channels, unaligned views, every weight but a
// channels_last one in the forward pass - are packed first: one pass over them, in a kernel of ours
// because PyTorch's contiguous() can neither pad channels nor transpose weights by group. Results
// are written in their own layout.
#include "../cuda_launch.h"
#include "atrous_conv2d_tensorcore_grad_weight_kernels.cuh"
#include "atrous_conv2d_tensorcore_kernels.cuh"
#include "tensorcore.h"
#include "tensorcore_pack.h"

namespace atrousx {
namespace {

template <typename F>
void dispatch_tensorcore(ScalarType dtype, F&& f) {
  if (dtype == ScalarType::Half) return f(Half{});
  if (dtype == ScalarType::BFloat16) return f(BFloat16{});
  return f(float{});
}

// A map or weight as the kernels read it; `packed` keeps a packed one alive until the launch, after
// which PyTorch's allocator orders its memory by the stream.
template <typename T, typename Strides>
struct Operand {
  const T* data;
  Strides strides;
  std::optional<Tensor> packed;
};

Tensor uninitialised(int64_t count, const Tensor& like) {
  return torch::stable::empty({&count, 1}, like.scalar_type(), std::nullopt, like.device());
}

template <typename T>
Operand<T, Strides4> map_operand(const Tensor& t, int64_t groups, cudaStream_t stream) {
  const MapSize size{t.size(0), groups, t.size(1) / groups, t.size(2), t.size(3)};
  const Strides4 strides = map_strides(size, strides4(t));
  const T* data = static_cast<const T*>(t.const_data_ptr());
  if (map_has_vectors(size, strides, data, kVector<T>)) return {data, strides, std::nullopt};
  const Strides4 to = packed_map_strides(size, kVector<T>);
  const Tensor packed = uninitialised(size.batch * to.n, t);
  T* values = static_cast<T*>(packed.mutable_data_ptr());
  if (packed.numel() == 0) return {values, to, packed};
  if (map_has_planes(size, strides)) {
    const TransposeShape shape = map_transpose(size, strides, kVector<T>);
    atrous_conv2d_transpose_kernel<T>
        <<<job_grid(transpose_jobs<T>(shape)), kPackThreads, 0, stream>>>(data, values, shape);
  } else {
    const PackShape shape = map_pack(size, strides, kVector<T>);
    atrous_conv2d_pack_kernel<T>
        <<<job_grid(pack_jobs(shape)), kPackThreads, 0, stream>>>(data, values, shape);
  }
  check_cuda(cudaGetLastError(), "atrous_conv2d, packing of a map");
  return {values, to, packed};
}

template <typename T>
Operand<T, WeightStrides> weight_operand(const Tensor& t, const GatherShape& shape,
                                         const WeightStrides& from, cudaStream_t stream) {
  const WeightSize size{shape.groups, shape.outer, shape.inner, shape.rows.taps,
                        shape.columns.taps};
  const WeightStrides strides = weight_strides(size, from);
  const T* data = static_cast<const T*>(t.const_data_ptr());
  if (weight_has_vectors(size, strides, data, kVector<T>)) return {data, strides, std::nullopt};
  const WeightStrides to = packed_weight_strides(size, kVector<T>);
  const Tensor packed = uninitialised(size.groups * to.group, t);
  T* values = static_cast<T*>(packed.mutable_data_ptr());
  const PackShape copy = weight_pack(size, strides, kVector<T>);
  atrous_conv2d_pack_kernel<T>
      <<<job_grid(pack_jobs(copy)), kPackThreads, 0, stream>>>(data, values, copy);
  check_cuda(cudaGetLastError(), "atrous_conv2d, packing of a weight");
  return {values, to, packed};
}

template <typename T, int kColumns>
void launch_gather(const GatherShape& shape, const T* source, const T* weight,
                   const Epilogue<T>& epilogue, T* destination, const TensorGatherStrides& strides,
                   cudaStream_t stream) {
  const auto kernel = atrous_conv2d_gather_tensorcore_kernel<T, kColumns>;
  allow_shared_memory(kernel, kTensorSharedBytes<kColumns>);
  for (const TapPlan& plan : tap_plans(shape.rows, shape.columns, shape.batch, kTensorLanes)) {
    const int64_t jobs = plan.tiles() * shape.groups * ceil_div<int64_t>(shape.outer, kColumns);
    kernel<<<job_grid(jobs), kTensorThreads, kTensorSharedBytes<kColumns>, stream>>>(
        source, weight, epilogue, destination, plan, shape, strides);
    check_cuda(cudaGetLastError(), "atrous_conv2d on tensor cores");
  }
}

// Whether the code that this GPU runs was compiled for compute capability 8.0 or later: what was
// compiled for an earlier one traps, on whichever GPU.
bool has_instructions(int32_t device) {
  const LaunchContext context(device);
  cudaFuncAttributes attributes{};
  check_cuda(cudaFuncGetAttributes(&attributes, atrous_conv2d_gather_tensorcore_kernel<Half, 64>),
             "attributes of a tensor-core kernel");
  return attributes.ptxVersion >= 80;
}

}  // namespace

bool runs_on_tensorcores(const Tensor& t, const GatherShape& shape, bool allow_tf32) {
  constexpr int64_t kLeastChannels = 16;
  const ScalarType dtype = t.scalar_type();
  const bool served = dtype == ScalarType::Half || dtype == ScalarType::BFloat16 ||
                      (dtype == ScalarType::Float && allow_tf32);
  // The kernels count pixels along an axis and channels in 32 bits; offsets have 64.
  const int64_t longest =
      std::max({shape.batch, shape.inner, shape.rows.destinations, shape.columns.destinations});
  return served && longest <= INT32_MAX && shape.outer >= kLeastChannels &&
         shape.inner >= kLeastChannels && has_instructions(t.get_device_index());
}

void gather_on_tensorcores(const GatherShape& shape, const Tensor& source, const Tensor& weight,
                           const WeightStrides& weight_strides, const Tail& tail,
                           const Tensor& destination) {
  const int32_t device = source.get_device_index();
  const LaunchContext context(device);
  // Narrow tiles where wide ones would be half empty, or too few for two rounds of the two blocks
  // that a multiprocessor holds: a last round that is nearly empty costs more than narrow tiles do.
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
    const auto by = weight_operand<T>(weight, shape, weight_strides, context.stream());
    GatherShape whole = shape;
    whole.inner = whole_vectors(shape.inner, kVector<T>);
    const TensorGatherStrides strides{from.strides, whole.inner, by.strides, strides4(destination)};
    const auto launch = wide ? launch_gather<T, 128> : launch_gather<T, 64>;
    launch(whole, from.data, by.data, tail.template epilogue<T>(),
           static_cast<T*>(destination.mutable_data_ptr()), strides, context.stream());
  });
}

void grad_weight_on_tensorcores(const ConvGeometry& g, const Tensor& grad_output,
                                const Tensor& input, const Tensor& result) {
  constexpr int64_t kWantedBlocks = 512;  // a few for each multiprocessor of a large GPU
  const LaunchContext context(input.get_device_index());
  const GatherShape shape = g.forward();
  const int64_t tasks = g.groups * g.kernel_h * g.kernel_w *
                        ceil_div<int64_t>(shape.inner, kTensorLanes) *
                        ceil_div<int64_t>(shape.outer, kTensorLanes);
  const int64_t splits = grad_weight_splits(tasks, g.batch * g.out_h * g.out_w, kWantedBlocks);
  const Tensor parts = scratch(input, splits * result.numel());
  float* part_data = static_cast<float*>(parts.mutable_data_ptr());
  dispatch_tensorcore(input.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const auto grad = map_operand<T>(grad_output, g.groups, context.stream());
    const auto from = map_operand<T>(input, g.groups, context.stream());
    const TensorGradWeightStrides strides{grad.strides, from.strides,
                                          whole_vectors(shape.outer, kVector<T>),
                                          whole_vectors(shape.inner, kVector<T>)};
    const auto kernel = atrous_conv2d_grad_weight_tensorcore_kernel<T>;
    allow_shared_memory(kernel, kTensorSharedBytes<kTensorLanes>);
    kernel<<<job_grid(splits * tasks), kTensorThreads, kTensorSharedBytes<kTensorLanes>,
             context.stream()>>>(grad.data, from.data, part_data, splits, shape, strides);
    check_cuda(cudaGetLastError(), "_atrous_conv2d_backward_weight on tensor cores");
    atrous_conv2d_sum_parts_kernel<T>
        <<<grid_for(result.size(0) * result.size(1)), kThreads, 0, context.stream()>>>(
            part_data, static_cast<T*>(result.mutable_data_ptr()), splits, shape, strides4(result));
    check_cuda(cudaGetLastError(), "_atrous_conv2d_backward_weight, sum of parts");
  });
}

}  // namespace atrousx
