// Forward and grad-input on the CPU: tiles of the tap plan as indirect matrix products.
//
// The source is packed by slabs of channels, a step at a time: a few images, or some slabs of one.
// Within a step, one task owns the pixels of a few tiles and a few blocks of destination channels.
// It walks through the source channels: a chunk of them, its weights of all taps and the task's
// sums stay in the L2 cache while every tile is multiplied. Lanes are pixels, read where they lie
// in the slabs.
#pragma once

#include <bit>

#include "../tensor.h"
#include "cpu_finish.h"
#include "cpu_product.h"
#include "cpu_slabs.h"
#include "cpu_weight.h"
#include "plan_cache.h"

namespace atrousx {

// A part of the work on a source: some of its images, some slabs of their channels.
struct GatherStep {
  int64_t first_image, images, first_slab, slabs;
  bool first, last;  // of these images
};

template <typename T, typename R>
class CpuGather {
  using A = typename R::A;
  static constexpr int kDepth = 9 * kSlab;  // of one product: all taps of a 3x3 kernel
  static constexpr int64_t kTilePixels = 256;
  static constexpr int64_t kTaskPixels = 576;
  static constexpr int64_t kTaskColumns = 128;  // channels of a task, at most

 public:
  // packed_weight: by PackedWeight<R>(shape).
  CpuGather(const GatherShape& shape, const Tensor& packed_weight, const Epilogue<T>& epilogue,
            T* destination, const Strides4& destination_strides)
      : shape_(shape),
        weight_(shape),
        packed_weight_(packed_weight),
        epilogue_(epilogue),
        destination_(destination),
        destination_strides_(destination_strides) {}

  // The steps of some images come in order, first to last.
  void multiply(const GatherStep& step, const SourceView<A>& source) {
    if (step.first) plan(step);
    const int64_t tasks = static_cast<int64_t>(groups_.size()) * shape_.groups * parts_;
    A* sums = static_cast<A*>(sums_->mutable_data_ptr());
    for_each_task(tasks, [&](int64_t task, int64_t worker) {
      const int64_t part = task % parts_, first = part * weight_.blocks() / parts_;
      run_task({groups_[task / parts_ / shape_.groups], task / parts_ % shape_.groups, first,
                (part + 1) * weight_.blocks() / parts_ - first},
               step, source, sums + (step.first && step.last ? worker : task) * task_sums_);
    });
  }

 private:
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

  // `wanted` groups, where there are as many tiles, of about equal cost: threads then end together.
  std::vector<Group> group_tiles(int64_t images, int64_t wanted) const {
    std::vector<Tile> tiles;
    const auto plans = cached_tap_plans(shape_.rows, shape_.columns, images, kTilePixels);
    for (const TapPlan& plan : *plans)
      for (int64_t t = 0; t < plan.tiles(); ++t) tiles.push_back(plan.tile(t, images));
    std::stable_sort(tiles.begin(), tiles.end(), [](const Tile& a, const Tile& b) {
      return a.pixels * a.live_taps() > b.pixels * b.live_taps();
    });
    std::vector<Group> groups(std::min<int64_t>(wanted, static_cast<int64_t>(tiles.size())));
    const auto lighter = [](const Group& a, const Group& b) { return a.cost < b.cost; };
    for (const Tile& tile : tiles)
      std::min_element(groups.begin(), groups.end(), lighter)->add(tile);
    return groups;
  }

  // Divides the work on a step's images among tasks, and makes room for their sums: a task's are
  // kept from step to step, a worker's where there is but one.
  void plan(const GatherStep& step) {
    // Few pixels are divided by channels and by tile, so that every thread has work.
    const int64_t wanted = ceil_div<int64_t>(2 * torch::stable::get_num_threads(), shape_.groups);
    const int64_t pixels = step.images * shape_.rows.destinations * shape_.columns.destinations;
    const int64_t rows = ceil_div(pixels, kTaskPixels);
    parts_ = std::min(weight_.blocks(),
                      std::max(ceil_div(wanted, rows),
                               ceil_div<int64_t>(weight_.blocks() * R::kColumns, kTaskColumns)));
    groups_ = group_tiles(step.images, std::max(rows, ceil_div(wanted, parts_)));
    int64_t most_pixels = 0;
    for (const Group& group : groups_) most_pixels = std::max(most_pixels, group.pixels);
    task_sums_ = ceil_div(weight_.blocks(), parts_) * most_pixels * R::kColumns;
    const int64_t tasks = static_cast<int64_t>(groups_.size()) * shape_.groups * parts_;
    sums_ = scratch(packed_weight_, (step.last ? cpu_workers(tasks) : tasks) * task_sums_);
  }

  struct Task {
    const Group& tiles;
    int64_t group, first_block, blocks;
  };

  void run_task(const Task& task, const GatherStep& step, const SourceView<A>& packed,
                A* sums) const {  // [pixels by tile, blocks, pixels of the tile, kColumns]
    const Group& group = task.tiles;
    std::vector<int64_t> lanes(group.pixels);
    for (size_t t = 0; t < group.tiles.size(); ++t) {
      const Tile& tile = group.tiles[t];
      for (int64_t i = 0; i < tile.pixels; ++i)
        lanes[group.first[t] + i] = tile.source_offset(tile.pixel(i), packed.strides);
    }
    const int64_t tile_step = task.blocks * R::kColumns;  // sums of a pixel
    const A* weight = static_cast<const A*>(packed_weight_.const_data_ptr()) +
                      (task.group * weight_.blocks() + task.first_block) * weight_.block_size();
    const A* source = packed.data + task.group * packed.group_size;
    const int64_t chunk = chunk_elements();
    const int64_t end = std::min((step.first_slab + step.slabs) * kSlab, weight_.elements());
    if (step.first && step.last && end <= chunk) {
      for (size_t t = 0; t < group.tiles.size(); ++t)
        multiply_and_store(task, step.first_image, group.tiles[t],
                           lay_out(group.tiles[t], packed, 0, 0, end), source,
                           lanes.data() + group.first[t], weight, sums);
      return;
    }
    if (step.first) std::fill_n(sums, group.pixels * tile_step, A(0));
    for (int64_t first = step.first_slab * kSlab; first < end; first += chunk)
      for (size_t t = 0; t < group.tiles.size(); ++t) {
        const Tile& tile = group.tiles[t];
        const SegmentList segments =
            lay_out(tile, packed, step.first_slab, first, std::min(first + chunk, end));
        if (!segments.items.empty())
          multiply(segments, source, lanes.data() + group.first[t], tile.pixels, weight,
                   task.blocks, sums + group.first[t] * tile_step);
      }
    if (!step.last) return;
    for (size_t t = 0; t < group.tiles.size(); ++t)
      store(task, step.first_image, group.tiles[t], sums + group.first[t] * tile_step);
  }

  // How much of the source's depth is multiplied at a time: part of a slab or whole slabs. Filters
  // of many taps take a whole cache line all the same while the weight fits the L2 cache.
  int64_t chunk_elements() const {
    const int64_t taps = weight_.taps();
    const int64_t fit =
        std::max<int64_t>({1, kDepth / taps, std::min<int64_t>(kLine<A>, 2 * kDepth / taps)});
    return fit >= kSlab ? fit / kSlab * kSlab : std::bit_floor(static_cast<uint64_t>(fit));
  }

  // The live taps of source elements [first, end), as segments of the weight and of slabs that
  // begin with the first one packed.
  SegmentList lay_out(const Tile& tile, const SourceView<A>& packed, int64_t first_slab,
                      int64_t first, int64_t end) const {
    SegmentList segments;
    for (int64_t at = first; at < end;) {
      const int64_t slab = at / kSlab, within = at % kSlab;
      const int64_t width = std::min<int64_t>(kSlab, weight_.elements() - slab * kSlab);
      const int64_t depth = std::min(width - within, end - at);
      const int64_t source = (slab - first_slab) * packed.slab_size + within;
      for (int64_t i = 0; i < tile.rows.taps.count; ++i)
        for (int64_t j = 0; j < tile.columns.taps.count; ++j) {
          const int64_t tap = tile.rows.taps.at(i) * shape_.columns.taps + tile.columns.taps.at(j);
          segments.add(
              {source + tile.tap_offset(i, j, packed.strides),
               (slab * kSlab * weight_.taps() + tap * width + within) * R::kColumns, depth},
              1, R::kColumns);
        }
      at += depth;
    }
    return segments;
  }

  // The lanes of a piece, and which the next ones are.
  struct Piece {
    int64_t first, pixels, next[kNextLanes<R>];

    Piece(const LanePieces& pieces, int64_t s, const int64_t* lanes)
        : first(pieces.first(s)), pixels(pieces.size(s)) {
      const int64_t soon = std::min(s + 1, pieces.count - 1);
      for (int64_t l = 0; l < kNextLanes<R>; ++l)
        next[l] = lanes[pieces.first(soon) + l % pieces.size(soon)];
    }
  };

  // The lanes of a piece stay in the L1 cache while the weight streams by.
  void multiply(const SegmentList& segments, const A* source, const int64_t* lanes, int64_t pixels,
                const A* weight, int64_t blocks,
                A* sums) const {  // [blocks, pixels, kColumns]
    const LanePieces pieces(pixels, R::kLanes);
    for (int64_t s = 0; s < pieces.count; ++s) {
      const Piece piece(pieces, s, lanes);
      for (int64_t b = 0; b < blocks; ++b)
        multiply_lanes<R, 1>(piece.pixels, source, lanes + piece.first,
                             weight + b * weight_.block_size(), segments, piece.next,
                             sums + (b * pixels + piece.first) * R::kColumns);
    }
  }

  // The same where one product holds the whole depth: sums are stored while the L1 cache has them.
  void multiply_and_store(const Task& task, int64_t first_image, const Tile& tile,
                          const SegmentList& segments, const A* source, const int64_t* lanes,
                          const A* weight, A* sums) const {  // [kLanes, kColumns]
    const Places places = places_of(tile, first_image);
    const LanePieces pieces(tile.pixels, R::kLanes);
    for (int64_t s = 0; s < pieces.count; ++s) {
      const Piece piece(pieces, s, lanes);
      for (int64_t b = 0; b < task.blocks; ++b) {
        prefetch(task, places, b, piece);
        std::fill_n(sums, piece.pixels * R::kColumns, A(0));
        if (!segments.items.empty())
          multiply_lanes<R, 1>(piece.pixels, source, lanes + piece.first,
                               weight + b * weight_.block_size(), segments, piece.next, sums);
        store(task, places, b, piece.first, piece.pixels, sums);
      }
    }
  }

  // Where a tile's pixels go, and where their residuals are.
  struct Places {
    int64_t to[kTilePixels], residual[kTilePixels];
  };

  Places places_of(const Tile& tile, int64_t first_image) const {
    Places places;
    for (int64_t i = 0; i < tile.pixels; ++i) {
      Tile::Pixel p = tile.pixel(i);
      p.n += first_image;
      places.to[i] = tile.destination_offset(p, destination_strides_);
      places.residual[i] = tile.destination_offset(p, epilogue_.residual_strides);
    }
    return places;
  }

  void store(const Task& task, int64_t first_image, const Tile& tile,
             const A* sums) const {  // [blocks, pixels, kColumns]
    const Places places = places_of(tile, first_image);
    for (int64_t b = 0; b < task.blocks; ++b)
      store(task, places, b, 0, tile.pixels, sums + b * tile.pixels * R::kColumns);
  }

  // The lines that a piece will be stored to come while it is multiplied.
  void prefetch(const Task& task, const Places& places, int64_t b, const Piece& piece) const {
    if (destination_strides_.c != 1) return;
    const int64_t channel = task.group * shape_.outer + (task.first_block + b) * R::kColumns;
    const T* residual = epilogue_.residual_strides.c == 1 ? epilogue_.residual : nullptr;
    for (int64_t p = piece.first; p < piece.first + piece.pixels; ++p)
      for (int64_t c = channel; c < channel + R::kColumns; c += kLine<T>) {
        if (residual != nullptr) __builtin_prefetch(residual + places.residual[p] + c, 0, 2);
        __builtin_prefetch(destination_ + places.to[p] + c, 1, 2);
      }
  }

  // Some pixels of a block of channels.
  void store(const Task& task, const Places& places, int64_t b, int64_t first, int64_t pixels,
             const A* sums) const {  // [pixels, kColumns]
    const int64_t *to = places.to + first, *residual = places.residual + first;
    const int64_t stride = destination_strides_.c, residual_stride = epilogue_.residual_strides.c;
    const int64_t outer = (task.first_block + b) * R::kColumns;
    const int64_t columns = std::min<int64_t>(R::kColumns, shape_.outer - outer);
    const int64_t channel = task.group * shape_.outer + outer;
    if (stride == 1) {
      const auto from = [&](const T* data, int64_t offset) {
        return data == nullptr ? nullptr : data + offset;
      };
      for (int64_t p = 0; p < pixels; ++p)
        run_with_lanes<FinishPixel>(
            sums + p * R::kColumns, columns,
            PixelTail<T>{from(epilogue_.bias, channel),
                         from(epilogue_.residual, residual[p] + channel * residual_stride),
                         residual_stride, epilogue_.relu},
            destination_ + to[p] + channel);
      return;
    }
    for (int64_t c = 0; c < columns; ++c)
      for (int64_t p = 0; p < pixels; ++p)
        destination_[to[p] + (channel + c) * stride] = epilogue_.finish(
            sums[p * R::kColumns + c], channel + c, residual[p] + (channel + c) * residual_stride);
  }

  const GatherShape shape_;
  const PackedWeight<R> weight_;
  const Tensor packed_weight_;
  const Epilogue<T> epilogue_;
  T* const destination_;  // [N, groups * outer, rows, columns]
  const Strides4 destination_strides_;
  // Of the images at hand.
  std::vector<Group> groups_;
  int64_t parts_ = 0, task_sums_ = 0;
  std::optional<Tensor> sums_;
};

// Calls f(step, view) for every step of a source, [N, groups * inner, rows, columns]. Where a
// filter has one tap and channels are neighbours, the source itself is what packing would make:
// each pixel is read in one place only, and there in a row.
template <typename A, int kPack, typename T, typename F>
void for_each_gather_step(const GatherShape& shape, const T* source, const Strides4& strides,
                          const Tensor& like, F&& f) {
  if constexpr (std::is_same_v<T, A>) {
    if (kPack == 1 && strides.c == 1 && shape.taps() == 1)
      return f(GatherStep{0, shape.batch, 0, ceil_div<int64_t>(shape.inner, kSlab), true, true},
               SourceView<A>{source, strides, kSlab, shape.inner});
  }
  using Packed = Slabs<A, kSlab, kPack>;
  constexpr int64_t kChannels = kSlab * kPack;
  // Elements packed at a time, at most: what is packed should still be cached when it is read.
  constexpr int64_t kMost = 1 << 20;
  MapSize size{1,          shape.groups, shape.inner, shape.rows.sources, shape.columns.sources,
               shape.inner};
  const int64_t image = std::max<int64_t>(Packed::elements(size), 1);
  const int64_t slabs = std::max<int64_t>(Packed::slabs(size), 1);
  const int64_t images = std::clamp<int64_t>(kMost / image, 1, shape.batch);
  const int64_t step_slabs = ceil_div(slabs, std::min(ceil_div(image, kMost), slabs));
  size.batch = images;
  size.channels = std::min(step_slabs * kChannels, shape.inner);
  const Tensor memory = Packed::memory(size, like);
  for (int64_t n = 0; n < shape.batch; n += images)
    for (int64_t slab = 0; slab < slabs; slab += step_slabs) {
      const GatherStep step{n,         std::min(images, shape.batch - n),
                            slab,      std::min(step_slabs, slabs - slab),
                            slab == 0, slab + step_slabs >= slabs};
      size.batch = step.images;
      size.channels = std::min(step.slabs * kChannels, shape.inner - slab * kChannels);
      f(step, Packed(size, source + strides.offset(n, slab * kChannels, 0, 0), strides,
                     static_cast<A*>(memory.mutable_data_ptr()))
                  .view());
    }
}

}  // namespace atrousx
