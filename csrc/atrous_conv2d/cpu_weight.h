// The weight as a gathering pass multiplies it: [groups, blocks of kColumns outputs, slabs of kSlab
// elements, taps, elements of the slab, kColumns]. All taps of a slab of source channels lie
// together, since they are multiplied together.
#pragma once

#include "arguments.h"
#include "cpu_pack.h"
#include "cpu_product.h"

namespace atrousx {

constexpr int kSlab = 64;  // elements of a pixel or of a column: of one channel or, packed, of two

template <typename R>
struct PackedWeight {
  using A = typename R::A;
  static constexpr int64_t kChannels = kSlab * R::kPack;  // of a slab

  int64_t groups, outer, inner, kernel_h, kernel_w;

  explicit PackedWeight(const GatherShape& shape)
      : groups(shape.groups),
        outer(shape.outer),
        inner(shape.inner),
        kernel_h(shape.rows.taps),
        kernel_w(shape.columns.taps) {}

  int64_t taps() const { return kernel_h * kernel_w; }
  int64_t elements() const { return ceil_div<int64_t>(inner, R::kPack); }
  int64_t blocks() const { return ceil_div<int64_t>(outer, R::kColumns); }
  int64_t block_size() const { return taps() * elements() * R::kColumns; }
  int64_t size() const { return groups * blocks() * block_size(); }

  // to: size() of them. Any strides.
  template <typename T>
  void pack(const T* weight, const WeightStrides& strides, A* to) const {
    const int64_t slabs = ceil_div<int64_t>(inner, kChannels);
    for_each_task(groups * blocks() * slabs, [&](int64_t task, int64_t) {
      const int64_t slab = task % slabs, block = task / slabs % blocks();
      const int64_t group = task / slabs / blocks();
      pack_slab(
          weight + group * strides.group, strides, block * R::kColumns, slab * kChannels,
          to + (group * blocks() + block) * block_size() + slab * kSlab * taps() * R::kColumns);
    });
  }

  // Outputs from `column` on, source channels from `first` on: [taps, elements, kColumns].
  template <typename T>
  void pack_slab(const T* weight, const WeightStrides& strides, int64_t column, int64_t first,
                 A* panel) const {
    const int64_t depth = std::min<int64_t>(kChannels, inner - first);
    const int64_t columns = std::min<int64_t>(R::kColumns, outer - column);
    // In the order of memory, so that rows of the panel come from runs of the weight.
    const bool channel_fastest = strides.inner < strides.w;
    std::vector<int64_t> from(depth * taps()), to(depth * taps());
    for (int64_t tap = 0; tap < taps(); ++tap)
      for (int64_t d = 0; d < depth; ++d) {
        const int64_t i = channel_fastest ? tap * depth + d : d * taps() + tap;
        from[i] = d * strides.inner + tap / kernel_w * strides.h + tap % kernel_w * strides.w;
        to[i] = (tap * depth + d) * R::kColumns;
      }
    int64_t column_offsets[R::kColumns];
    for (int64_t c = 0; c < columns; ++c) column_offsets[c] = c * strides.outer;
    const T* source = weight + column * strides.outer + first * strides.inner;
    const PanelRows rows{from.data(), depth * taps(), to.data()};
    if constexpr (R::kPack == 1) {
      pack_panel<R::kColumns>(source, rows, column_offsets, columns, panel);
    } else {
      std::vector<A> wide(depth * taps() * R::kColumns);
      pack_panel<R::kColumns>(source, rows, column_offsets, columns, wide.data());
      for (int64_t tap = 0; tap < taps(); ++tap)
        for (int64_t d = 0; d < depth; d += 2, panel += R::kColumns) {
          const A* even = wide.data() + (tap * depth + d) * R::kColumns;
          run_best<PairRows>(even, d + 1 < depth ? even + R::kColumns : nullptr, R::kColumns,
                             panel);
        }
    }
  }
};

}  // namespace atrousx
