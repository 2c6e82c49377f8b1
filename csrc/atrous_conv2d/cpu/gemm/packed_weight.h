// The packed weight of a gathering pass: [groups, blocks of kColumns outputs, slabs of kSlab
// elements, taps, elements of the slab, kColumns]. All taps of a slab of source channels lie
// together, because they are multiplied together.
#pragma once

#include <memory>
#include <optional>

#include "atrous_conv2d/arguments.h"
#include "atrous_conv2d/cpu/gemm/microkernel.h"
#include "atrous_conv2d/cpu/gemm/pack.h"

namespace atrousx {

template <typename R>
struct PackedWeight {
  using A = typename R::A;
  static constexpr int64_t kChannels = kSlab * R::kPack;  // source channels of a slab

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

  // Packs a weight of any strides. `to` has room for size() elements.
  template <typename T>
  void pack(const T* weight, const WeightStrides& strides, A* to) const {
    const int64_t slabs = ceil_div<int64_t>(inner, kChannels);
    for_each_task(groups * blocks() * slabs, [&](int64_t task, int64_t) {
      const int64_t slab = task % slabs, block = task / slabs % blocks();
      const int64_t group = task / slabs / blocks();
      pack_slab(
          weight + group * strides.group, strides, block * R::kColumns, slab * kChannels, kChannels,
          to + (group * blocks() + block) * block_size() + slab * kSlab * taps() * R::kColumns);
    });
  }

  // Packs up to kColumns outputs from `column` on and up to `channels` source channels from `first`
  // on. `panel` is [taps, elements, kColumns].
  template <typename T>
  void pack_slab(const T* weight, const WeightStrides& strides, int64_t column, int64_t first,
                 int64_t channels, A* panel) const {
    const int64_t depth = std::min<int64_t>(channels, inner - first);
    const int64_t columns = std::min<int64_t>(R::kColumns, outer - column);
    const T* source = weight + column * strides.outer + first * strides.inner;
    if constexpr (R::kPack == 1) {
      pack_elements(source, strides, columns, {0, depth, depth}, panel);
    } else {
      const int64_t pairs = depth / 2, elements = ceil_div<int64_t>(depth, 2);
      WeightStrides steps = strides;
      if (strides.inner == 1 && (strides.outer | strides.h | strides.w) % 2 == 0) {
        for (int64_t* step : {&steps.outer, &steps.h, &steps.w}) *step /= 2;
        pack_elements(PairsTogether{source}, steps, columns, {0, pairs, elements}, panel);
      } else {
        steps.inner *= 2;
        pack_elements(PairsApart{source, strides.inner}, steps, columns, {0, pairs, elements},
                      panel);
      }
      if (pairs < elements)
        pack_elements(PairsApart{source + (depth - 1) * strides.inner, 0, false}, strides, columns,
                      {pairs, 1, elements}, panel);
    }
  }

 private:
  // Elements [first, first + count) of a slab that has `all` elements.
  struct Elements {
    int64_t first, count, all;
  };

  template <typename Source>
  void pack_elements(Source source, const WeightStrides& strides, int64_t columns,
                     const Elements& elements, A* panel) const {
    // The rows follow the order of the weight in memory. So neighbouring rows can be read as runs.
    const bool channel_fastest = strides.inner < strides.w;
    const int64_t rows = elements.count * taps();
    std::vector<int64_t> from(rows), to(rows);
    for (int64_t tap = 0; tap < taps(); ++tap)
      for (int64_t e = 0; e < elements.count; ++e) {
        const int64_t i = channel_fastest ? tap * elements.count + e : e * taps() + tap;
        from[i] = e * strides.inner + tap / kernel_w * strides.h + tap % kernel_w * strides.w;
        to[i] = (tap * elements.all + elements.first + e) * R::kColumns;
      }
    int64_t column_offsets[R::kColumns];
    for (int64_t c = 0; c < columns; ++c) column_offsets[c] = c * strides.outer;
    pack_panel<R::kColumns>(source, PanelRows{from.data(), rows, to.data()}, column_offsets,
                            columns, panel);
  }
};

constexpr int64_t kPackingColumns = 64;  // most channels of a task that packs its own weights

// Where a product finds the weights of some source elements. If the task packed them itself, `data`
// begins with element `first_packed`. Otherwise `data` is the whole packed weight.
template <typename A>
struct WeightChunk {
  const A* data;       // the first block
  int64_t block_size;  // distance from one block to the next
  std::optional<int64_t> first_packed = std::nullopt;
};

// The weight of a pass. It is packed as a whole before the pass, or chunk by chunk in the task that
// multiplies it. The second way keeps a large weight from going to memory and back.
template <typename T, typename R>
class GatherWeight {
  using A = typename R::A;

 public:
  GatherWeight(const GatherShape& shape, const T* weight, const WeightStrides& strides,
               std::shared_ptr<const A> packed)
      : form_(shape), weight_(weight), strides_(strides), packed_(std::move(packed)) {}

  const PackedWeight<R>& form() const { return form_; }
  bool packs_chunks() const { return packed_ == nullptr; }
  // Returns the elements of memory that a task needs for a chunk.
  int64_t chunk_size(int64_t elements, int64_t blocks) const {
    return packs_chunks() ? blocks * elements * form_.taps() * R::kColumns : 0;
  }

  // Returns the weights of source elements [first, end) for `blocks` blocks of outputs of a group.
  // `memory` has room for chunk_size(end - first, blocks) elements.
  WeightChunk<A> chunk(int64_t group, int64_t first_block, int64_t blocks, int64_t first,
                       int64_t end, A* memory) const {
    if (!packs_chunks())
      return {packed_.get() + (group * form_.blocks() + first_block) * form_.block_size(),
              form_.block_size()};
    const int64_t row = form_.taps() * R::kColumns, block_size = (end - first) * row;
    for (int64_t b = 0; b < blocks; ++b)
      for (int64_t at = first; at < end;) {
        const int64_t depth = std::min(kSlab - at % kSlab, end - at);
        form_.pack_slab(weight_ + group * strides_.group, strides_, (first_block + b) * R::kColumns,
                        at * R::kPack, depth * R::kPack,
                        memory + b * block_size + (at - first) * row);
        at += depth;
      }
    return {memory, block_size, first};
  }

 private:
  const PackedWeight<R> form_;
  const T* const weight_;
  const WeightStrides strides_;
  const std::shared_ptr<const A> packed_;
};

}  // namespace atrousx
