// What the tensor-core kernels read, as tensors. Operands that do not lie in whole vectors of
// channels - NCHW maps, odd numbers of channels, unaligned views, every weight but a channels_last
// one in the forward pass - are packed first: one pass over them, in a kernel of ours because
// PyTorch's contiguous() can neither pad channels nor transpose weights by group.
#pragma once

#include "../cuda_launch.h"
#include "../tensor.h"
#include "tensorcore_pack.h"
#include "tensorcore_product.cuh"

namespace atrousx {

template <typename F>
void dispatch_tensorcore(ScalarType dtype, F&& f) {
  if (dtype == ScalarType::Half) return f(Half{});
  if (dtype == ScalarType::BFloat16) return f(BFloat16{});
  return f(float{});
}

// A map or weight as the kernels read it; `packed` keeps a packed one alive until the launch, after
// which PyTorch's allocator orders its memory by the stream.
template <typename T, typename Strides>
struct VectorOperand {
  const T* data;
  Strides strides;
  std::optional<Tensor> packed;
};

inline Tensor uninitialised(int64_t count, const Tensor& like) {
  return torch::stable::empty({&count, 1}, like.scalar_type(), std::nullopt, like.device());
}

// A map where it lies.
template <typename T>
struct DenseOperand {
  const T* data;
  MapSize size;
  Strides4 strides;
};

template <typename T>
DenseOperand<T> dense_operand(const Tensor& t, int64_t groups) {
  const MapSize size{t.size(0), groups, t.size(1) / groups, t.size(2), t.size(3)};
  return {static_cast<const T*>(t.const_data_ptr()), size, map_strides(size, strides4(t))};
}

template <typename T>
void pack_map(const DenseOperand<T>& map, T* packed, cudaStream_t stream) {
  const MapSize& size = map.size;
  if (size.batch * size.groups * size.channels * size.height * size.width == 0) return;
  if (map_has_planes(size, map.strides)) {
    const TransposeShape shape = map_transpose(size, map.strides, kVector<T>);
    atrous_conv2d_transpose_kernel<T>
        <<<job_grid(transpose_jobs<T>(shape)), kPackThreads, 0, stream>>>(map.data, packed, shape);
  } else {
    const PackShape shape = map_pack(size, map.strides, kVector<T>);
    atrous_conv2d_pack_kernel<T>
        <<<job_grid(pack_jobs(shape)), kPackThreads, 0, stream>>>(map.data, packed, shape);
  }
  check_cuda(cudaGetLastError(), "atrous_conv2d, packing of a map");
}

template <typename T>
VectorOperand<T, Strides4> map_operand(const Tensor& t, int64_t groups, cudaStream_t stream) {
  const DenseOperand<T> map = dense_operand<T>(t, groups);
  if (map_has_vectors(map.size, map.strides, map.data, kVector<T>))
    return {map.data, map.strides, std::nullopt};
  const Strides4 to = packed_map_strides(map.size, kVector<T>);
  const Tensor packed = uninitialised(map.size.batch * to.n, t);
  T* values = static_cast<T*>(packed.mutable_data_ptr());
  pack_map(map, values, stream);
  return {values, to, packed};
}

inline WeightSize weight_size(const GatherShape& shape) {
  return {shape.groups, shape.outer, shape.inner, shape.rows.taps, shape.columns.taps};
}

template <typename T>
VectorOperand<T, WeightStrides> weight_operand(const Tensor& t, const WeightSize& size,
                                               const WeightStrides& from, cudaStream_t stream) {
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

}  // namespace atrousx
