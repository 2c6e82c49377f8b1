// Forward and grad-input on the CPU: tiles of the tap plan as indirect matrix products.
//
// One task owns one tile's pixels and a few blocks of destination channels. For each stretch of
// depth (live taps x source channels) it packs the tile's source once and multiplies it with every
// block of the weight, which was packed beforehand and is shared by all tasks.
#pragma once

#include "../tensor.h"
#include "cpu_product.h"
#include "plan.h"

namespace atrousx {

template <typename T, typename R>
class CpuGather {
  using A = Accumulate<T>;
  static constexpr int64_t kDepth = 256;      // rows of a panel
  static constexpr int64_t kSubtiles = 4;     // register tiles of pixels in a tile
  static constexpr int64_t kTaskBlocks = 16;  // register tiles of channels in a task, at most
  static constexpr int64_t kPixels = kSubtiles * R::kLanes;
  static constexpr int64_t kPackedStretch = 64;  // source channels packed at a time

 public:
  CpuGather(const GatherShape& shape, const T* source, const Strides4& source_strides,
            const Epilogue<T>& epilogue, T* destination, const Strides4& destination_strides)
      : shape_(shape),
        source_(source),
        source_strides_(source_strides),
        epilogue_(epilogue),
        destination_(destination),
        destination_strides_(destination_strides),
        blocks_(ceil_div<int64_t>(shape.outer, R::kColumns)),
        taps_(shape.rows.taps * shape.columns.taps) {}

  // weight: any strides; like: names dtype and device of the scratch.
  void run(const T* weight, const WeightStrides& weight_strides, const Tensor& like) {
    const Tensor packed = scratch(like, shape_.groups * blocks_ * block_size());
    A* packed_data = static_cast<A*>(packed.mutable_data_ptr());
    pack_weight(weight, weight_strides, packed_data);
    for (const TapPlan& plan : tap_plans(shape_.rows, shape_.columns, shape_.batch, kPixels))
      run_plan(plan, packed_data, like);
  }

 private:
  // One block of packed weight: [taps, inner, kColumns].
  int64_t block_size() const { return taps_ * shape_.inner * R::kColumns; }

  void pack_weight(const T* weight, const WeightStrides& strides,
                   A* packed) {  // [groups, blocks, taps, inner, kColumns]
    const int64_t stretches = ceil_div(shape_.inner, kPackedStretch);
    for_each_task(shape_.groups * blocks_ * stretches, [&](int64_t task, int64_t) {
      const int64_t stretch = task % stretches, block = task / stretches % blocks_;
      const int64_t group = task / stretches / blocks_;
      const int64_t first = stretch * kPackedStretch;
      const int64_t depth = std::min(kPackedStretch, shape_.inner - first);
      const int64_t outer = block * R::kColumns;
      const int64_t columns = std::min<int64_t>(R::kColumns, shape_.outer - outer);
      int64_t depth_offsets[kPackedStretch], column_offsets[R::kColumns];
      for (int64_t d = 0; d < depth; ++d) depth_offsets[d] = d * strides.inner;
      for (int64_t c = 0; c < columns; ++c) column_offsets[c] = c * strides.outer;
      const T* base =
          weight + group * strides.group + outer * strides.outer + first * strides.inner;
      A* panel = packed + (group * blocks_ + block) * block_size() + first * R::kColumns;
      for (int64_t tap = 0; tap < taps_; ++tap) {
        const T* from =
            base + tap / shape_.columns.taps * strides.h + tap % shape_.columns.taps * strides.w;
        run_best<PackPanel<R::kColumns>>(from, static_cast<const int64_t*>(depth_offsets), depth,
                                         static_cast<const int64_t*>(column_offsets), columns,
                                         panel + tap * shape_.inner * R::kColumns);
      }
    });
  }

  void run_plan(const TapPlan& plan, const A* packed, const Tensor& like) {
    // Few tiles are divided by channels too, so that every thread has work.
    const int64_t tiles = plan.tiles() * shape_.groups;
    const int64_t wanted = 4 * static_cast<int64_t>(torch::stable::get_num_threads());
    const int64_t parts = std::min(blocks_, ceil_div(wanted, tiles));
    const int64_t task_blocks = std::min(kTaskBlocks, ceil_div(blocks_, parts));
    const int64_t chunks = ceil_div(blocks_, task_blocks);
    const int64_t per_worker = kDepth * kPixels + task_blocks * kSubtiles * R::kSums;
    const int64_t tasks = tiles * chunks;
    const Tensor buffer = scratch(like, cpu_workers(tasks) * per_worker);
    A* buffers = static_cast<A*>(buffer.mutable_data_ptr());
    for_each_task(tasks, [&](int64_t task, int64_t worker) {
      const int64_t group = task / chunks % shape_.groups, block = task % chunks * task_blocks;
      run_task(plan.tile(task / chunks / shape_.groups, shape_.batch), group, block,
               std::min(task_blocks, blocks_ - block), packed, buffers + worker * per_worker);
    });
  }

  void run_task(const Tile& tile, int64_t group, int64_t first_block, int64_t blocks,
                const A* packed, A* panels) {
    int64_t source_offsets[kPixels], destination_offsets[kPixels], residual_offsets[kPixels];
    for (int64_t i = 0; i < tile.pixels; ++i) {
      const Tile::Pixel p = tile.pixel(i);
      source_offsets[i] = tile.source_offset(p, source_strides_);
      destination_offsets[i] = tile.destination_offset(p, destination_strides_);
      residual_offsets[i] = tile.destination_offset(p, epilogue_.residual_strides);
    }
    const int64_t subtiles = ceil_div<int64_t>(tile.pixels, R::kLanes);
    A* sums = panels + kDepth * kPixels;  // [blocks, subtiles, kLanes, kColumns]
    std::fill(sums, sums + blocks * subtiles * R::kSums, A(0));
    const A* weight = packed + (group * blocks_ + first_block) * block_size();
    const T* source = source_ + group * shape_.inner * source_strides_.c;
    const int64_t total = tile.live_taps() * shape_.inner;
    for (int64_t start = 0; start < total; start += kDepth) {
      const int64_t depth = std::min(kDepth, total - start);
      int64_t depth_offsets[kDepth];
      Segment segments[kDepth];
      const int64_t count = lay_out(tile, start, depth, depth_offsets, segments);
      for (int64_t s = 0; s < subtiles; ++s)
        run_best<PackPanel<R::kLanes>>(source, static_cast<const int64_t*>(depth_offsets), depth,
                                       static_cast<const int64_t*>(source_offsets + s * R::kLanes),
                                       std::min<int64_t>(R::kLanes, tile.pixels - s * R::kLanes),
                                       panels + s * kDepth * R::kLanes);
      for (int64_t b = 0; b < blocks; ++b)
        for (int64_t s = 0; s < subtiles; ++s)
          run_best<MultiplyPanels<R>>(
              static_cast<const A*>(panels + s * kDepth * R::kLanes), weight + b * block_size(),
              static_cast<const Segment*>(segments), count, sums + (b * subtiles + s) * R::kSums);
    }
    store(sums, group, first_block, blocks, subtiles, tile.pixels, destination_offsets,
          residual_offsets);
  }

  // Rows [start, start + depth) of (live taps x inner): where the source lies relative to a pixel,
  // and which stretches of the packed weight meet them. Returns the number of stretches.
  int64_t lay_out(const Tile& tile, int64_t start, int64_t depth, int64_t* depth_offsets,
                  Segment* segments) const {
    int64_t count = 0;
    for (int64_t d = 0; d < depth;) {
      const int64_t live = (start + d) / shape_.inner, channel = (start + d) % shape_.inner;
      const int64_t i = live / tile.columns.taps.count, j = live % tile.columns.taps.count;
      const int64_t tap = tile.rows.taps.at(i) * shape_.columns.taps + tile.columns.taps.at(j);
      const int64_t length = std::min(shape_.inner - channel, depth - d);
      segments[count++] = {(tap * shape_.inner + channel) * R::kColumns, length};
      const int64_t offset = tile.tap_offset(i, j, source_strides_) + channel * source_strides_.c;
      for (int64_t e = 0; e < length; ++e) depth_offsets[d + e] = offset + e * source_strides_.c;
      d += length;
    }
    return count;
  }

  void store(const A* sums, int64_t group, int64_t first_block, int64_t blocks, int64_t subtiles,
             int64_t pixels, const int64_t* destination_offsets,
             const int64_t* residual_offsets) const {
    const int64_t stride = destination_strides_.c, residual = epilogue_.residual_strides.c;
    for (int64_t b = 0; b < blocks; ++b) {
      const int64_t outer = (first_block + b) * R::kColumns;
      const int64_t columns = std::min<int64_t>(R::kColumns, shape_.outer - outer);
      const int64_t channel = group * shape_.outer + outer;
      const A* block = sums + b * subtiles * R::kSums;  // [pixels, kColumns]
      T* to = destination_ + channel * stride;
      const auto write = [&](int64_t p, int64_t c) {
        to[destination_offsets[p] + c * stride] =
            epilogue_.finish(block[p * R::kColumns + c], channel + c,
                             residual_offsets[p] + (channel + c) * residual);
      };
      if (stride == 1)
        for (int64_t p = 0; p < pixels; ++p)
          for (int64_t c = 0; c < columns; ++c) write(p, c);
      else
        for (int64_t c = 0; c < columns; ++c)
          for (int64_t p = 0; p < pixels; ++p) write(p, c);
    }
  }

  const GatherShape shape_;
  const T* const source_;  // [N, groups * inner, source rows, source columns]
  const Strides4 source_strides_;
  const Epilogue<T> epilogue_;
  T* const destination_;  // [N, groups * outer, rows, columns]
  const Strides4 destination_strides_;
  const int64_t blocks_, taps_;
};

}  // namespace atrousx
