// Forward and grad-input on the CPU: tiles of the tap plan as indirect matrix products.
//
// The source is packed by slabs of channels in steps. A step is a few images, or some slabs of one
// image. Within a step, one task computes the pixels of a few tiles for a few blocks of destination
// channels. It goes through the source channels in chunks. A chunk of the source, its weights of
// all taps and the sums of the task stay in the L2 cache while the tiles are multiplied. Lanes are
// pixels, read by address from the slabs.
#pragma once

#include <bit>
#include <memory>

#include "atrous_conv2d/cpu/gemm/epilogue.h"
#include "atrous_conv2d/cpu/gemm/microkernel.h"
#include "atrous_conv2d/cpu/gemm/packed_weight.h"
#include "atrous_conv2d/cpu/indirect/source_steps.h"
#include "atrous_conv2d/plan_cache.h"
#include "cpu/workspace.h"
#include "tensor.h"

namespace atrousx {

template <typename T, typename R>
class CpuGather {
  using A = typename R::A;
  static constexpr int kDepth = 9 * kSlab;  // depth of one product: all taps of a 3x3 kernel
  static constexpr int64_t kTilePixels = 256;
  static constexpr int64_t kTaskPixels = 576;
  static constexpr int64_t kTaskColumns = 128;     // most channels of a task
  static constexpr int64_t kPackingPixels = 4608;  // most pixels of a task that packs its weights

 public:
  CpuGather(const GatherShape& shape, GatherWeight<T, R> weight, const Epilogue<T>& epilogue,
            T* destination, const Strides4& destination_strides)
      : shape_(shape),
        weights_(std::move(weight)),
        weight_(weights_.form()),
        finished_{epilogue, destination, destination_strides} {}

  // Call this for all steps of some images in order, from first to last.
  void multiply(const GatherStep& step, const SourceView<A>& source) {
    if (step.first) plan(step);
    const int64_t tasks = static_cast<int64_t>(groups_.size()) * shape_.groups * parts_;
    A* sums = sums_->data();
    A* chunks = chunks_->data();
    for_each_task(tasks, [&](int64_t task, int64_t worker) {
      const int64_t part = task % parts_, first = part * weight_.blocks() / parts_;
      run_task({groups_[task / parts_ / shape_.groups], task / parts_ % shape_.groups, first,
                (part + 1) * weight_.blocks() / parts_ - first, chunks + worker * task_chunk_},
               step, source, sums + (step.first && step.last ? worker : task) * task_sums_);
    });
  }

 private:
  // The tiles of a task. The sums of tiles[t] begin at pixel first[t] of the task.
  struct Group {
    std::vector<Tile> tiles;
    std::vector<int64_t> first;
    int64_t pixels = 0, cost = 0;

    void add(const Tile& tile) {
      tiles.push_back(tile);
      first.push_back(pixels);
      pixels += tile.pixels;
      cost += tile.pixels * (tile.live_taps() + 1);  // pixels without a live tap are stored too
    }
  };

  // Divides the tiles into `wanted` groups, or fewer if there are fewer tiles. The groups have
  // about equal cost, so that all threads end at about the same time.
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

  // Divides the work on the images of a step into tasks, and allocates their sums. With several
  // steps, each task keeps its sums from step to step. With one step, sums for each worker suffice.
  void plan(const GatherStep& step) {
    // If there are few pixels, their channels and tiles are divided too, so that every thread has
    // work.
    const int64_t wanted = ceil_div<int64_t>(2 * torch::stable::get_num_threads(), shape_.groups);
    const int64_t pixels = step.images * shape_.rows.destinations * shape_.columns.destinations;
    const bool packs = weights_.packs_chunks();
    const int64_t rows = ceil_div(pixels, packs ? kPackingPixels : kTaskPixels);
    parts_ = std::min(weight_.blocks(),
                      std::max(ceil_div(wanted, rows),
                               ceil_div<int64_t>(weight_.blocks() * R::kColumns,
                                                 packs ? kPackingColumns : kTaskColumns)));
    groups_ = group_tiles(step.images, std::max(rows, ceil_div(wanted, parts_)));
    int64_t most_pixels = 0;
    for (const Group& group : groups_) most_pixels = std::max(most_pixels, group.pixels);
    task_sums_ = ceil_div(weight_.blocks(), parts_) * most_pixels * R::kColumns;
    const int64_t tasks = static_cast<int64_t>(groups_.size()) * shape_.groups * parts_;
    sums_.emplace((step.last ? cpu_workers(tasks) : tasks) * task_sums_);
    task_chunk_ = weights_.chunk_size(chunk_elements(), ceil_div(weight_.blocks(), parts_));
    chunks_.emplace(cpu_workers(tasks) * task_chunk_);
  }

  struct Task {
    const Group& tiles;
    int64_t group, first_block, blocks;
    A* chunk;  // memory for weights, if the task packs them
  };

  // What a task reads.
  struct TaskSource {
    const SourceView<A>& view;
    const A* data;               // of its group
    std::vector<int64_t> lanes;  // where the pixels of its tiles lie, from `data` on
  };
  // Source elements [first, end), and their weights. Offsets into the source begin at slab
  // first_slab.
  struct Chunk {
    int64_t first_slab, first, end;
    WeightChunk<A> weight;
  };

  void run_task(const Task& task, const GatherStep& step, const SourceView<A>& packed,
                A* sums) const {  // [pixels by tile, blocks, pixels of the tile, kColumns]
    const Group& group = task.tiles;
    const TaskSource source{packed, packed.data + task.group * packed.group_size,
                            lanes_of(group, packed.strides)};
    const int64_t most = chunk_elements();
    const int64_t end = std::min((step.first_slab + step.slabs) * kSlab, weight_.elements());
    if (step.first && step.last && end <= most) {
      const Chunk all = chunk(task, step, 0, end);
      for (size_t t = 0; t < group.tiles.size(); ++t) {
        TileProduct product = tile_product(group, t, source, all);
        product.segments.begins = true;
        multiply_and_store(task, step.first_image, product, sums);
      }
      return;
    }
    for (int64_t first = step.first_slab * kSlab; first < end; first += most)
      add_chunk(task, source, chunk(task, step, first, std::min(first + most, end)), sums);
    if (!step.last) return;
    for (size_t t = 0; t < group.tiles.size(); ++t)
      store(task, step.first_image, group.tiles[t],
            sums + group.first[t] * task.blocks * R::kColumns);
  }

  static std::vector<int64_t> lanes_of(const Group& group, const Strides4& strides) {
    std::vector<int64_t> lanes(group.pixels);
    for (size_t t = 0; t < group.tiles.size(); ++t) {
      const Tile& tile = group.tiles[t];
      for (int64_t i = 0; i < tile.pixels; ++i)
        lanes[group.first[t] + i] = tile.source_offset(tile.pixel(i), strides);
    }
    return lanes;
  }

  // Packs the weights of the chunk if the task does that.
  Chunk chunk(const Task& task, const GatherStep& step, int64_t first, int64_t end) const {
    return {step.first_slab, first, end,
            weights_.chunk(task.group, task.first_block, task.blocks, first, end, task.chunk)};
  }

  // Adds the products of all tiles with a chunk, or writes them if it is the first one.
  void add_chunk(const Task& task, const TaskSource& source, const Chunk& chunk, A* sums) const {
    const Group& group = task.tiles;
    const int64_t pixel_sums = task.blocks * R::kColumns;
    for (size_t t = 0; t < group.tiles.size(); ++t) {
      A* const own = sums + group.first[t] * pixel_sums;
      TileProduct product = tile_product(group, t, source, chunk);
      product.segments.begins = chunk.first == 0;
      if (!product.segments.items.empty())
        multiply(product, task.blocks, own);
      else if (product.segments.begins)
        std::fill_n(own, product.tile.pixels * pixel_sums, A(0));
    }
  }

  // Returns how many source elements are multiplied at a time: a part of a slab, or whole slabs.
  // Filters with many taps also take a whole cache line, if the depth is then at most 2 kDepth. The
  // weight still fits the L2 cache.
  int64_t chunk_elements() const {
    const int64_t taps = weight_.taps();
    const int64_t fit =
        std::max<int64_t>({1, kDepth / taps, std::min<int64_t>(kLine<A>, 2 * kDepth / taps)});
    return fit >= kSlab ? fit / kSlab * kSlab : std::bit_floor(static_cast<uint64_t>(fit));
  }

  // Returns the segments of the live taps of a tile in a chunk.
  SegmentList lay_out(const Tile& tile, const SourceView<A>& packed, const Chunk& chunk) const {
    SegmentList segments{kRunning<A>, packed.step};
    for (int64_t at = chunk.first; at < chunk.end;) {
      const int64_t slab = at / kSlab, within = at % kSlab;
      const int64_t all = std::min<int64_t>(kSlab, weight_.elements() - slab * kSlab);
      const int64_t depth = std::min(all - within, chunk.end - at);
      const auto& own = chunk.weight.first_packed;
      const int64_t width = own.has_value() ? depth : all;
      const int64_t begin =
          own.has_value() ? (at - *own) * weight_.taps() : slab * kSlab * weight_.taps() + within;
      const int64_t source = (slab - chunk.first_slab) * packed.slab_size + within * packed.step;
      for (int64_t i = 0; i < tile.rows.taps.count; ++i)
        for (int64_t j = 0; j < tile.columns.taps.count; ++j) {
          const int64_t tap = tile.rows.taps.at(i) * shape_.columns.taps + tile.columns.taps.at(j);
          segments.add({source + tile.tap_offset(i, j, packed.strides),
                        (begin + tap * width) * R::kColumns, depth},
                       packed.step, R::kColumns);
        }
      at += depth;
    }
    return segments;
  }

  // The lanes of a piece, and the addresses of the next piece's lanes for the prefetch.
  struct Piece {
    int64_t first, pixels, next[kNextLanes<R>];

    Piece(const LanePieces& pieces, int64_t s, const int64_t* lanes)
        : first(pieces.first(s)), pixels(pieces.size(s)) {
      const int64_t soon = std::min(s + 1, pieces.count - 1);
      for (int64_t l = 0; l < kNextLanes<R>; ++l)
        next[l] = lanes[pieces.first(soon) + l % pieces.size(soon)];
    }
  };

  // A tile, and what its product with a chunk reads.
  struct TileProduct {
    const Tile& tile;
    SegmentList segments;
    const A* source;
    const int64_t* lanes;  // where the pixels of the tile lie in the source
    WeightChunk<A> weight;
  };

  TileProduct tile_product(const Group& group, size_t t, const TaskSource& source,
                           const Chunk& chunk) const {
    const Tile& tile = group.tiles[t];
    return {tile, lay_out(tile, source.view, chunk), source.data,
            source.lanes.data() + group.first[t], chunk.weight};
  }

  // Multiplies a piece by a block of the weight.
  static void multiply(const TileProduct& product, const Piece& piece, int64_t block,
                       A* sums) {  // [pixels, kColumns]
    const Factors<A> factors{product.source, product.lanes + piece.first,
                             product.weight.data + block * product.weight.block_size};
    const SegmentList& segments = product.segments;
    const Prefetch<A> next{nullptr, piece.next};
    if (segments.step == 1)
      return multiply_lanes<R, 1>(piece.pixels, factors, segments, next, sums);
    // Only maps in float32 are read in place as planes.
    if constexpr (std::is_same_v<A, float> && R::kPack == 1)
      multiply_lanes<R, kPlanes>(piece.pixels, factors, segments, next, sums);
  }

  // Multiplies the pixels of a tile. The lanes of a piece stay in the L1 cache while all blocks of
  // the weight are read.
  void multiply(const TileProduct& product, int64_t blocks,
                A* sums) const {  // [blocks, pixels, kColumns]
    const int64_t pixels = product.tile.pixels;
    const LanePieces pieces(pixels, R::kLanes);
    for (int64_t s = 0; s < pieces.count; ++s) {
      const Piece piece(pieces, s, product.lanes);
      for (int64_t b = 0; b < blocks; ++b)
        multiply(product, piece, b, sums + (b * pixels + piece.first) * R::kColumns);
    }
  }

  // The same if one product has the whole depth. The sums of a few pieces at a time are stored
  // while they are still in the inner caches.
  void multiply_and_store(const Task& task, int64_t first_image, const TileProduct& product,
                          A* sums) const {  // [pixels, kColumns]
    const Places places = places_of(product.tile, first_image);
    const LanePieces pieces(product.tile.pixels, R::kLanes);
    const bool empty = product.segments.items.empty();
    const int64_t some = finished_.pixels_at_once(R::kLanes) / R::kLanes;
    for (int64_t first = 0; first < pieces.count; first += some) {
      const int64_t end = std::min(first + some, pieces.count), from = pieces.first(first);
      const int64_t pixels = pieces.first(end) - from;
      for (int64_t b = 0; b < task.blocks; ++b) {
        if (empty) std::fill_n(sums, pixels * R::kColumns, A(0));
        for (int64_t s = first; s < end; ++s) {
          const Piece piece(pieces, s, product.lanes);
          prefetch(task, places, b, piece);
          if (!empty) multiply(product, piece, b, sums + (piece.first - from) * R::kColumns);
        }
        store(task, places, b, from, pixels, sums);
      }
    }
  }

  // The offsets of the pixels of a tile in the destination and in the residual.
  struct Places {
    int64_t to[kTilePixels], residual[kTilePixels];
  };

  Places places_of(const Tile& tile, int64_t first_image) const {
    Places places;
    for (int64_t i = 0; i < tile.pixels; ++i) {
      Tile::Pixel p = tile.pixel(i);
      p.n += first_image;
      places.to[i] = tile.destination_offset(p, finished_.strides);
      places.residual[i] = tile.destination_offset(p, finished_.epilogue.residual_strides);
    }
    return places;
  }

  void store(const Task& task, int64_t first_image, const Tile& tile,
             const A* sums) const {  // [blocks, pixels, kColumns]
    const Places places = places_of(tile, first_image);
    for (int64_t b = 0; b < task.blocks; ++b)
      store(task, places, b, 0, tile.pixels, sums + b * tile.pixels * R::kColumns);
  }

  // Prefetches the destination of a piece, which loads while the piece is multiplied.
  void prefetch(const Task& task, const Places& places, int64_t b, const Piece& piece) const {
    finished_.prefetch(
        {places.to + piece.first, places.residual + piece.first, piece.pixels},
        {task.group * shape_.outer + (task.first_block + b) * R::kColumns, R::kColumns, 0});
  }

  // Stores `pixels` pixels of a block of channels.
  void store(const Task& task, const Places& places, int64_t b, int64_t first, int64_t pixels,
             const A* sums) const {  // [pixels, kColumns]
    const int64_t outer = (task.first_block + b) * R::kColumns;
    finished_.store({places.to + first, places.residual + first, pixels},
                    {task.group * shape_.outer + outer,
                     std::min<int64_t>(R::kColumns, shape_.outer - outer), R::kColumns},
                    sums);
  }

  const GatherShape shape_;
  const GatherWeight<T, R> weights_;
  const PackedWeight<R> weight_;
  const FinishedPixels<T> finished_;
  // For the images of the current steps.
  std::vector<Group> groups_;
  int64_t parts_ = 0, task_sums_ = 0, task_chunk_ = 0;
  std::optional<Workspace<A>> sums_, chunks_;
};

}  // namespace atrousx
