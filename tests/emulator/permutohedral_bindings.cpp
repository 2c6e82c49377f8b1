// Host-executed kernels of the permutohedral lattice.
#include "arrays.h"
#include "permutohedral/permutohedral_kernels.cuh"

namespace {

namespace py = pybind11;
using emulator::Buffer;
using Shape = std::vector<py::ssize_t>;

constexpr unsigned int kBlock = 64;

// Lattices are float32 or float64.
template <typename F>
auto dispatch_value(const py::array& array, F&& f) {
  return array.itemsize() == 4 ? f(float{}) : f(double{});
}

template <typename F>
auto dispatch(const py::array& values, const py::array& indices, F&& f) {
  return dispatch_value(values, [&](auto zero) {
    return indices.itemsize() == 4 ? f(zero, int32_t{}) : f(zero, int64_t{});
  });
}

// An empty array stands for a scale that is not given.
template <typename T>
T* pointer_or_null(Buffer<T>& buffer) {
  return buffer.size() == 0 ? nullptr : buffer.data();
}

py::tuple embed(const py::array& features, unsigned int blocks) {  // [N, D, P]
  return dispatch_value(features, [&](auto zero) {
    using T = decltype(zero);
    const Shape shape{features.shape(0), features.shape(2), features.shape(1) + 1};
    const auto corners = static_cast<size_t>(shape[0] * shape[1] * shape[2]);
    Buffer<T> in(features), weights(corners);
    Buffer<int32_t> base(corners);
    Buffer<uint8_t> rank(corners);
    emulator::launch(blocks, kBlock, 0, atrousx::permutohedral_embed_kernel<T>, in.data(),
                     base.data(), rank.data(), weights.data(), shape[0], shape[1],
                     atrousx::EmbeddingPlan<T>::make(static_cast<int>(features.shape(1))));
    return py::make_tuple(base.to_array(shape, py::dtype::of<int32_t>()),
                          rank.to_array(shape, py::dtype::of<uint8_t>()),
                          weights.to_array(shape, features.dtype()));
  });
}

py::array embed_backward(const py::array& grad_weights, const py::array& rank,
                         unsigned int blocks) {  // [N, P, D + 1]
  return dispatch_value(grad_weights, [&](auto zero) {
    using T = decltype(zero);
    const py::ssize_t dims = grad_weights.shape(2) - 1;
    const Shape shape{grad_weights.shape(0), dims, grad_weights.shape(1)};
    Buffer<T> grad(grad_weights), out(static_cast<size_t>(shape[0] * shape[1] * shape[2]));
    Buffer<uint8_t> ranks(rank);
    emulator::launch(blocks, kBlock, 0, atrousx::permutohedral_embed_backward_kernel<T>,
                     grad.data(), ranks.data(), out.data(), shape[0], shape[2],
                     atrousx::Elevation<T>::make(static_cast<int>(dims)));
    return out.to_array(shape, grad_weights.dtype());
  });
}

// words, strides, minima: one for the image, then one per feature.
py::array pack(const py::array& base, const py::array& rank, const std::vector<int>& words,
               const std::vector<int64_t>& strides, const std::vector<int64_t>& minima,
               unsigned int blocks) {
  atrousx::KeyLayout layout{};
  layout.dims = static_cast<int>(base.shape(2)) - 1;
  layout.words = words.back() + 1;
  layout.image_stride = strides[0];
  for (int i = 0; i < layout.dims; ++i) {
    layout.word[i] = words[i + 1];
    layout.stride[i] = strides[i + 1];
    layout.minimum[i] = minima[i + 1];
  }
  Buffer<int32_t> bases(base);
  Buffer<uint8_t> ranks(rank);
  Buffer<int64_t> keys(bases.size() * layout.words);
  emulator::launch(blocks, kBlock, 0, atrousx::permutohedral_pack_kernel, bases.data(),
                   ranks.data(), keys.data(), static_cast<int64_t>(bases.size()), base.shape(1),
                   layout);
  return keys.to_array({layout.words, base.size()}, py::dtype::of<int64_t>());
}

py::array neighbours(const py::array& keys, const py::array& steps, unsigned int blocks) {
  const Shape shape{steps.shape(0), 2, keys.shape(1)};
  Buffer<int64_t> sorted(keys), offsets(steps), out(shape[0] * shape[1] * shape[2]);
  const atrousx::SortedKeys view{sorted.data(), keys.shape(1), static_cast<int>(keys.shape(0))};
  emulator::launch(blocks, kBlock, 0, atrousx::permutohedral_neighbours_kernel, view,
                   offsets.data(), out.data(), steps.shape(0));
  return out.to_array(shape, py::dtype::of<int64_t>());
}

py::array splat(const py::array& values, const py::array& starts, const py::array& points,
                const py::array& weights, const py::array& scale, unsigned int blocks) {
  return dispatch(values, starts, [&](auto zero, auto index) {
    using T = decltype(zero);
    using Index = decltype(index);
    const py::ssize_t vertices = starts.size() - 1, channels = values.shape(1);
    Buffer<T> in(values), w(weights), s(scale), out(vertices * channels);
    Buffer<Index> first(starts), at(points);
    emulator::launch(blocks, kBlock, 0, atrousx::permutohedral_splat_kernel<T, Index>, in.data(),
                     first.data(), at.data(), w.data(), pointer_or_null(s), out.data(), vertices,
                     channels, values.shape(0), points.size());
    return out.to_array({vertices, channels}, values.dtype());
  });
}

// neighbours: [2, M] of one axis
py::array blur(const py::array& lattice, const py::array& neighbours, unsigned int blocks) {
  return dispatch(lattice, neighbours, [&](auto zero, auto index) {
    using T = decltype(zero);
    using Index = decltype(index);
    Buffer<T> in(lattice), out(lattice.size());
    Buffer<Index> pair(neighbours);
    emulator::launch(blocks, kBlock, 0, atrousx::permutohedral_blur_kernel<T, Index>, in.data(),
                     pair.data(), out.data(), lattice.shape(0), lattice.shape(1));
    return out.to_array({lattice.shape(0), lattice.shape(1)}, lattice.dtype());
  });
}

py::array slice(const py::array& lattice, const py::array& vertices, const py::array& weights,
                const py::array& scale, unsigned int blocks) {
  return dispatch(lattice, vertices, [&](auto zero, auto index) {
    using T = decltype(zero);
    using Index = decltype(index);
    const py::ssize_t points = vertices.shape(0), channels = lattice.shape(1);
    Buffer<T> in(lattice), w(weights), s(scale), out(points * channels);
    Buffer<Index> at(vertices);
    emulator::launch(blocks, kBlock, 0, atrousx::permutohedral_slice_kernel<T, Index>, in.data(),
                     at.data(), w.data(), pointer_or_null(s), out.data(), points, channels,
                     lattice.shape(0), static_cast<int>(vertices.shape(1)) - 1);
    return out.to_array({points, channels}, lattice.dtype());
  });
}

py::array corner_product(const py::array& values, const py::array& lattice,
                         const py::array& vertices, unsigned int blocks) {
  return dispatch(values, vertices, [&](auto zero, auto index) {
    using T = decltype(zero);
    using Index = decltype(index);
    Buffer<T> in(values), grid(lattice), out(vertices.size());
    Buffer<Index> at(vertices);
    emulator::launch(blocks, kBlock, 0, atrousx::permutohedral_corner_product_kernel<T, Index>,
                     in.data(), grid.data(), at.data(), out.data(), vertices.size(),
                     values.shape(1), lattice.shape(0), static_cast<int>(vertices.shape(1)) - 1);
    return out.to_array({vertices.shape(0), vertices.shape(1)}, values.dtype());
  });
}

}  // namespace

void bind_permutohedral(py::module_& m) {
  m.def("permutohedral_embed", &embed);
  m.def("permutohedral_embed_backward", &embed_backward);
  m.def("permutohedral_pack", &pack);
  m.def("permutohedral_neighbours", &neighbours);
  m.def("permutohedral_splat", &splat);
  m.def("permutohedral_blur", &blur);
  m.def("permutohedral_slice", &slice);
  m.def("permutohedral_corner_product", &corner_product);
}
