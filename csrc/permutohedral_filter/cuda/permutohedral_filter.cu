// CUDA launchers and registration of the permutohedral lattice.
#include "cuda/launch.h"
#include "permutohedral_filter/cuda/permutohedral_kernels.cuh"
#include "permutohedral_filter/lattice.h"

namespace atrousx {
namespace {

using torch::stable::contiguous;

std::tuple<Tensor, Tensor, Tensor> embed_cuda(const Tensor& features) {
  check_features(features);
  const Tensor source = contiguous(features);  // [N, D, P]
  const int64_t images = features.size(0), dims = features.size(1), points = features.size(2);
  const Tensor base = empty_like_of(features, {images, points, dims + 1}, ScalarType::Int);
  const Tensor rank = empty_like_of(features, {images, points, dims + 1}, ScalarType::Byte);
  const Tensor weights = empty_like_of(features, {images, points, dims + 1});
  if (base.numel() == 0) return {base, rank, weights};
  const LaunchContext context(features.get_device_index());
  dispatch_lattice_value(features.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    launch({"_permutohedral_embed", grid_for(images * points), kThreads, context.stream()},
           permutohedral_embed_kernel<T>, reads<T>(source), writes<int32_t>(base),
           writes<uint8_t>(rank), writes<T>(weights), images, points,
           EmbeddingPlan<T>::make(static_cast<int>(dims)));
  });
  return {base, rank, weights};
}

Tensor embed_backward_cuda(const Tensor& grad_weights, const Tensor& rank) {
  check_grad_weights(grad_weights, rank);
  const Tensor grad = contiguous(grad_weights), ranks = contiguous(rank);
  const int64_t images = grad.size(0), points = grad.size(1), dims = grad.size(2) - 1;
  const Tensor grad_features = empty_like_of(grad, {images, dims, points});
  if (grad_features.numel() == 0) return grad_features;
  const LaunchContext context(grad.get_device_index());
  dispatch_lattice_value(grad.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    launch({"_permutohedral_embed_backward", grid_for(images * points), kThreads, context.stream()},
           permutohedral_embed_backward_kernel<T>, reads<T>(grad), reads<uint8_t>(ranks),
           writes<T>(grad_features), images, points, Elevation<T>::make(static_cast<int>(dims)));
  });
  return grad_features;
}

Tensor pack_cuda(const Tensor& base, const Tensor& rank, std::vector<int64_t> words,
                 std::vector<int64_t> strides, std::vector<int64_t> minima) {
  check_corners(base, rank);
  const Tensor bases = contiguous(base), ranks = contiguous(rank);
  const int64_t corners = base.numel();
  const KeyLayout layout =
      make_key_layout(static_cast<int>(base.size(2)) - 1, words, strides, minima);
  const Tensor keys = empty_like_of(base, {layout.words, corners}, ScalarType::Long);
  if (corners == 0) return keys;
  const LaunchContext context(base.get_device_index());
  launch({"_permutohedral_pack", grid_for(corners), kThreads, context.stream()},
         permutohedral_pack_kernel, reads<int32_t>(bases), reads<uint8_t>(ranks),
         writes<int64_t>(keys), corners, base.size(1), layout);
  return keys;
}

Tensor neighbours_cuda(const Tensor& keys, const Tensor& steps) {
  check_keys(keys, steps);
  const Tensor source = contiguous(keys), offsets = contiguous(steps);
  const auto sorted = combine(
      [&](const int64_t* address) {
        return SortedKeys{address, keys.size(1), static_cast<int>(keys.size(0))};
      },
      reads<int64_t>(source));
  const int64_t axes = steps.size(0);
  const Tensor neighbours = empty_like_of(keys, {axes, 2, keys.size(1)}, ScalarType::Long);
  if (neighbours.numel() == 0) return neighbours;
  const LaunchContext context(keys.get_device_index());
  launch({"_permutohedral_neighbours", grid_for(neighbours.numel()), kThreads, context.stream()},
         permutohedral_neighbours_kernel, sorted, reads<int64_t>(offsets),
         writes<int64_t>(neighbours), axes);
  return neighbours;
}

// Splats, then blurs axis by axis, in reverse order if transposed. Returns [M, C].
template <typename T, typename Index>
Tensor lift(const Lattice& l, const Tensor& values, const std::optional<Tensor>& splat_scale,
            bool transpose, cudaStream_t stream) {
  const int64_t vertices = l.vertices(), channels = values.size(1);
  Tensor lattice = empty_like_of(values, {vertices, channels});
  Tensor blurred = empty_like_of(values, {vertices, channels});
  const unsigned int grid = grid_for(vertices * channels);
  launch({"the lattice's splat", grid, kThreads, stream}, permutohedral_splat_kernel<T, Index>,
         reads<T>(values), reads<Index>(l.starts), reads<Index>(l.entry_points),
         reads<T>(l.entry_weights), reads<T>(splat_scale), writes<T>(lattice), vertices, channels,
         l.points(), l.corners());
  for (int axis = 0; axis <= l.dims(); ++axis) {
    const int64_t line = transpose ? l.dims() - axis : axis;
    launch({"the lattice's blur", grid, kThreads, stream}, permutohedral_blur_kernel<T, Index>,
           reads<T>(lattice), reads<Index>(l.neighbours) + line * 2 * vertices, writes<T>(blurred),
           vertices, channels);
    std::swap(lattice, blurred);
  }
  return lattice;
}

Tensor apply_cuda(const Tensor& values, const Tensor& corner_weights, const Tensor& corner_vertices,
                  const Tensor& starts, const Tensor& entry_points, const Tensor& entry_weights,
                  const Tensor& neighbours, std::optional<Tensor> splat_scale,
                  std::optional<Tensor> slice_scale, bool transpose) {
  const Lattice l{corner_weights, corner_vertices, starts, entry_points, entry_weights, neighbours};
  check_lattice(l);
  check_values(l, values, splat_scale, slice_scale);
  const Tensor source = contiguous(values);
  const int64_t channels = values.size(1);
  const Tensor output = empty_like_of(values, {l.points(), channels});
  if (output.numel() == 0) return output;
  const LaunchContext context(values.get_device_index());
  dispatch_lattice(values.scalar_type(), l.index_type(), [&](auto zero, auto index) {
    using T = decltype(zero);
    using Index = decltype(index);
    const Tensor lattice = lift<T, Index>(l, source, splat_scale, transpose, context.stream());
    launch({"_permutohedral_apply", grid_for(output.numel()), kThreads, context.stream()},
           permutohedral_slice_kernel<T, Index>, reads<T>(lattice), reads<Index>(corner_vertices),
           reads<T>(corner_weights), reads<T>(slice_scale), writes<T>(output), l.points(), channels,
           l.vertices(), l.dims());
  });
  return output;
}

Tensor corner_product_cuda(const Tensor& rows, const Tensor& values, const Tensor& corner_weights,
                           const Tensor& corner_vertices, const Tensor& starts,
                           const Tensor& entry_points, const Tensor& entry_weights,
                           const Tensor& neighbours, bool transpose) {
  const Lattice l{corner_weights, corner_vertices, starts, entry_points, entry_weights, neighbours};
  check_lattice(l);
  check_rows(l, rows, values);
  const Tensor source = contiguous(values), left = contiguous(rows);
  const int64_t channels = values.size(1);
  const Tensor product = empty_like_of(values, {l.points(), l.dims() + 1});
  if (product.numel() == 0) return product;
  const LaunchContext context(values.get_device_index());
  dispatch_lattice(values.scalar_type(), l.index_type(), [&](auto zero, auto index) {
    using T = decltype(zero);
    using Index = decltype(index);
    const Tensor lattice = lift<T, Index>(l, source, std::nullopt, transpose, context.stream());
    launch({"_permutohedral_corner_product", grid_for(product.numel()), kThreads, context.stream()},
           permutohedral_corner_product_kernel<T, Index>, reads<T>(left), reads<T>(lattice),
           reads<Index>(corner_vertices), writes<T>(product), product.numel(), channels,
           l.vertices(), l.dims());
  });
  return product;
}

}  // namespace
}  // namespace atrousx

STABLE_TORCH_LIBRARY_IMPL(atrousx, ATROUSX_CUDA_KEY, m) {
  m.impl("_permutohedral_embed", ATROUSX_BOX(atrousx::embed_cuda));
  m.impl("_permutohedral_embed_backward", ATROUSX_BOX(atrousx::embed_backward_cuda));
  m.impl("_permutohedral_pack", ATROUSX_BOX(atrousx::pack_cuda));
  m.impl("_permutohedral_neighbours", ATROUSX_BOX(atrousx::neighbours_cuda));
  m.impl("_permutohedral_apply", ATROUSX_BOX(atrousx::apply_cuda));
  m.impl("_permutohedral_corner_product", ATROUSX_BOX(atrousx::corner_product_cuda));
}
