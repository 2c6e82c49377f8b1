// Filters transformed for minimal filtering (winograd.h), packed for the CPU's products.
#pragma once

#include "cpu_weight.h"
#include "cpu_winograd_transforms.h"

namespace atrousx {

// The points by which a pass over maps of a dtype should go (winograd.h), or none.
inline std::optional<WinogradPoints> winograd_points(const GatherShape& shape, ScalarType dtype,
                                                     bool frozen) {
  const bool half = dtype == ScalarType::BFloat16 || dtype == ScalarType::Half;
  if (!half && dtype != ScalarType::Float) return std::nullopt;
  const bool pairs = dtype == ScalarType::BFloat16 && cpu_has_bf16_pairs();
  return winograd_pays(shape, {half, pairs ? 0.5 : 1, frozen});
}

// The transformed filters as a gathering pass multiplies them: as PackedWeight, with points in the
// place of taps.
template <typename R>
struct WinogradWeight {
  using A = typename R::A;
  PackedWeight<R> filters;
  WinogradPoints points;
  bool mirror_rows, mirror_columns;

  WinogradWeight(const GatherShape& shape, WinogradPoints points_)
      : filters(shape),
        points(points_),
        mirror_rows(shape.rows.step < 0),
        mirror_columns(shape.columns.step < 0) {}

  int64_t count() const { return int64_t{points[0]} * points[1]; }
  int64_t blocks() const { return filters.blocks(); }
  int64_t block_size() const { return count() * filters.inner * R::kColumns; }
  int64_t size() const { return blocks() * block_size(); }

  // like: names dtype and device. Any strides. [points of rows, of columns, numbers].
  template <typename T>
  Tensor pack(const T* weight, const WeightStrides& strides, const Tensor& like) const {
    const std::array<int64_t, 3> sizes{points[0], points[1], size() / count()};
    const Tensor packed = torch::stable::empty({sizes.data(), sizes.size()}, ScalarType::Float,
                                               std::nullopt, like.device());
    A* to = static_cast<A*>(packed.mutable_data_ptr());
    prefer_huge_pages(to, size() * static_cast<int64_t>(sizeof(A)));
    const int64_t slabs = ceil_div<int64_t>(filters.inner, kSlab);
    for_each_task(blocks() * slabs, [&](int64_t task, int64_t) {
      const int64_t slab = task % slabs, block = task / slabs;
      const int64_t depth = std::min<int64_t>(kSlab, filters.inner - slab * kSlab);
      std::vector<A> taps(9 * depth * R::kColumns);
      filters.pack_slab(weight, strides, block * R::kColumns, slab * kSlab, taps.data());
      A* panel = to + block * block_size() + slab * kSlab * count() * R::kColumns;
      with_filter_points<!std::is_same_v<T, A>>(points[0], [&](auto rows) {
        with_filter_points<!std::is_same_v<T, A>>(points[1], [&](auto columns) {
          run_with_lanes<TransformFilters<rows, columns>::template Loop>(
              static_cast<const A*>(taps.data()), mirror_rows, mirror_columns, depth * R::kColumns,
              panel);
        });
      });
    });
    return packed;
  }
};

}  // namespace atrousx
