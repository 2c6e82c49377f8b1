// Operands of host-executed tensor-core kernels, packed as the launchers pack them.
#pragma once

#include <optional>

#include "arrays.h"
#include "atrous_conv2d/tensorcore_pack.h"
#include "atrous_conv2d/tensorcore_product.cuh"

namespace emulator {

// numpy's float32 stands for TF32, float16 for itself, uint16 for bfloat16.
template <typename F>
py::array dispatch_tensorcore(const py::array& array, F&& f) {
  const std::string name = py::str(array.dtype().attr("name"));
  if (name == "float32") return f(float{});
  if (name == "float16") return f(atrousx::Half{});
  if (name == "uint16") return f(atrousx::BFloat16{});
  throw py::type_error("unexpected dtype " + name);
}

template <typename T, typename Strides>
struct Operand {
  const T* data;
  Strides strides;
  std::optional<Buffer<T>> packed;
};

template <typename T>
Operand<T, atrousx::Strides4> map_operand(T* data, const atrousx::MapSize& size,
                                          const atrousx::Strides4& given, unsigned int blocks) {
  const atrousx::Strides4 strides = atrousx::map_strides(size, given);
  if (atrousx::map_has_vectors(size, strides, data, atrousx::kVector<T>))
    return {data, strides, std::nullopt};
  const atrousx::Strides4 to = atrousx::packed_map_strides(size, atrousx::kVector<T>);
  Buffer<T> packed(static_cast<size_t>(size.batch * to.n));
  T* values = packed.data();
  if (atrousx::map_has_planes(size, strides))
    launch(blocks, atrousx::kPackThreads, 0, atrousx::atrous_conv2d_transpose_kernel<T>, data,
           values, atrousx::map_transpose(size, strides, atrousx::kVector<T>));
  else
    launch(blocks, atrousx::kPackThreads, 0, atrousx::atrous_conv2d_pack_kernel<T>, data, values,
           atrousx::map_pack(size, strides, atrousx::kVector<T>));
  return {values, to, std::move(packed)};
}

template <typename T>
Operand<T, atrousx::WeightStrides> weight_operand(Tensor4<T>& t, const atrousx::WeightSize& size,
                                                  const atrousx::WeightStrides& from,
                                                  unsigned int blocks) {
  const atrousx::WeightStrides strides = atrousx::weight_strides(size, from);
  if (atrousx::weight_has_vectors(size, strides, t.data(), atrousx::kVector<T>))
    return {t.data(), strides, std::nullopt};
  const atrousx::WeightStrides to = atrousx::packed_weight_strides(size, atrousx::kVector<T>);
  Buffer<T> packed(static_cast<size_t>(size.groups * to.group));
  T* values = packed.data();
  launch(blocks, atrousx::kPackThreads, 0, atrousx::atrous_conv2d_pack_kernel<T>, t.data(), values,
         atrousx::weight_pack(size, strides, atrousx::kVector<T>));
  return {values, to, std::move(packed)};
}

}  // namespace emulator
