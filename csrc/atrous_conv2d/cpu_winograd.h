// Forward of 3x3 filters without stride on the CPU, by Winograd's minimal filtering F(2x2, 3x3): a
// tile of 2x2 outputs takes 16 multiplications a channel instead of 36,
//   Y = A^T [sum over channels (G w G^T) * (B^T x B)] A,  x: the 4x4 source pixels of the tile.
// Pixels of a tile lie the dilation apart: a dilated filter is a plain one on every phase of the
// map. Coefficients are 0, 1, -1 and 1/2: larger tiles, with larger ones, would lose accuracy.
//
// The filters are transformed once, when they are packed. A task owns some tiles and some blocks of
// destination channels: it transforms its sources, multiplies them point by point, 16 matrix
// products, and transforms the sums back as it stores them.
#pragma once

#include <vector>

#include "../tensor.h"
#include "cpu_finish.h"
#include "cpu_product.h"
#include "cpu_winograd_transforms.h"
#include "plan.h"

namespace atrousx {

inline bool winograd_serves(const GatherShape& shape) {
  const auto plain = [](const TapAxis& axis) {
    return axis.taps == 3 && axis.scale == 1 && axis.divisor == 1 && axis.step > 0;
  };
  return plain(shape.rows) && plain(shape.columns) && shape.groups == 1;
}

// The tiles along an axis, phase by phase: each by its first destination; the second, where there
// is one, lies a dilation further on.
inline std::vector<int64_t> winograd_tiles(const TapAxis& axis) {
  std::vector<int64_t> firsts;
  for (int64_t phase = 0; phase < std::min(axis.step, axis.destinations); ++phase)
    for (int64_t d = phase; d < axis.destinations; d += 2 * axis.step) firsts.push_back(d);
  return firsts;
}

// Source and destination have their channels side by side.
template <typename R>
class CpuWinograd {
  using A = typename R::A;
  // Of a task. Each point's sources and a block of its filters should fit the L2 cache; more tiles
  // read the filters less often.
  static constexpr int64_t kMostTiles = 112, kLeastTiles = 28;
  static constexpr int64_t kDepth = 512;  // channels of one product

 public:
  // weight: by WinogradWeight<R>(shape).
  CpuWinograd(const GatherShape& shape, const A* weight, const Epilogue<A>& epilogue)
      : shape_(shape),
        weight_(shape),
        packed_(weight),
        epilogue_(epilogue),
        rows_(winograd_tiles(shape.rows)),
        columns_(winograd_tiles(shape.columns)),
        nothing_(shape.inner, A(0)) {}

  // source: [N, inner, source rows, source columns]; destination: [N, outer, rows, columns].
  void run(const A* source, const Strides4& from, A* destination, const Strides4& to,
           const Tensor& like) const {
    const int64_t tiles = shape_.batch * tiles_of_image(), blocks = weight_.blocks();
    const int64_t threads = torch::stable::get_num_threads();
    const int64_t even = ceil_div(ceil_div(tiles, kMostTiles), threads) * threads;
    const int64_t chunks = std::clamp<int64_t>(tiles / kLeastTiles, 1, even);
    const int64_t parts = std::min(blocks, ceil_div(threads, chunks));
    const int64_t most_tiles = ceil_div(tiles, chunks), most_blocks = ceil_div(blocks, parts);
    const int64_t sources = kWinogradPoints * WinogradSources{shape_.inner, most_tiles}.plane();
    const int64_t worker_size = sources + kWinogradPoints * sum_plane(most_tiles, most_blocks);
    const Tensor memory = scratch(like, cpu_workers(chunks * parts) * worker_size);
    A* const scratches = static_cast<A*>(memory.mutable_data_ptr());
    prefer_huge_pages(scratches, memory.numel() * static_cast<int64_t>(sizeof(A)));
    for_each_task(chunks * parts, [&](int64_t task, int64_t worker) {
      const int64_t chunk = task / parts, part = task % parts;
      const int64_t first = chunk * tiles / chunks, first_block = part * blocks / parts;
      const Task t{first, (chunk + 1) * tiles / chunks - first, first_block,
                   (part + 1) * blocks / parts - first_block};
      A* const transformed = scratches + worker * worker_size;
      A* const sums = transformed + sources;
      transform_sources(t, source, from, transformed);
      multiply(t, transformed, sums);
      store(t, sums, destination, to);
    });
  }

 private:
  struct Task {
    int64_t first, tiles, first_block, blocks;
  };
  struct Place {
    int64_t n, row, column;  // of a tile's first destination
  };

  int64_t tiles_of_image() const { return static_cast<int64_t>(rows_.size() * columns_.size()); }

  Place place(int64_t tile) const {
    const int64_t width = static_cast<int64_t>(columns_.size());
    return {tile / tiles_of_image(), rows_[tile % tiles_of_image() / width],
            columns_[tile % width]};
  }

  static int64_t sum_plane(int64_t tiles, int64_t blocks) {
    return tiles * blocks * R::kColumns + kLine<A>;
  }

  void transform_sources(const Task& task, const A* source, const Strides4& from,
                         A* to) const {  // WinogradSources
    const WinogradSources size{shape_.inner, task.tiles};
    for (int64_t t = 0; t < task.tiles; ++t) {
      const Place p = place(task.first + t);
      const A* pixels[kWinogradPoints];
      for (int i = 0; i < 4; ++i)
        for (int j = 0; j < 4; ++j) {
          const int64_t h = p.row + shape_.rows.offset + i * shape_.rows.step;
          const int64_t w = p.column + shape_.columns.offset + j * shape_.columns.step;
          const bool live =
              h >= 0 && h < shape_.rows.sources && w >= 0 && w < shape_.columns.sources;
          pixels[4 * i + j] = live ? source + from.offset(p.n, 0, h, w) : nothing_.data();
        }
      run_with_lanes<TransformSource>(static_cast<const A* const*>(pixels), size,
                                      to + t * size.width());
    }
  }

  // Lanes are tiles. A point's sources and a block of its filters stay in the L2 cache, some
  // channels at a time.
  void multiply(const Task& task, const A* sources,  // WinogradSources
                A* sums) const {                     // [points, blocks, tiles, kColumns]
    const WinogradSources size{shape_.inner, task.tiles};
    std::vector<int64_t> lanes(task.tiles);
    for (int64_t t = 0; t < task.tiles; ++t) lanes[t] = t * size.width();
    const int64_t block_sums = task.tiles * R::kColumns;
    for (int64_t point = 0; point < kWinogradPoints; ++point) {
      A* point_sums = sums + point * sum_plane(task.tiles, task.blocks);
      std::fill_n(point_sums, task.blocks * block_sums, A(0));
      for (int64_t first = 0; first < shape_.inner; first += kDepth) {
        std::vector<SegmentList> slabs;
        for (int64_t c = first; c < std::min(first + kDepth, shape_.inner); c += size.width()) {
          slabs.emplace_back();
          slabs.back().add({c / size.width() * size.slab_size(), c * R::kColumns,
                            std::min(size.width(), shape_.inner - c)},
                           1, R::kColumns);
        }
        for (int64_t b = 0; b < task.blocks; ++b)
          multiply(
              slabs, sources + point * size.plane(), lanes,
              packed_ + (point * weight_.blocks() + task.first_block + b) * weight_.block_size(),
              point_sums + b * block_sums);
      }
    }
  }

  void multiply(const std::vector<SegmentList>& slabs, const A* sources,
                const std::vector<int64_t>& lanes, const A* filters,
                A* sums) const {  // [tiles, kColumns]
    const LanePieces pieces(static_cast<int64_t>(lanes.size()), R::kLanes);
    for (int64_t s = 0; s < pieces.count; ++s) {
      const int64_t soon = std::min(s + 1, pieces.count - 1);
      int64_t next[kNextLanes<R>];
      for (int64_t l = 0; l < kNextLanes<R>; ++l)
        next[l] = lanes[pieces.first(soon) + l % pieces.size(soon)];
      for (const SegmentList& slab : slabs)
        multiply_lanes<R, 1>(pieces.size(s), sources, lanes.data() + pieces.first(s), filters, slab,
                             next, sums + pieces.first(s) * R::kColumns);
    }
  }

  void store(const Task& task, const A* sums,  // [points, blocks, tiles, kColumns]
             A* destination, const Strides4& to) const {
    const TapAxis &rows = shape_.rows, &columns = shape_.columns;
    const Strides4& added = epilogue_.residual_strides;
    A outputs[4 * R::kColumns];
    for (int64_t b = 0; b < task.blocks; ++b) {
      const int64_t channel = (task.first_block + b) * R::kColumns;
      const int64_t channels = std::min<int64_t>(R::kColumns, shape_.outer - channel);
      for (int64_t t = 0; t < task.tiles; ++t) {
        const Place p = place(task.first + t);
        run_with_lanes<TransformSums>(sums + (b * task.tiles + t) * R::kColumns,
                                      sum_plane(task.tiles, task.blocks), channels,
                                      static_cast<A*>(outputs));
        for (int i = 0; i < 2; ++i)
          for (int j = 0; j < 2; ++j) {
            const int64_t h = p.row + i * rows.step, w = p.column + j * columns.step;
            if (h >= rows.destinations || w >= columns.destinations) continue;
            const A* residual = epilogue_.residual;
            if (residual != nullptr) residual += added.offset(p.n, channel, h, w);
            const A* bias = epilogue_.bias == nullptr ? nullptr : epilogue_.bias + channel;
            run_with_lanes<FinishPixel>(static_cast<const A*>(outputs + (2 * i + j) * channels),
                                        channels,
                                        PixelTail<A>{bias, residual, added.c, epilogue_.relu},
                                        destination + to.offset(p.n, channel, h, w));
          }
      }
    }
  }

  const GatherShape shape_;
  const WinogradWeight<R> weight_;
  const A* const packed_;
  const Epilogue<A> epilogue_;
  const std::vector<int64_t> rows_, columns_;  // tiles
  const std::vector<A> nothing_;               // [inner], what padding holds
};

}  // namespace atrousx
