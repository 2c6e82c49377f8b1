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
  static constexpr int64_t kSubtiles = 16;    // register tiles of pixels in a tile
  static constexpr int64_t kTaskBlocks = 16;  // register tiles of channels in a task, at most
  static constexpr int64_t kPixels = kSubtiles * R::kLanes;
  static constexpr int64_t kStretch = 64;  // source channels of which all taps are taken in turn
  // A source whose channels are neighbours is packed lane by lane, [kLanes, kLanePitch]: plain
  // copies. The pitch keeps lanes out of each other's cache sets.
  static constexpr int64_t kLanePitch = kDepth + 16;
  static constexpr int64_t kPanel = R::kLanes * kLanePitch;

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
    std::vector<Tile> tiles;
    for (const TapPlan& plan : tap_plans(shape_.rows, shape_.columns, shape_.batch, kPixels))
      for (int64_t t = 0; t < plan.tiles(); ++t) tiles.push_back(plan.tile(t, shape_.batch));
    // The largest first: threads then end together.
    std::stable_sort(tiles.begin(), tiles.end(), [](const Tile& a, const Tile& b) {
      return a.pixels * a.live_taps() > b.pixels * b.live_taps();
    });
    run_tiles(tiles, packed_data, like);
  }

 private:
  // One block of packed weight: [stretches, taps, channels of the stretch, kColumns].
  int64_t block_size() const { return taps_ * shape_.inner * R::kColumns; }

  void pack_weight(const T* weight, const WeightStrides& strides,
                   A* packed) {  // [groups, blocks, block_size()]
    const int64_t stretches = ceil_div(shape_.inner, kStretch);
    for_each_task(shape_.groups * blocks_ * stretches, [&](int64_t task, int64_t) {
      const int64_t stretch = task % stretches, block = task / stretches % blocks_;
      const int64_t group = task / stretches / blocks_;
      const int64_t first = stretch * kStretch;
      const int64_t depth = std::min(kStretch, shape_.inner - first);
      const int64_t outer = block * R::kColumns;
      const int64_t columns = std::min<int64_t>(R::kColumns, shape_.outer - outer);
      // In the order of memory, so that rows of the panel come from runs of the weight.
      const bool channel_fastest = strides.inner < strides.w;
      std::vector<int64_t> from(depth * taps_), to(depth * taps_);
      for (int64_t tap = 0; tap < taps_; ++tap)
        for (int64_t d = 0; d < depth; ++d) {
          const int64_t i = channel_fastest ? tap * depth + d : d * taps_ + tap;
          from[i] = d * strides.inner + tap / shape_.columns.taps * strides.h +
                    tap % shape_.columns.taps * strides.w;
          to[i] = (tap * depth + d) * R::kColumns;
        }
      int64_t column_offsets[R::kColumns];
      for (int64_t c = 0; c < columns; ++c) column_offsets[c] = c * strides.outer;
      pack_panel<R::kColumns>(
          weight + group * strides.group + outer * strides.outer + first * strides.inner,
          {from.data(), depth * taps_, to.data()}, column_offsets, columns,
          packed + (group * blocks_ + block) * block_size() + first * taps_ * R::kColumns);
    });
  }

  void run_tiles(const std::vector<Tile>& tiles, const A* packed, const Tensor& like) {
    // Few tiles are divided by channels too, so that every thread has work.
    const int64_t wanted = 4 * static_cast<int64_t>(torch::stable::get_num_threads());
    const int64_t rows = static_cast<int64_t>(tiles.size()) * shape_.groups;
    const int64_t parts = std::min(
        blocks_, std::max(ceil_div(wanted, rows), ceil_div<int64_t>(blocks_, kTaskBlocks)));
    const int64_t task_blocks = ceil_div(blocks_, parts);
    const int64_t chunks = ceil_div(blocks_, task_blocks);
    const int64_t per_worker = kSubtiles * kPanel + task_blocks * kSubtiles * R::kSums;
    const int64_t tasks = rows * chunks;
    const Tensor buffer = scratch(like, cpu_workers(tasks) * per_worker);
    A* buffers = static_cast<A*>(buffer.mutable_data_ptr());
    for_each_task(tasks, [&](int64_t task, int64_t worker) {
      const int64_t group = task / chunks % shape_.groups, block = task % chunks * task_blocks;
      run_task(tiles[task / chunks / shape_.groups], group, block,
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
    const LanePieces pieces(tile.pixels, R::kLanes);
    A* sums = panels + kSubtiles * kPanel;  // [blocks, pixels, kColumns]
    std::fill(sums, sums + blocks * tile.pixels * R::kColumns, A(0));
    const A* weight = packed + (group * blocks_ + first_block) * block_size();
    const T* source = source_ + group * shape_.inner * source_strides_.c;
    const int64_t total = tile.live_taps() * shape_.inner;
    const bool by_lane = source_strides_.c == 1;
    const auto multiply =
        by_lane ? multiply_panels<R, kLanePitch, 1> : multiply_panels<R, 1, R::kLanes>;
    for (int64_t start = 0; start < total; start += kDepth) {
      const int64_t depth = std::min(kDepth, total - start);
      int64_t depth_offsets[kDepth];
      Segment segments[kDepth];
      const int64_t count = lay_out(tile, start, depth, depth_offsets, segments);
      for (int64_t s = 0; s < pieces.count; ++s)
        if (by_lane)
          pack_lanes(source, depth_offsets, segments, count, source_offsets + pieces.first(s),
                     pieces.size(s), panels + s * kPanel);
        else
          pack_panel<R::kLanes>(source, {depth_offsets, depth}, source_offsets + pieces.first(s),
                                pieces.size(s), panels + s * kPanel);
      for (int64_t b = 0; b < blocks; ++b)
        for (int64_t s = 0; s < pieces.count; ++s)
          multiply(pieces.size(s), panels + s * kPanel, weight + b * block_size(), segments, count,
                   sums + (b * tile.pixels + pieces.first(s)) * R::kColumns);
    }
    store(sums, group, first_block, blocks, tile.pixels, destination_offsets, residual_offsets);
  }

  // panel[lane, d] = source[depth_offsets[d] + lane_offsets[lane]], a segment of depth at a time.
  static void pack_lanes(const T* source, const int64_t* depth_offsets, const Segment* segments,
                         int64_t count, const int64_t* lane_offsets, int64_t lanes, A* panel) {
    for (int64_t l = 0; l < lanes; ++l) {
      int64_t d = 0;
      for (int64_t s = 0; s < count; d += segments[s++].depth)
        run_best<CopyRow>(source + lane_offsets[l] + depth_offsets[d], segments[s].depth,
                          panel + l * kLanePitch + d);
    }
  }

  // Rows [start, start + depth) of (stretches of inner x live taps x channels): where the source
  // lies relative to a pixel, and which stretches of the packed weight meet them. All taps of a
  // stretch come before the next one: what neighbouring taps share is still in the cache. Returns
  // the number of segments.
  int64_t lay_out(const Tile& tile, int64_t start, int64_t depth, int64_t* depth_offsets,
                  Segment* segments) const {
    const int64_t whole = kStretch * tile.live_taps();
    int64_t count = 0;
    for (int64_t d = 0; d < depth;) {
      const int64_t first = (start + d) / whole * kStretch, within = (start + d) % whole;
      const int64_t stretch = std::min(kStretch, shape_.inner - first);
      const int64_t live = within / stretch, channel = first + within % stretch;
      const int64_t i = live / tile.columns.taps.count, j = live % tile.columns.taps.count;
      const int64_t tap = tile.rows.taps.at(i) * shape_.columns.taps + tile.columns.taps.at(j);
      const int64_t length = std::min(first + stretch - channel, depth - d);
      segments[count++] = {(first * taps_ + tap * stretch + channel - first) * R::kColumns, length};
      const int64_t offset = tile.tap_offset(i, j, source_strides_) + channel * source_strides_.c;
      for (int64_t e = 0; e < length; ++e) depth_offsets[d + e] = offset + e * source_strides_.c;
      d += length;
    }
    return count;
  }

  void store(const A* sums, int64_t group, int64_t first_block, int64_t blocks, int64_t pixels,
             const int64_t* destination_offsets, const int64_t* residual_offsets) const {
    const int64_t stride = destination_strides_.c, residual = epilogue_.residual_strides.c;
    for (int64_t b = 0; b < blocks; ++b) {
      const int64_t outer = (first_block + b) * R::kColumns;
      const int64_t columns = std::min<int64_t>(R::kColumns, shape_.outer - outer);
      const int64_t channel = group * shape_.outer + outer;
      const A* block = sums + b * pixels * R::kColumns;  // [pixels, kColumns]
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
