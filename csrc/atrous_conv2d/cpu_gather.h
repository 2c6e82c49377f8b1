// Forward and grad-input on the CPU: tiles of the tap plan as indirect matrix products.
//
// The weight is packed once, the source by slabs of channels, a few images at a time. One task owns
// the pixels of a few tiles and a few blocks of destination channels. It walks through the source
// channels: a chunk of them, its weights of all taps and the task's sums stay in the L2 cache while
// every tile is multiplied. Lanes are pixels, read where they lie in the slabs.
#pragma once

#include <bit>

#include "../tensor.h"
#include "cpu_product.h"
#include "cpu_slabs.h"
#include "plan.h"

namespace atrousx {

template <typename T, typename R>
class CpuGather {
  using A = typename R::A;
  static constexpr int kSlab = 64;          // elements: of one channel or, packed, of two
  static constexpr int kDepth = 9 * kSlab;  // of one product: all taps of a 3x3 kernel
  static constexpr int64_t kTilePixels = 256;
  static constexpr int64_t kTaskPixels = 576;
  static constexpr int64_t kTaskColumns = 128;     // channels of a task, at most
  static constexpr int64_t kPackedMost = 1 << 25;  // packed elements of a source at a time
  using Packed = Slabs<A, kSlab, R::kPack>;

 public:
  CpuGather(const GatherShape& shape, const T* source, const Strides4& source_strides,
            const Epilogue<T>& epilogue, T* destination, const Strides4& destination_strides)
      : shape_(shape),
        source_(source),
        source_strides_(source_strides),
        epilogue_(epilogue),
        destination_(destination),
        destination_strides_(destination_strides),
        elements_(ceil_div<int64_t>(shape.inner, R::kPack)),
        blocks_(ceil_div<int64_t>(shape.outer, R::kColumns)),
        taps_(shape.rows.taps * shape.columns.taps) {}

  // weight: any strides; like: names dtype and device of the scratch.
  void run(const T* weight, const WeightStrides& weight_strides, const Tensor& like) {
    const Tensor packed = scratch(like, shape_.groups * blocks_ * block_size());
    A* packed_data = static_cast<A*>(packed.mutable_data_ptr());
    pack_weight(weight, weight_strides, packed_data);
    const int64_t image =
        shape_.groups * shape_.inner * shape_.rows.sources * shape_.columns.sources;
    const int64_t images =
        std::clamp<int64_t>(kPackedMost / std::max<int64_t>(image, 1), 1, shape_.batch);
    for (int64_t n = 0; n < shape_.batch; n += images)
      run_images(n, std::min(images, shape_.batch - n), packed_data, like);
  }

 private:
  // One block of packed weight: [slabs, taps, elements of the slab, kColumns].
  int64_t block_size() const { return taps_ * elements_ * R::kColumns; }

  void pack_weight(const T* weight, const WeightStrides& strides,
                   A* packed) {  // [groups, blocks, block_size()]
    constexpr int64_t kChannels = kSlab * R::kPack;
    const int64_t slabs = ceil_div<int64_t>(shape_.inner, kChannels);
    for_each_task(shape_.groups * blocks_ * slabs, [&](int64_t task, int64_t) {
      const int64_t slab = task % slabs, block = task / slabs % blocks_;
      const int64_t group = task / slabs / blocks_;
      const int64_t first = slab * kChannels;
      const int64_t depth = std::min<int64_t>(kChannels, shape_.inner - first);
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
      const T* source =
          weight + group * strides.group + outer * strides.outer + first * strides.inner;
      A* panel =
          packed + (group * blocks_ + block) * block_size() + slab * kSlab * taps_ * R::kColumns;
      const PanelRows rows{from.data(), depth * taps_, to.data()};
      if constexpr (R::kPack == 1) {
        pack_panel<R::kColumns>(source, rows, column_offsets, columns, panel);
      } else {
        std::vector<A> wide(depth * taps_ * R::kColumns);
        pack_panel<R::kColumns>(source, rows, column_offsets, columns, wide.data());
        for (int64_t tap = 0; tap < taps_; ++tap)
          for (int64_t d = 0; d < depth; d += 2, panel += R::kColumns) {
            const A* even = wide.data() + (tap * depth + d) * R::kColumns;
            run_best<PairRows>(even, d + 1 < depth ? even + R::kColumns : nullptr, R::kColumns,
                               panel);
          }
      }
    });
  }

  // Tiles that share a task, and where each one's sums begin among the task's pixels.
  struct Group {
    std::vector<Tile> tiles;
    std::vector<int64_t> first;
    int64_t pixels = 0, cost = 0;

    void add(const Tile& tile) {
      tiles.push_back(tile);
      first.push_back(pixels);
      pixels += tile.pixels;
      cost += tile.pixels * (tile.live_taps() + 1);  // dead pixels are stored, too
    }
  };

  // At least `wanted` groups, where there are as many tiles, of about equal cost: threads then end
  // together.
  std::vector<Group> group_tiles(int64_t images, int64_t wanted) const {
    std::vector<Tile> tiles;
    int64_t pixels = 0;
    for (const TapPlan& plan : tap_plans(shape_.rows, shape_.columns, images, kTilePixels))
      for (int64_t t = 0; t < plan.tiles(); ++t) {
        tiles.push_back(plan.tile(t, images));
        pixels += tiles.back().pixels;
      }
    std::stable_sort(tiles.begin(), tiles.end(), [](const Tile& a, const Tile& b) {
      return a.pixels * a.live_taps() > b.pixels * b.live_taps();
    });
    std::vector<Group> groups(std::min<int64_t>(std::max(ceil_div(pixels, kTaskPixels), wanted),
                                                static_cast<int64_t>(tiles.size())));
    const auto lighter = [](const Group& a, const Group& b) { return a.cost < b.cost; };
    for (const Tile& tile : tiles)
      std::min_element(groups.begin(), groups.end(), lighter)->add(tile);
    return groups;
  }

  void run_images(int64_t first_image, int64_t images, const A* weight, const Tensor& like) {
    const Packed source(
        {images, shape_.groups, shape_.inner, shape_.rows.sources, shape_.columns.sources},
        source_ + first_image * source_strides_.n, source_strides_, like);
    // Few pixels are divided by channels and by tile, so that every thread has work.
    const int64_t wanted = 2 * static_cast<int64_t>(torch::stable::get_num_threads());
    const int64_t parts =
        std::min(blocks_, std::max(ceil_div(wanted, shape_.groups),
                                   ceil_div<int64_t>(blocks_ * R::kColumns, kTaskColumns)));
    const std::vector<Group> groups = group_tiles(images, ceil_div(wanted, shape_.groups * parts));
    int64_t most_pixels = 0;
    for (const Group& group : groups) most_pixels = std::max(most_pixels, group.pixels);
    const int64_t rows = static_cast<int64_t>(groups.size()) * shape_.groups;
    const int64_t per_worker = ceil_div(blocks_, parts) * most_pixels * R::kColumns;
    const int64_t tasks = rows * parts;
    const Tensor buffer = scratch(like, cpu_workers(tasks) * per_worker);
    A* sums = static_cast<A*>(buffer.mutable_data_ptr());
    for_each_task(tasks, [&](int64_t task, int64_t worker) {
      const int64_t part = task % parts, first = part * blocks_ / parts;
      run_task({groups[task / parts / shape_.groups], first_image, task / parts % shape_.groups,
                first, (part + 1) * blocks_ / parts - first},
               source, weight, sums + worker * per_worker);
    });
  }

  struct Task {
    const Group& tiles;
    int64_t first_image, group, first_block, blocks;
  };

  void run_task(const Task& task, const Packed& packed, const A* packed_weight,
                A* sums) {  // [pixels by tile, blocks, pixels of the tile, kColumns]
    const Group& group = task.tiles;
    std::vector<int64_t> lanes(group.pixels);
    for (size_t t = 0; t < group.tiles.size(); ++t) {
      const Tile& tile = group.tiles[t];
      for (int64_t i = 0; i < tile.pixels; ++i)
        lanes[group.first[t] + i] = tile.source_offset(tile.pixel(i), packed.strides());
    }
    const int64_t tile_step = task.blocks * R::kColumns;  // sums of a pixel
    std::fill_n(sums, group.pixels * tile_step, A(0));
    const A* weight = packed_weight + (task.group * blocks_ + task.first_block) * block_size();
    const A* source = packed.data() + task.group * packed.group_size();
    const int64_t chunk = chunk_elements();
    for (int64_t first = 0; first < elements_; first += chunk)
      for (size_t t = 0; t < group.tiles.size(); ++t) {
        const Tile& tile = group.tiles[t];
        const SegmentList segments =
            lay_out(tile, packed, first, std::min(first + chunk, elements_));
        if (!segments.items.empty())
          multiply(segments, source, lanes.data() + group.first[t], tile.pixels, weight,
                   task.blocks, sums + group.first[t] * tile_step);
      }
    for (size_t t = 0; t < group.tiles.size(); ++t)
      store(task, group.tiles[t], sums + group.first[t] * tile_step);
  }

  // How much of the source's depth is multiplied at a time: part of a slab or whole slabs.
  int64_t chunk_elements() const {
    const int64_t fit = std::max<int64_t>(1, kDepth / taps_);
    return fit >= kSlab ? fit / kSlab * kSlab : std::bit_floor(static_cast<uint64_t>(fit));
  }

  // The live taps of source elements [first, end), as segments of the slabs and of the weight.
  SegmentList lay_out(const Tile& tile, const Packed& packed, int64_t first, int64_t end) const {
    SegmentList segments;
    for (int64_t at = first; at < end;) {
      const int64_t slab = at / kSlab, width = packed.width(slab), within = at % kSlab;
      const int64_t depth = std::min(width - within, end - at);
      const int64_t source = slab * packed.slab_size() + within;
      for (int64_t i = 0; i < tile.rows.taps.count; ++i)
        for (int64_t j = 0; j < tile.columns.taps.count; ++j) {
          const int64_t tap = tile.rows.taps.at(i) * shape_.columns.taps + tile.columns.taps.at(j);
          segments.add({source + tile.tap_offset(i, j, packed.strides()),
                        (slab * kSlab * taps_ + tap * width + within) * R::kColumns, depth},
                       1, R::kColumns);
        }
      at += depth;
    }
    return segments;
  }

  // What the lanes of a piece will read: pixels that taps far apart read are nothing a hardware
  // prefetcher foresees.
  static void prefetch(const SegmentList& segments, const A* source, const int64_t* lanes,
                       int64_t count) {
    constexpr int64_t kLine = 64 / sizeof(A);
    for (const Segment& segment : segments.items)
      for (int64_t l = 0; l < count; ++l)
        for (int64_t d = 0; d < segment.depth; d += kLine)
          __builtin_prefetch(source + segment.source + lanes[l] + d);
  }

  // The lanes of a piece stay in the L1 cache while the weight streams by.
  void multiply(const SegmentList& segments, const A* source, const int64_t* lanes, int64_t pixels,
                const A* weight, int64_t blocks,
                A* sums) const {  // [blocks, pixels, kColumns]
    const LanePieces pieces(pixels, R::kLanes);
    for (int64_t s = 0; s < pieces.count; ++s) {
      if (s + 1 < pieces.count)
        prefetch(segments, source, lanes + pieces.first(s + 1), pieces.size(s + 1));
      for (int64_t b = 0; b < blocks; ++b)
        multiply_lanes<R, 1>(pieces.size(s), source, lanes + pieces.first(s),
                             weight + b * block_size(), segments,
                             sums + (b * pixels + pieces.first(s)) * R::kColumns);
    }
  }

  void store(const Task& task, const Tile& tile,
             const A* sums) const {  // [blocks, pixels, kColumns]
    int64_t to[kTilePixels], residual[kTilePixels];
    for (int64_t i = 0; i < tile.pixels; ++i) {
      Tile::Pixel p = tile.pixel(i);
      p.n += task.first_image;
      to[i] = tile.destination_offset(p, destination_strides_);
      residual[i] = tile.destination_offset(p, epilogue_.residual_strides);
    }
    const int64_t stride = destination_strides_.c, residual_stride = epilogue_.residual_strides.c;
    for (int64_t b = 0; b < task.blocks; ++b) {
      const int64_t outer = (task.first_block + b) * R::kColumns;
      const int64_t columns = std::min<int64_t>(R::kColumns, shape_.outer - outer);
      const int64_t channel = task.group * shape_.outer + outer;
      const A* block = sums + b * tile.pixels * R::kColumns;
      const auto write = [&](int64_t p, int64_t c) {
        destination_[to[p] + (channel + c) * stride] = epilogue_.finish(
            block[p * R::kColumns + c], channel + c, residual[p] + (channel + c) * residual_stride);
      };
      if (stride == 1)
        for (int64_t p = 0; p < tile.pixels; ++p)
          for (int64_t c = 0; c < columns; ++c) write(p, c);
      else
        for (int64_t c = 0; c < columns; ++c)
          for (int64_t p = 0; p < tile.pixels; ++p) write(p, c);
    }
  }

  const GatherShape shape_;
  const T* const source_;  // [N, groups * inner, source rows, source columns]
  const Strides4 source_strides_;
  const Epilogue<T> epilogue_;
  T* const destination_;  // [N, groups * outer, rows, columns]
  const Strides4 destination_strides_;
  const int64_t elements_, blocks_, taps_;
};

}  // namespace atrousx
