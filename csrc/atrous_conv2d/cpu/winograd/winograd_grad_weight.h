// Grad-weight of 3x3 filters without stride on the CPU by minimal filtering (winograd_plan.h). It
// is the transpose of the forward product:
//   grad of a filter's point = sum over tiles of (transformed sources) x (transformed gradient)
// Transformed maps would be several times as large as the maps. So every task transforms the tiles
// that it reads itself, a few at a time, and these stay in the L2 cache.
#pragma once

#include <vector>

#include "atrous_conv2d/cpu/gemm/microkernel.h"
#include "atrous_conv2d/cpu/gemm/packed_map.h"
#include "atrous_conv2d/cpu/winograd/tile_transforms.h"

namespace atrousx {

// Input channels of a grad-weight task.
template <typename R>
constexpr int kGradWeightSlab = 8 * R::kLanes;

template <typename R>
class WinogradGradWeight {
  using A = typename R::A;
  static constexpr int64_t kTaskPoints = 768;  // most points transformed at a time

 public:
  WinogradGradWeight(const GatherShape& forward, WinogradPoints points)
      : rows_(forward.rows), columns_(forward.columns), points_(points) {
    const auto row_tiles = winograd_tiles(rows_, points[0]);
    const auto column_tiles = winograd_tiles(columns_, points[1]);
    for (const WinogradTiles& r : row_tiles)
      for (const WinogradTiles& c : column_tiles) groups_.push_back({r, c});
  }

  int64_t filters() const { return winograd_filters(points_); }
  int64_t tiles() const {  // per image
    int64_t count = 0;
    for (const Group& group : groups_) count += group.tiles();
    return count;
  }

  // A task's share of the sums: some channels of a slab times some blocks of outputs.
  struct Part {
    SourceView<A> lanes, columns;  // from the first channel and the first output on
    int64_t width;                 // channels of a pixel in the slab
    int64_t channels, blocks;
    int64_t filter_sums, block_sums;  // the distance from one to the next
  };

  // Adds to sums the products of every point over tiles [first, last) of the images. Tiles are
  // numbered group by group.
  void add(const Part& part, int64_t images, int64_t first, int64_t last, A* sums) const {
    Transformed memory;
    int64_t begin = 0;
    for (const Group& group : groups_) {
      const int64_t end = begin + images * group.tiles(), most = kTaskPoints / group.points();
      const int64_t to = std::min(last, end);
      for (int64_t t = std::max(first, begin); t < to; t += most)
        add(part, group, t - begin, std::min(most, to - t), memory, sums);
      begin = end;
    }
  }

  // Transforms sums of filter points to sums of taps: the first nine, `plane` numbers each.
  void transform_back(A* sums, int64_t plane) const {
    with_forms<false>(points_, [&](auto rows, auto columns) {
      run_with_lanes<TransformFilterGradients<rows.value, columns.value>::template Loop>(sums,
                                                                                         plane);
    });
  }

 private:
  struct Group {
    WinogradTiles rows, columns;

    int64_t tiles() const {
      return static_cast<int64_t>(rows.firsts.size() * columns.firsts.size());
    }
    int64_t points() const { return int64_t{rows.tile.points()} * columns.tile.points(); }
  };

  // The transformed tiles of a few channels of both maps.
  struct Transformed {
    std::vector<A> sources, gradients;
  };

  void add(const Part& part, const Group& group, int64_t first, int64_t tiles, Transformed& memory,
           A* sums) const {
    std::vector<A>&sources = memory.sources, &gradients = memory.gradients;
    // An extra cache line, because planes a power of two apart would share few cache sets.
    const int64_t points = group.points(), source_plane = tiles * part.width + kLine<A>;
    const int64_t plane = tiles * R::kColumns + kLine<A>;
    sources.resize(points * source_plane);
    gradients.resize(part.blocks * points * plane);
    const WinogradOffsets from(rows_, columns_, group.rows, group.columns, first, tiles);
    const auto at_source = from.sources(part.lanes.strides);
    const auto at_gradient = from.destinations(part.columns.strides);
    const int columns = group.columns.tile.points();
    const auto planes = [&](int64_t plane) { return TilePlanes{columns * plane, plane}; };
    with_tiles<false>(group.rows.tile, group.columns.tile, [&](auto r, auto c) {
      run_with_lanes<TransformSources<decltype(r), decltype(c)>::template Loop>(
          TilePixels<A>{part.lanes.data, at_source.data(), tiles, part.channels}, part.width,
          planes(source_plane), sources.data());
      for (int64_t b = 0; b < part.blocks; ++b)
        run_with_lanes<TransformGradients<decltype(r), decltype(c)>::template Loop>(
            TilePixels<A>{part.columns.data + b * part.columns.slab_size, at_gradient.data(), tiles,
                          R::kColumns},
            int64_t{R::kColumns}, planes(plane), gradients.data() + b * points * plane);
    });
    for (int64_t own = 0; own < points; ++own) {
      const int64_t filter = winograd_filter(own / columns, own % columns, points_);
      for (int64_t b = 0; b < part.blocks; ++b)
        multiply(part, sources.data() + own * source_plane,
                 gradients.data() + (b * points + own) * plane, tiles,
                 sums + filter * part.filter_sums + b * part.block_sums);
    }
  }

  // The lanes are channels, the depth is tiles.
  static void multiply(const Part& part, const A* sources, const A* gradients, int64_t tiles,
                       A* sums) {  // [channels, kColumns]
    SegmentList segments{kRunning<A>};
    segments.items.push_back({0, 0, tiles});
    const LanePieces pieces(part.channels, R::kLanes);
    for (int64_t s = 0; s < pieces.count; ++s)
      multiply_lanes<R, kGradWeightSlab<R>>(
          pieces.size(s),
          {sources + pieces.first(s), kEquallySpaced<R::kLanes, 1>.data(), gradients}, segments, {},
          sums + pieces.first(s) * R::kColumns);
  }

  const TapAxis rows_, columns_;
  const WinogradPoints points_;
  std::vector<Group> groups_;
};

}  // namespace atrousx
