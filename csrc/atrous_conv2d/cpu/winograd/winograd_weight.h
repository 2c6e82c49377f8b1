// Filters transformed for minimal filtering (winograd_plan.h), packed for matrix products on the
// CPU.
#pragma once

#include "atrous_conv2d/cpu/gemm/packed_weight.h"
#include "atrous_conv2d/cpu/winograd/operand_check.h"
#include "atrous_conv2d/cpu/winograd/tile_transforms.h"

namespace atrousx {

// The forms that a pass over maps of a dtype should use (winograd_plan.h), or none.
inline std::optional<WinogradPoints> winograd_points(const GatherShape& shape, ScalarType dtype,
                                                     bool frozen) {
  const bool half = dtype == ScalarType::BFloat16 || dtype == ScalarType::Half;
  if ((!half && dtype != ScalarType::Float) || !winograd_allowed()) return std::nullopt;
  const bool pairs = dtype == ScalarType::BFloat16 && cpu_has_bf16_pairs();
  return winograd_pays(shape, {half, pairs ? 0.5 : 1, frozen});
}

// The transformed filters in the layout that a gathering pass multiplies. It is that of
// PackedWeight, with points in place of taps.
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

  int64_t count() const { return winograd_filters(points); }
  int64_t blocks() const { return filters.blocks(); }
  int64_t block_size() const { return count() * filters.inner * R::kColumns; }
  int64_t size() const {  // rounded up to a multiple of the product of the forms' numbers
    const int64_t numbers = form_number(points[0]) * form_number(points[1]);
    return ceil_div(blocks() * block_size(), numbers) * numbers;
  }

  // to: [points of rows, points of columns, numbers], size() elements. The weight may have any
  // strides.
  template <typename T>
  void pack(const T* weight, const WeightStrides& strides, A* to) const {
    pack_each(weight, strides, to, [](int64_t, const A*, int64_t) {});
  }

  // Packs, and returns whether the filters may be transformed. The check reads them while they are
  // packed.
  template <typename T>
  bool pack_suited(const T* weight, const WeightStrides& strides, A* to) const {
    std::vector<TapMagnitudes> parts(blocks() * ceil_div<int64_t>(filters.inner, kSlab));
    pack_each(weight, strides, to, [&](int64_t task, const A* taps, int64_t count) {
      parts[task] = measure_packed_taps(taps, count);
    });
    TapMagnitudes all;
    for (const TapMagnitudes& part : parts)
      for (size_t t = 0; t < all.size(); ++t) all[t].add(part[t]);
    return winograd_suits_taps(all, filters.inner * filters.outer, !std::is_same_v<T, A>);
  }

 private:
  // look(task, taps, count) sees the taps of a task, [9, count], before they are transformed.
  template <typename T, typename F>
  void pack_each(const T* weight, const WeightStrides& strides, A* to, const F& look) const {
    const int64_t slabs = ceil_div<int64_t>(filters.inner, kSlab);
    for_each_task(blocks() * slabs, [&](int64_t task, int64_t) {
      const int64_t slab = task % slabs, block = task / slabs;
      const int64_t depth = std::min<int64_t>(kSlab, filters.inner - slab * kSlab);
      std::vector<A> taps(9 * depth * R::kColumns);
      filters.pack_slab(weight, strides, block * R::kColumns, slab * kSlab, kSlab, taps.data());
      look(task, taps.data(), depth * R::kColumns);
      A* panel = to + block * block_size() + slab * kSlab * count() * R::kColumns;
      with_forms<!std::is_same_v<T, A>>(points, [&](auto rows, auto columns) {
        run_with_lanes<TransformFilters<rows.value, columns.value>::template Loop>(
            static_cast<const A*>(taps.data()), mirror_rows, mirror_columns, depth * R::kColumns,
            panel);
      });
    });
  }
};

}  // namespace atrousx
