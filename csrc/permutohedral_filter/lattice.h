// Code with tensors that the CPU and CUDA files share: the lattice as tensors, the checks that keep
// a direct call of the operators within bounds, and the dispatch over value and index types.
#pragma once

#include <tuple>

#include "permutohedral_filter/plan.h"
#include "tensor.h"

namespace atrousx {

inline Tensor empty_like_of(const Tensor& like, const std::vector<int64_t>& size,
                            ScalarType dtype) {
  checked_numel(size);
  return torch::stable::empty({size.data(), size.size()}, dtype, std::nullopt, like.device());
}

inline Tensor empty_like_of(const Tensor& like, const std::vector<int64_t>& size) {
  return empty_like_of(like, size, like.scalar_type());
}

// Lattices are computed in float32 or float64; the Python side converts half types.
template <typename F>
void dispatch_lattice_value(ScalarType dtype, F&& f) {
  if (dtype == ScalarType::Float) return f(float{});
  if (dtype == ScalarType::Double) return f(double{});
  STD_TORCH_CHECK(false, "atrousx: a lattice must be float32 or float64");
}

template <typename F>
void dispatch_lattice(ScalarType value, ScalarType index, F&& f) {
  dispatch_lattice_value(value, [&](auto zero) {
    if (index == ScalarType::Int) return f(zero, int32_t{});
    STD_TORCH_CHECK(index == ScalarType::Long, "atrousx: lattice indices must be int32 or int64");
    return f(zero, int64_t{});
  });
}

inline void check_features(const Tensor& features) {
  STD_TORCH_CHECK(features.dim() == 3, "features must have 3 dimensions [N, D, P]");
  STD_TORCH_CHECK(features.size(1) >= 1 && features.size(1) <= kMaxFeatures,
                  "features must have 1 to ", kMaxFeatures, " per point");
}

inline void check_corners(const Tensor& base, const Tensor& rank) {
  STD_TORCH_CHECK(base.scalar_type() == ScalarType::Int && rank.scalar_type() == ScalarType::Byte,
                  "base must be int32 and rank uint8");
  STD_TORCH_CHECK(base.dim() == 3 && rank.dim() == 3 && base.size(0) == rank.size(0) &&
                      base.size(1) == rank.size(1) && base.size(2) == rank.size(2),
                  "base and rank must be [N, P, D + 1]");
  STD_TORCH_CHECK(base.size(2) >= 2 && base.size(2) <= kMaxFeatures + 1,
                  "base must have D + 1 coordinates");
}

inline void check_grad_weights(const Tensor& grad_weights, const Tensor& rank) {
  STD_TORCH_CHECK(grad_weights.dim() == 3 && grad_weights.numel() == rank.numel() &&
                      rank.scalar_type() == ScalarType::Byte && grad_weights.size(2) >= 2 &&
                      grad_weights.size(2) <= kMaxFeatures + 1,
                  "grad_weights and rank (uint8) must be [N, P, D + 1]");
}

// words, strides and minima: first the digit of the image, then one digit per feature.
inline KeyLayout make_key_layout(int dims, const std::vector<int64_t>& words,
                                 const std::vector<int64_t>& strides,
                                 const std::vector<int64_t>& minima) {
  const size_t digits = static_cast<size_t>(dims) + 1;
  STD_TORCH_CHECK(words.size() == digits && strides.size() == digits && minima.size() == digits,
                  "a key layout must have D + 1 digits");
  STD_TORCH_CHECK(words[0] == 0, "a key layout must begin with word 0");
  for (size_t i = 1; i < digits; ++i)
    STD_TORCH_CHECK(words[i] == words[i - 1] || words[i] == words[i - 1] + 1,
                    "the words of a key layout must follow each other");
  KeyLayout layout{};
  layout.dims = dims;
  layout.words = static_cast<int>(words.back()) + 1;
  layout.image_stride = strides[0];
  for (int i = 0; i < dims; ++i) {
    layout.word[i] = static_cast<int32_t>(words[i + 1]);
    layout.stride[i] = strides[i + 1];
    layout.minimum[i] = minima[i + 1];
  }
  return layout;
}

inline void check_keys(const Tensor& keys, const Tensor& steps) {
  STD_TORCH_CHECK(keys.scalar_type() == ScalarType::Long && steps.scalar_type() == ScalarType::Long,
                  "keys and steps must be int64");
  STD_TORCH_CHECK(keys.dim() == 2 && steps.dim() == 2 && steps.size(1) == keys.size(0),
                  "keys must be [words, M] and steps [D + 1, words]");
}

// The lattice as _permutohedral_build returns it; contiguous.
struct Lattice {
  Tensor corner_weights;   // [N P, D + 1] barycentric weights of the vertices around each point
  Tensor corner_vertices;  // [N P, D + 1] these vertices
  Tensor starts;           // [M + 1] where the entries of a vertex begin in the next two
  Tensor entry_points;     // [E] the points around each vertex, in increasing order
  Tensor entry_weights;    // [E] the weights of the vertex at these points
  Tensor neighbours;       // [D + 1, 2, M] the vertices a step ahead and behind, or -1

  int64_t points() const { return corner_vertices.size(0); }
  int64_t corners() const { return corner_vertices.numel(); }
  int64_t vertices() const { return neighbours.size(2); }
  int dims() const { return static_cast<int>(corner_vertices.size(1)) - 1; }
  ScalarType index_type() const { return corner_vertices.scalar_type(); }
};

inline void check_lattice_ranks(const Lattice& l) {
  STD_TORCH_CHECK(l.corner_vertices.dim() == 2 && l.corner_weights.dim() == 2 &&
                      l.neighbours.dim() == 3 && l.starts.dim() == 1 && l.entry_points.dim() == 1 &&
                      l.entry_weights.dim() == 1,
                  "the lattice's tensors have wrong ranks");
  STD_TORCH_CHECK(l.dims() >= 1 && l.dims() <= kMaxFeatures, "a lattice must have 1 to ",
                  kMaxFeatures, " dimensions");
}

// The tensors must have the right ranks.
inline void check_lattice_sizes(const Lattice& l) {
  const int64_t corners = l.corners();
  STD_TORCH_CHECK(l.corner_weights.size(0) == l.points() &&
                      l.corner_weights.size(1) == l.dims() + 1 &&
                      l.entry_points.numel() == corners && l.entry_weights.numel() == corners &&
                      l.neighbours.size(0) == l.dims() + 1 && l.neighbours.size(1) == 2 &&
                      l.starts.numel() == l.vertices() + 1 && (l.vertices() > 0 || corners == 0),
                  "the lattice's tensors have sizes that do not belong together");
}

inline void check_lattice_types(const Lattice& l) {
  for (const Tensor* t : {&l.starts, &l.entry_points, &l.neighbours})
    STD_TORCH_CHECK(t->scalar_type() == l.index_type(), "lattice indices must have one dtype");
  STD_TORCH_CHECK(
      l.index_type() != ScalarType::Int || std::max(l.corners(), l.vertices()) < (int64_t{1} << 31),
      "a lattice of so many corners must have int64 indices");
  STD_TORCH_CHECK(l.entry_weights.scalar_type() == l.corner_weights.scalar_type(),
                  "lattice weights must have one dtype");
}

// Checks shapes and types. The values of indices are checked by index_check.h on the CPU and by the
// kernels on CUDA.
inline void check_lattice(const Lattice& l) {
  check_lattice_ranks(l);
  check_lattice_sizes(l);
  check_lattice_types(l);
  for (const Tensor* t : {&l.corner_vertices, &l.corner_weights, &l.starts, &l.entry_points,
                          &l.entry_weights, &l.neighbours})
    STD_TORCH_CHECK(t->is_contiguous(), "the lattice's tensors must be contiguous");
}

inline void check_values(const Lattice& l, const Tensor& values, const std::optional<Tensor>& a,
                         const std::optional<Tensor>& b) {
  STD_TORCH_CHECK(values.dim() == 2 && values.size(0) == l.points(),
                  "values must have 2 dimensions [points of the lattice, C]");
  STD_TORCH_CHECK(values.scalar_type() == l.corner_weights.scalar_type(),
                  "values must have the dtype of the lattice's weights");
  for (const auto* scale : {&a, &b})
    if (scale->has_value())
      STD_TORCH_CHECK((*scale)->numel() == l.points() && (*scale)->is_contiguous() &&
                          (*scale)->scalar_type() == values.scalar_type(),
                      "a scale must be contiguous with one value per point");
}

inline void check_rows(const Lattice& l, const Tensor& rows, const Tensor& values) {
  check_values(l, values, std::nullopt, std::nullopt);
  check_values(l, rows, std::nullopt, std::nullopt);
  STD_TORCH_CHECK(rows.size(1) == values.size(1), "rows and values must have the same channels");
}

}  // namespace atrousx
