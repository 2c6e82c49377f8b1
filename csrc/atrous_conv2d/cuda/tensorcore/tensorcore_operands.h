// The operands of the tensor-core kernels, as tensors. An operand without whole vectors of channels
// is packed first: NCHW maps, odd numbers of channels, unaligned views, and every weight except a
// channels_last one in the forward pass. Packing is one pass by our own kernel, because PyTorch's
// contiguous() can neither pad channels nor transpose weights by group.
#pragma once

#include "atrous_conv2d/cuda/held_epilogue.h"
#include "atrous_conv2d/cuda/tensorcore/tensorcore_pack.h"
#include "atrous_conv2d/cuda/tensorcore/tensorcore_product.cuh"
#include "cuda/launch.h"

namespace atrousx {

template <typename F>
void dispatch_tensorcore(ScalarType dtype, F&& f) {
  if (dtype == ScalarType::Half) return f(Half{});
  if (dtype == ScalarType::BFloat16) return f(BFloat16{});
  return f(float{});
}

// A map or weight that the kernels can read: in place, or packed.
template <typename T, typename Strides>
struct VectorOperand {
  Held<const T*> memory;
  Strides strides;
};

inline Tensor uninitialised(int64_t count, const Tensor& like) {
  return torch::stable::empty({&count, 1}, like.scalar_type(), std::nullopt, like.device());
}

// A map in place.
template <typename T>
struct DenseOperand {
  Held<const T*> memory;
  MapSize size;
  Strides4 strides;
};

template <typename T>
DenseOperand<T> dense_operand(const Tensor& t, int64_t groups) {
  const MapSize size{t.size(0), groups, t.size(1) / groups, t.size(2), t.size(3)};
  return {reads<T>(t), size, map_strides(size, strides4(t))};
}

template <typename T>
void pack_map(const DenseOperand<T>& map, const Tensor& packed, cudaStream_t stream) {
  const MapSize& size = map.size;
  if (size.batch * size.groups * size.channels * size.height * size.width == 0) return;
  if (map_has_planes(size, map.strides)) {
    const TransposeShape shape = map_transpose(size, map.strides, kVector<T>);
    launch({"atrous_conv2d, transpose of a map", job_grid(transpose_jobs<T>(shape)), kPackThreads,
            stream},
           atrous_conv2d_transpose_kernel<T>, map.memory, writes<T>(packed), shape);
  } else {
    const PackShape shape = map_pack(size, map.strides, kVector<T>);
    launch({"atrous_conv2d, packing of a map", job_grid(pack_jobs(shape)), kPackThreads, stream},
           atrous_conv2d_pack_kernel<T>, map.memory, writes<T>(packed), shape);
  }
}

template <typename T>
VectorOperand<T, Strides4> map_operand(const Tensor& t, int64_t groups, cudaStream_t stream) {
  const DenseOperand<T> map = dense_operand<T>(t, groups);
  if (map_has_vectors(map.size, map.strides, map.memory.value(), kVector<T>))
    return {map.memory, map.strides};
  const Strides4 to = packed_map_strides(map.size, kVector<T>);
  const Tensor packed = uninitialised(map.size.batch * to.n, t);
  pack_map(map, packed, stream);
  return {reads<T>(packed), to};
}

inline WeightSize weight_size(const GatherShape& shape) {
  return {shape.groups, shape.outer, shape.inner, shape.rows.taps, shape.columns.taps};
}

template <typename T>
VectorOperand<T, WeightStrides> weight_operand(const Tensor& t, const WeightSize& size,
                                               const WeightStrides& from, cudaStream_t stream) {
  const WeightStrides strides = weight_strides(size, from);
  const Held<const T*> memory = reads<T>(t);
  if (weight_has_vectors(size, strides, memory.value(), kVector<T>)) return {memory, strides};
  const WeightStrides to = packed_weight_strides(size, kVector<T>);
  const Tensor packed = uninitialised(size.groups * to.group, t);
  const PackShape copy = weight_pack(size, strides, kVector<T>);
  if (packed.numel() > 0)
    launch({"atrous_conv2d, packing of a weight", job_grid(pack_jobs(copy)), kPackThreads, stream},
           atrous_conv2d_pack_kernel<T>, memory, writes<T>(packed), copy);
  return {reads<T>(packed), to};
}

}  // namespace atrousx
