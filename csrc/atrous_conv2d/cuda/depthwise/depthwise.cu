// CUDA launchers of atrous_conv2d's depthwise kernels.
#include "atrous_conv2d/cuda/depthwise/depthwise.h"
#include "atrous_conv2d/cuda/depthwise/depthwise_grad_weight_kernels.cuh"
#include "atrous_conv2d/cuda/depthwise/depthwise_kernels.cuh"
#include "atrous_conv2d/cuda/grad_weight/sum_parts.h"
#include "cuda/launch.h"

namespace atrousx {
namespace {

constexpr int64_t kWantedBlocks = 512;  // a few for each multiprocessor of a large GPU

DenseMap dense_map(const Tensor& t) {
  return {t.size(0), t.size(1), t.size(2), t.size(3), strides4(t), t.const_data_ptr()};
}

int64_t most_shared_memory(const Tensor& t) {
  return device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, t.get_device_index());
}

template <typename T>
bool gather_vectors(const Tensor& source, const GatherCall& call, cudaStream_t stream) {
  const GatherShape& shape = call.shape;
  const int64_t bytes = depthwise_shared_bytes<T>(shape);
  if (bytes > most_shared_memory(source)) return false;
  const int64_t pixels = shape.rows.destinations * shape.columns.destinations;
  const int64_t chunks =
      shape.batch * ceil_div<int64_t>(shape.groups, kChunkVectors * kDepthwiseVector<T>);
  const int64_t parts =
      min_of(ceil_div(kWantedBlocks, chunks), ceil_div<int64_t>(pixels, kPixelsAtOnce));
  launch({"atrous_conv2d, depthwise", job_grid(chunks * parts), kDepthwiseThreads, stream, bytes},
         atrous_conv2d_depthwise_kernel<T>, reads<T>(source), reads<T>(call.weight),
         held_epilogue<T>(call.tail), writes<T>(call.destination), parts, shape, strides4(source),
         call.weight_strides, strides4(call.destination));
  return true;
}

template <typename T, int kPlanes>
bool gather_planes(const Tensor& source, const GatherCall& call, cudaStream_t stream) {
  const GatherShape& shape = call.shape;
  const int64_t bytes = planes_shared_bytes<T>(shape, kPlanes);
  if (bytes > most_shared_memory(source)) return false;
  const int64_t jobs = ceil_div<int64_t>(shape.batch * shape.groups, kPlanes);
  launch({"atrous_conv2d, depthwise planes", job_grid(jobs), kPlaneThreads, stream, bytes},
         atrous_conv2d_depthwise_planes_kernel<T, kPlanes>, reads<T>(source), reads<T>(call.weight),
         held_epilogue<T>(call.tail), writes<T>(call.destination), shape, call.weight_strides);
  return true;
}

template <typename T>
bool grad_weight_vectors(const GatherShape& shape, const Tensor& grad_output, const Tensor& input,
                         const Tensor& result, cudaStream_t stream) {
  const int64_t bytes = depthwise_grad_weight_shared_bytes<T>(shape);
  if (bytes > most_shared_memory(input)) return false;
  const int64_t chunks = ceil_div<int64_t>(shape.groups, kChunkVectors * kDepthwiseVector<T>);
  const int64_t splits = grad_weight_splits(
      chunks, shape.batch * shape.rows.destinations * shape.columns.destinations, kWantedBlocks);
  const Tensor parts = scratch(input, splits * result.numel());
  launch({"_atrous_conv2d_backward_weight, depthwise", job_grid(chunks * splits), kPlaneThreads,
          stream, bytes},
         atrous_conv2d_depthwise_grad_weight_kernel<T>, reads<T>(grad_output), reads<T>(input),
         writes<Accumulate<T>>(parts), splits, shape, strides4(grad_output), strides4(input));
  sum_parts<T>(shape, splits, parts, result, stream);
  return true;
}

template <typename T, int kPlanes>
bool grad_weight_planes(const GatherShape& shape, const Tensor& grad_output, const Tensor& input,
                        const Tensor& result, cudaStream_t stream) {
  const int64_t bytes = planes_grad_weight_shared_bytes<T>(shape, kPlanes);
  if (bytes + kPlanesStaticBytes > most_shared_memory(input)) return false;
  const int64_t blocks = ceil_div<int64_t>(shape.groups, kPlanes);
  const int64_t splits = plane_splits(shape.batch, blocks, kWantedBlocks);
  const Tensor parts = scratch(input, splits * result.numel());
  launch({"_atrous_conv2d_backward_weight, depthwise planes", job_grid(blocks * splits),
          kPlaneThreads, stream, bytes},
         atrous_conv2d_depthwise_planes_grad_weight_kernel<T, kPlanes>, reads<T>(grad_output),
         reads<T>(input), writes<Accumulate<T>>(parts), splits, shape);
  sum_parts<T>(shape, splits, parts, result, stream);
  return true;
}

}  // namespace

bool gather_depthwise(const Tensor& source, const GatherCall& call) {
  if (!is_depthwise(call.shape) || !is_countable(call.shape)) return false;
  const LaunchContext context(source.get_device_index());
  bool served = false;
  dispatch_floating(source.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const auto run = [&](auto pass) { return pass(source, call, context.stream()); };
    switch (depthwise_layout(dense_map(source), dense_map(call.destination), kDepthwiseVector<T>)) {
      case DepthwiseLayout::kPlanes:
        served = run(gather_planes<T, kMostPlanes<T>>) || run(gather_planes<T, 1>);
        return;
      case DepthwiseLayout::kChannelsLast:
        served = run(gather_vectors<T>);
        return;
      case DepthwiseLayout::kOther:
        return;
    }
  });
  return served;
}

bool grad_weight_depthwise(const ConvGeometry& g, const Tensor& grad_output, const Tensor& input,
                           const Tensor& result) {
  const GatherShape shape = g.forward();
  if (!is_depthwise(shape) || !is_countable(shape)) return false;
  const LaunchContext context(input.get_device_index());
  bool served = false;
  dispatch_floating(input.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const auto run = [&](auto pass) {
      return pass(shape, grad_output, input, result, context.stream());
    };
    switch (depthwise_layout(dense_map(grad_output), dense_map(input), kDepthwiseVector<T>)) {
      case DepthwiseLayout::kPlanes:
        served = run(grad_weight_planes<T, kMostPlanes<T>>) || run(grad_weight_planes<T, 1>);
        return;
      case DepthwiseLayout::kChannelsLast:
        served = run(grad_weight_vectors<T>);
        return;
      case DepthwiseLayout::kOther:
        return;
    }
  });
  return served;
}

bool has_depthwise_kernel(const GatherShape& shape, const Tensor& like, bool channels_last,
                          bool of_weight) {
  if (!is_depthwise(shape) || !is_countable(shape)) return false;
  bool served = false;
  dispatch_floating(like.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    int64_t bytes = 0;
    if (!channels_last)
      bytes = of_weight ? planes_grad_weight_shared_bytes<T>(shape, 1) + kPlanesStaticBytes
                        : planes_shared_bytes<T>(shape, 1);
    else
      bytes = of_weight ? depthwise_grad_weight_shared_bytes<T>(shape)
                        : depthwise_shared_bytes<T>(shape);
    served = bytes <= most_shared_memory(like) &&
             (!channels_last || shape.groups % kDepthwiseVector<T> == 0);
  });
  return served;
}

}  // namespace atrousx
