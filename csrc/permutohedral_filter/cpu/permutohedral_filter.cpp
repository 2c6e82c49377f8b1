// CPU kernels, checks and registration of the permutohedral lattice.
//
// Values are rows of channels, one row per point or vertex. Inner loops run along a row, and a task
// is a range of rows. Each row is written by one task only, and summed in a fixed order.
#include "permutohedral_filter/cpu/index_check.h"
#include "permutohedral_filter/cpu/splat_blur_slice.h"

namespace atrousx {
namespace {

using torch::stable::contiguous;
using torch::stable::parallel_for;

std::tuple<Tensor, Tensor, Tensor> embed_cpu(const Tensor& features) {
  check_features(features);
  const Tensor source = contiguous(features);  // [N, D, P]
  const int64_t images = features.size(0), dims = features.size(1), points = features.size(2);
  const Tensor base = empty_like_of(features, {images, points, dims + 1}, ScalarType::Int);
  const Tensor rank = empty_like_of(features, {images, points, dims + 1}, ScalarType::Byte);
  const Tensor weights = empty_like_of(features, {images, points, dims + 1});
  dispatch_lattice_value(features.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const auto plan = EmbeddingPlan<T>::make(static_cast<int>(dims));
    // run_best must not be used here: wider instruction sets would fuse products, and vertices
    // would change.
    parallel_for(0, images * points, row_grain(dims * dims), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const T* point = data<T>(source) + i / points * dims * points + i % points;
        const int64_t row = i * (dims + 1);
        embed_point(plan, point, points, mutable_data<int32_t>(base) + row,
                    mutable_data<uint8_t>(rank) + row, mutable_data<T>(weights) + row);
      }
    });
  });
  return {base, rank, weights};
}

Tensor embed_backward_cpu(const Tensor& grad_weights, const Tensor& rank) {
  check_grad_weights(grad_weights, rank);
  check_ranks(rank, grad_weights.size(2) - 1);
  const Tensor grad = contiguous(grad_weights), ranks = contiguous(rank);
  const int64_t images = grad.size(0), points = grad.size(1), dims = grad.size(2) - 1;
  const Tensor grad_features = empty_like_of(grad, {images, dims, points});
  dispatch_lattice_value(grad.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const auto elevation = Elevation<T>::make(static_cast<int>(dims));
    parallel_for(0, images * points, row_grain(dims), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        T* point = mutable_data<T>(grad_features) + i / points * dims * points + i % points;
        embed_point_backward(elevation, data<uint8_t>(ranks) + i * (dims + 1),
                             data<T>(grad) + i * (dims + 1), point, points);
      }
    });
  });
  return grad_features;
}

// Packs word `w` of the keys of a point's D + 1 vertices. From one vertex to the next every
// coordinate grows by 1, except the one with the next rank, which falls by D.
void pack_point(const KeyLayout& layout, int w, int64_t image, const int32_t* base,
                const uint8_t* rank, int64_t* keys) {
  const int dims = layout.dims;
  uint64_t key = key_word(layout, w, image, base, rank, 0), all = 0;
  uint64_t down[kMaxFeatures + 1] = {};
  for (int i = 0; i < dims; ++i) {
    if (layout.word[i] != w) continue;
    const uint64_t stride = layout.stride[i];
    all += stride;
    down[rank[i]] += (dims + 1) * stride;
  }
  keys[0] = static_cast<int64_t>(key);
  for (int k = 1; k <= dims; ++k) {
    key += all - down[dims - k + 1];
    keys[k] = static_cast<int64_t>(key);
  }
}

Tensor pack_cpu(const Tensor& base, const Tensor& rank, std::vector<int64_t> words,
                std::vector<int64_t> strides, std::vector<int64_t> minima) {
  check_corners(base, rank);
  check_ranks(rank, base.size(2) - 1);
  const Tensor bases = contiguous(base), ranks = contiguous(rank);
  const int64_t points = base.size(1), width = base.size(2), corners = base.numel();
  const KeyLayout layout = make_key_layout(static_cast<int>(width) - 1, words, strides, minima);
  const Tensor keys = empty_like_of(base, {layout.words, corners}, ScalarType::Long);
  int64_t* out = mutable_data<int64_t>(keys);
  parallel_for(0, base.size(0) * points, row_grain(width), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      for (int w = 0; w < layout.words; ++w)
        pack_point(layout, w, i / points, data<int32_t>(bases) + i * width,
                   data<uint8_t>(ranks) + i * width, out + w * corners + i * width);
  });
  return keys;
}

Tensor neighbours_cpu(const Tensor& keys, const Tensor& steps) {
  check_keys(keys, steps);
  const Tensor source = contiguous(keys), offsets = contiguous(steps);
  const SortedKeys sorted{data<int64_t>(source), keys.size(1), static_cast<int>(keys.size(0))};
  const int64_t axes = steps.size(0);
  const std::vector<int64_t> no_step(sorted.words, 0);
  for (int64_t i = 1; i < sorted.count; ++i)
    STD_TORCH_CHECK(sorted.compare(i - 1, i, no_step.data(), 1) < 0, "keys must ascend");
  const Tensor neighbours = empty_like_of(keys, {axes, 2, sorted.count}, ScalarType::Long);
  for (int64_t line = 0; line < axes * 2; ++line) {
    const int64_t* step = data<int64_t>(offsets) + line / 2 * sorted.words;
    const int sign = line % 2 == 0 ? 1 : -1;
    int64_t* out = mutable_data<int64_t>(neighbours) + line * sorted.count;
    parallel_for(0, sorted.count, row_grain(1), [&](int64_t begin, int64_t end) {
      // Stepped keys are also sorted. So after one search both sequences are walked together.
      int64_t at = sorted.lower_bound(0, sorted.count, begin, step, sign);
      for (int64_t i = begin; i < end; ++i) {
        while (at < sorted.count && sorted.compare(at, i, step, sign) < 0) ++at;
        out[i] = at < sorted.count && sorted.compare(at, i, step, sign) == 0 ? at : -1;
      }
    });
  }
  return neighbours;
}

// The operands of a corner product.
template <typename T, typename Index>
struct CornerProduct {
  const T* values;  // [P, channels]
  int64_t channels;
  CornerRows<T, Index> rows;
  T* product;  // [P, D + 1]
};

// product[p, k] = <values[p], lattice[vertex k around p]>
struct CornerProductRows {
  template <typename T, typename Index>
  static ATROUSX_ALWAYS_INLINE void run(CornerProduct<T, Index> given, int64_t begin, int64_t end) {
    const auto& [values, channels, rows, product] = given;
    const auto& [lattice, stride, vertices, dims] = rows;
    const T scale = slice_scale<T>(dims);
    for (int64_t i = begin * (dims + 1); i < end * (dims + 1); ++i) {
      const T* value = values + i / (dims + 1) * channels;
      const T* vertex = lattice + vertices[i] * stride;
      T sum = T(0);
      for (int64_t c = 0; c < channels; ++c) sum += value[c] * vertex[c];
      product[i] = scale * sum;
    }
  }
};

// Returns Blur(Splat(values)) as [M, padded channels].
template <typename T, typename Index>
Tensor lifted(const Lattice& l, const Tensor& values, const T* splat_scale, bool transpose) {
  const int64_t channels = values.size(1), vectors = row_vectors<T>(channels);
  const Tensor lattice =
      empty_large(values, {l.vertices(), vectors * RowVector<T>::kLanes}, values.scalar_type());
  lift<T, Index>(l, Chains<Index>::make(l),
                 {data<T>(values), channels, vectors, data<T>(l.entry_weights), splat_scale,
                  transpose, mutable_data<T>(lattice)});
  return lattice;
}

Tensor apply_cpu(const Tensor& values, const Tensor& corner_weights, const Tensor& corner_vertices,
                 const Tensor& starts, const Tensor& entry_points, const Tensor& entry_weights,
                 const Tensor& neighbours, std::optional<Tensor> splat_scale,
                 std::optional<Tensor> slice_scale, bool transpose) {
  const Lattice l{corner_weights, corner_vertices, starts, entry_points, entry_weights, neighbours};
  check_lattice(l);
  check_indices(l);
  check_values(l, values, splat_scale, slice_scale);
  const Tensor source = contiguous(values);
  const int64_t channels = values.size(1);
  const Tensor output = empty_large(values, {l.points(), channels}, values.scalar_type());
  if (output.numel() == 0) return output;
  dispatch_lattice(values.scalar_type(), l.index_type(), [&](auto zero, auto index) {
    using T = decltype(zero);
    using Index = decltype(index);
    const Tensor lattice = lifted<T, Index>(l, source, data<T>(splat_scale), transpose);
    const Slice<T, Index> slice{data<T>(lattice),
                                data<Index>(corner_vertices),
                                data<T>(corner_weights),
                                data<T>(slice_scale),
                                mutable_data<T>(output),
                                channels,
                                l.dims()};
    parallel_for(0, l.points(), row_grain(channels), [&](int64_t begin, int64_t end) {
      run_best<SliceRows>(slice, row_vectors<T>(channels), begin, end);
    });
  });
  return output;
}

Tensor corner_product_cpu(const Tensor& rows, const Tensor& values, const Tensor& corner_weights,
                          const Tensor& corner_vertices, const Tensor& starts,
                          const Tensor& entry_points, const Tensor& entry_weights,
                          const Tensor& neighbours, bool transpose) {
  const Lattice l{corner_weights, corner_vertices, starts, entry_points, entry_weights, neighbours};
  check_lattice(l);
  check_indices(l);
  check_rows(l, rows, values);
  const Tensor source = contiguous(values), left = contiguous(rows);
  const int64_t channels = values.size(1);
  const Tensor product = empty_like_of(values, {l.points(), l.dims() + 1});
  if (product.numel() == 0) return product;
  dispatch_lattice(values.scalar_type(), l.index_type(), [&](auto zero, auto index) {
    using T = decltype(zero);
    using Index = decltype(index);
    const T* no_scale = nullptr;
    const Tensor lattice = lifted<T, Index>(l, source, no_scale, transpose);
    const CornerProduct<T, Index> given{
        data<T>(left),
        channels,
        {data<T>(lattice), lattice.size(1), data<Index>(corner_vertices), l.dims()},
        mutable_data<T>(product)};
    parallel_for(0, l.points(), row_grain(channels), [&](int64_t begin, int64_t end) {
      run_best<CornerProductRows>(given, begin, end);
    });
  });
  return product;
}

}  // namespace
}  // namespace atrousx

STABLE_TORCH_LIBRARY_IMPL(atrousx, CPU, m) {
  m.impl("_permutohedral_embed", ATROUSX_BOX(atrousx::embed_cpu));
  m.impl("_permutohedral_embed_backward", ATROUSX_BOX(atrousx::embed_backward_cpu));
  m.impl("_permutohedral_pack", ATROUSX_BOX(atrousx::pack_cpu));
  m.impl("_permutohedral_neighbours", ATROUSX_BOX(atrousx::neighbours_cpu));
  m.impl("_permutohedral_apply", ATROUSX_BOX(atrousx::apply_cpu));
  m.impl("_permutohedral_corner_product", ATROUSX_BOX(atrousx::corner_product_cpu));
}
