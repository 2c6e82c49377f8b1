// Forward and grad-input of 3x3 filters without stride on the CPU by minimal filtering
// (winograd_plan.h).
//
// One task owns some tiles and a few blocks of destination channels. It goes through the source
// channels slab by slab. It transforms a slab, multiplies point by point (each point is an indirect
// matrix product, microkernel.h), and at the end transforms the sums back. Its transformed sources
// and sums are about as large as the L2 cache. The transformed maps never exist as a whole.
#pragma once

#include <memory>
#include <numeric>
#include <vector>

#include "atrous_conv2d/cpu/gemm/epilogue.h"
#include "atrous_conv2d/cpu/indirect/source_steps.h"
#include "atrous_conv2d/cpu/winograd/winograd_weight.h"
#include "cpu/workspace.h"
#include "tensor.h"

namespace atrousx {

// T is the type of the maps. Transforms, products and sums use R's type.
template <typename T, typename R>
class CpuWinograd {
  using A = typename R::A;
  static constexpr bool kHalf = !std::is_same_v<T, A>;
  static constexpr int64_t kTaskLanes = 150;    // register tiles per task, over all points
  static constexpr int64_t kLeastLanes = 14;    // the same if there are few tasks
  static constexpr int64_t kTaskColumns = 256;  // most channels per task
  static constexpr int64_t kFewChannels = 512, kFewest = 128;

 public:
  // packed_weight: packed by WinogradWeight<R>(shape, points).
  CpuWinograd(const GatherShape& shape, WinogradPoints points,
              std::shared_ptr<const A> packed_weight, const Epilogue<T>& epilogue, T* destination,
              const Strides4& destination_strides)
      : shape_(shape),
        weight_(shape, points),
        packed_weight_(std::move(packed_weight)),
        rows_(without_mirror(shape.rows)),
        columns_(without_mirror(shape.columns)),
        row_points_(winograd_most_points(points[0])),
        column_points_(winograd_most_points(points[1])),
        row_tiles_(winograd_tiles(rows_, points[0])),
        column_tiles_(winograd_tiles(columns_, points[1])),
        finished_{epilogue, destination, destination_strides},
        order_(this->points()) {
    std::iota(order_.begin(), order_.end(), 0);
    std::stable_sort(order_.begin(), order_.end(),
                     [&](int64_t a, int64_t b) { return filters_at(0, a) < filters_at(0, b); });
  }

  // The caller passes the steps of a set of images in order, from first to last.
  void multiply(const GatherStep& step, const SourceView<T>& source) {
    if (step.first) plan(step);
    A* const sums = sums_->data();
    A* const scratches = scratch_->data();
    const bool whole = step.first && step.last;
    for_each_task(static_cast<int64_t>(tasks_.size()), [&](int64_t number, int64_t worker) {
      const Task& task = tasks_[number];
      A* const own = sums + (whole ? worker : number) * task_sums_;
      A* const scratch = scratches + worker * scratch_size_;
      add(task, step, source, scratch, own);
      if (step.last) store(task, step.first_image, own, scratch);
    });
  }

 private:
  // Equal tiles of a task: tiles [first, first + tiles) of these rows and columns, across the
  // batch. Within the task they are numbered from `begin` on.
  struct Run {
    const WinogradTiles *rows, *columns;
    int64_t first, tiles, begin;

    int64_t destinations() const { return tiles * rows->tile.pixels * columns->tile.pixels; }
  };
  struct Task {
    std::vector<Run> runs;
    int64_t tiles, first_block, blocks;
  };

  WinogradOffsets offsets(const Run& run) const {
    return {rows_, columns_, *run.rows, *run.columns, run.first, run.tiles};
  }

  int64_t points() const { return row_points_ * column_points_; }
  // Size of the sums of one point. It includes an extra cache line, because planes a power of two
  // apart would share few cache sets.
  int64_t plane(const Task& task) const {
    return task.blocks * task.tiles * R::kColumns + kLine<A>;
  }
  TilePlanes planes(int64_t plane) const { return {column_points_ * plane, plane}; }

  // Divides the work on a step's images among tasks, and allocates memory for their sums and
  // transforms. With several steps each task keeps its sums from step to step. With one step the
  // sums belong to the worker.
  void plan(const GatherStep& step) {
    const int64_t wanted = 2 * torch::stable::get_num_threads();
    int64_t columns = kTaskColumns, lanes = kTaskLanes;
    make_tasks(step.images, columns, lanes);
    while (static_cast<int64_t>(tasks_.size()) < wanted &&
           (columns > R::kColumns || lanes > kLeastLanes)) {
      (columns > R::kColumns ? columns : lanes) /= 2;
      make_tasks(step.images, columns, lanes);
    }
    task_sums_ = scratch_size_ = 0;
    for (const Task& task : tasks_) {
      int64_t destinations = 0;
      for (const Run& run : task.runs) destinations += run.destinations();
      task_sums_ = std::max(task_sums_, points() * plane(task));
      scratch_size_ = std::max(
          {scratch_size_, points() * (task.tiles * kSlab + kLine<A>), destinations * R::kColumns});
    }
    const int64_t tasks = static_cast<int64_t>(tasks_.size()), workers = cpu_workers(tasks);
    sums_.emplace((step.first && step.last ? workers : tasks) * task_sums_);
    scratch_.emplace(workers * scratch_size_);
  }

  // Makes tasks of at most `columns` destination channels and `lanes` register tiles. Tasks that
  // share filters follow one another.
  void make_tasks(int64_t images, int64_t columns, int64_t lanes) {
    tasks_.clear();
    const std::vector<Run> runs = all_runs(images);
    const int64_t tiles = runs.back().begin + runs.back().tiles, blocks = weight_.blocks();
    const int64_t parts = ceil_div(blocks, std::max<int64_t>(1, columns / R::kColumns));
    const int64_t most = R::kLanes * std::clamp<int64_t>(lanes / points(), 1, 32);
    const int64_t chunks = ceil_div(tiles, most);
    for (int64_t part = 0; part < parts; ++part)
      for (int64_t i = 0; i < chunks; ++i) {
        const int64_t begin = i * tiles / chunks, end = (i + 1) * tiles / chunks;
        const int64_t first_block = part * blocks / parts;
        Task task{{}, end - begin, first_block, (part + 1) * blocks / parts - first_block};
        for (const Run& run : runs) {
          const int64_t from = std::max(begin, run.begin);
          const int64_t to = std::min(end, run.begin + run.tiles);
          if (from < to)
            task.runs.push_back(
                {run.rows, run.columns, run.first + from - run.begin, to - from, from - begin});
        }
        tasks_.push_back(std::move(task));
      }
  }

  // All tiles. The order of the columns alternates, so that runs with a common point are mostly
  // neighbours.
  std::vector<Run> all_runs(int64_t images) const {
    std::vector<Run> runs;
    int64_t begin = 0;
    const size_t width = column_tiles_.size();
    for (size_t i = 0; i < row_tiles_.size(); ++i)
      for (size_t j = 0; j < width; ++j) {
        const WinogradTiles &rows = row_tiles_[i],
                            &columns = column_tiles_[i % 2 == 0 ? width - 1 - j : j];
        const int64_t tiles =
            images * static_cast<int64_t>(rows.firsts.size() * columns.firsts.size());
        runs.push_back({&rows, &columns, 0, tiles, begin});
        begin += tiles;
      }
    return runs;
  }

  // The tiles of a task that have a point, as ranges of neighbours.
  static std::vector<std::array<int64_t, 2>> tiles_with(const Task& task, int row, int column) {
    std::vector<std::array<int64_t, 2>> ranges;
    for (const Run& run : task.runs) {
      if (row >= run.rows->tile.points() || column >= run.columns->tile.points()) continue;
      if (!ranges.empty() && ranges.back()[1] == run.begin)
        ranges.back()[1] += run.tiles;
      else
        ranges.push_back({run.begin, run.begin + run.tiles});
    }
    return ranges;
  }

  // How many products are summed in registers. Products of transformed numbers are larger than
  // plain ones, so longer sums would round more than PyTorch's. With few channels the sums must be
  // shorter, with pairs the shortest.
  int64_t running() const {
    const bool pairs = weight_.points == WinogradPoints{WinogradForm::kPairs, WinogradForm::kPairs};
    const bool few = shape_.inner < kFewChannels;
    if (pairs) return few ? 16 : 32;
    return (traits(weight_.points[0]).whole_phase && few) || shape_.inner <= kFewest ? 32 : 64;
  }

  // Adds the products of the step's channels to sums. scratch: [points, tiles, width].
  void add(const Task& task, const GatherStep& step, const SourceView<T>& source, A* scratch,
           A* sums) const {
    std::vector<std::vector<int64_t>> from;
    for (const Run& run : task.runs) from.push_back(offsets(run).sources(source.strides));
    const int64_t width = std::min<int64_t>(kSlab, shape_.inner);
    const Transformed transformed{scratch, width, task.tiles * width + kLine<A>};
    const int64_t last = step.first_slab + step.slabs - 1;
    for (int64_t slab = step.first_slab; slab <= last; ++slab) {
      const T* channels = source.data + (slab - step.first_slab) * source.slab_size;
      for (size_t i = 0; i < task.runs.size(); ++i)
        transform(task.runs[i], {channels, from[i].data(), task.runs[i].tiles, channels_of(slab)},
                  transformed);
      for (size_t i = 0; i < order_.size(); ++i) {
        const int64_t point = order_[i];
        SegmentList segments{running(), 1, slab == 0};
        for (int64_t c = 0; c < channels_of(slab); c += running())
          segments.items.push_back({point * transformed.plane + c,
                                    filters_at(slab, point) + c * R::kColumns,
                                    std::min(running(), channels_of(slab) - c)});
        const int64_t after = i + 1 < order_.size()
                                  ? filters_at(slab, order_[i + 1])
                                  : filters_at(std::min(slab + 1, last), order_[0]);
        for (const auto& [first, end] : tiles_with(task, row_of(point), column_of(point)))
          multiply(task, segments, transformed, {first, end - first}, after,
                   sums + point * plane(task));
      }
    }
  }

  // The transformed sources of a task, [points, tiles, width]. `plane`: from one point to the next.
  struct Transformed {
    A* data;
    int64_t width, plane;
  };

  void transform(const Run& run, const TilePixels<T>& from, const Transformed& to) const {
    with_tiles<kHalf>(run.rows->tile, run.columns->tile, [&](auto rows, auto columns) {
      run_with_lanes<TransformSources<decltype(rows), decltype(columns)>::template Loop>(
          from, to.width, planes(to.plane), to.data + run.begin * to.width);
    });
  }

  // Where the filters of a slab and a point begin, within a block.
  int64_t filters_at(int64_t slab, int64_t point) const {
    const int64_t number = winograd_filter(row_of(point), column_of(point), weight_.points);
    return (slab * kSlab * weight_.count() + number * channels_of(slab)) * R::kColumns;
  }
  int row_of(int64_t point) const { return static_cast<int>(point / column_points_); }
  int column_of(int64_t point) const { return static_cast<int>(point % column_points_); }

  int64_t channels_of(int64_t slab) const {
    return std::min<int64_t>(kSlab, shape_.inner - slab * kSlab);
  }

  struct TileRange {
    int64_t first, count;
  };

  // The lanes of the product are tiles. Meanwhile it prefetches the filters that follow: those of
  // the next block or, after the last block, those at `after` in the first block.
  void multiply(const Task& task, const SegmentList& segments, const Transformed& sources,
                const TileRange& tiles, int64_t after,
                A* sums) const {  // [blocks, task.tiles, kColumns]
    // A slab's product prefetches kSlab elements from each address, so addresses lie kSlab apart.
    constexpr auto& kLines = kEquallySpaced<kNextLanes<R>, kSlab>;
    const LanePieces pieces(tiles.count, R::kLanes);
    const A* const all = packed_weight_.get() + task.first_block * weight_.block_size();
    for (int64_t b = 0; b < task.blocks; ++b) {
      const A* filters = all + b * weight_.block_size();
      const A* next = b + 1 < task.blocks
                          ? filters + weight_.block_size() + segments.items[0].columns
                          : all + after;
      for (int64_t s = 0; s < pieces.count; ++s) {
        const int64_t first = tiles.first + pieces.first(s);
        int64_t lanes[R::kLanes];
        for (int64_t l = 0; l < pieces.size(s); ++l) lanes[l] = (first + l) * sources.width;
        multiply_lanes<R, 1>(pieces.size(s), {sources.data, lanes, filters}, segments,
                             {next + s * kNextLanes<R> * kSlab, kLines.data()},
                             sums + (b * task.tiles + first) * R::kColumns);
      }
    }
  }

  // Where the destinations of a task go, in memory order. In NCHW the neighbours in a row thus come
  // together.
  struct Outputs {
    std::vector<int64_t> to, residual;
    std::vector<int64_t> rows;  // the index of each destination among these, tile after tile
  };
  Outputs outputs(const Task& task, int64_t first_image) const {
    const Strides4& added = finished_.epilogue.residual_strides;
    std::vector<std::array<int64_t, 3>> pixels;  // destination, residual, number
    for (const Run& run : task.runs) {
      const std::vector<int64_t> to = offsets(run).destinations(finished_.strides);
      const std::vector<int64_t> residual = offsets(run).destinations(added);
      for (size_t i = 0; i < to.size(); ++i)
        pixels.push_back({to[i] + first_image * finished_.strides.n,
                          residual[i] + first_image * added.n,
                          static_cast<int64_t>(pixels.size())});
    }
    std::sort(pixels.begin(), pixels.end());
    Outputs result;
    result.rows.resize(pixels.size());
    for (const auto& [to, residual, number] : pixels) {
      result.rows[number] = static_cast<int64_t>(result.to.size());
      result.to.push_back(to);
      result.residual.push_back(residual);
    }
    return result;
  }

  void store(const Task& task, int64_t first_image, const A* sums, A* finished) const {
    const Outputs all = outputs(task, first_image);
    const PixelPlaces places{all.to.data(), all.residual.data(),
                             static_cast<int64_t>(all.to.size())};
    for (int64_t b = 0; b < task.blocks; ++b) {
      const int64_t* rows = all.rows.data();
      for (const Run& run : task.runs) {
        transform_back(run, sums + (b * task.tiles + run.begin) * R::kColumns, plane(task), rows,
                       finished);
        rows += run.destinations();
      }
      const int64_t channel = (task.first_block + b) * R::kColumns;
      finished_.store(
          places, {channel, std::min<int64_t>(R::kColumns, shape_.outer - channel), R::kColumns},
          static_cast<const A*>(finished));
    }
  }

  void transform_back(const Run& run, const A* sums, int64_t plane, const int64_t* rows,
                      A* finished) const {
    with_tiles<kHalf>(run.rows->tile, run.columns->tile, [&](auto row_tile, auto column_tile) {
      run_with_lanes<TransformSums<decltype(row_tile), decltype(column_tile)>::template Loop>(
          sums, planes(plane), run.tiles, int64_t{R::kColumns}, rows, finished);
    });
  }

  const GatherShape shape_;
  const WinogradWeight<R> weight_;
  const std::shared_ptr<const A> packed_weight_;
  const TapAxis rows_, columns_;
  const int64_t row_points_, column_points_;  // of the largest tile
  const std::vector<WinogradTiles> row_tiles_, column_tiles_;
  const FinishedPixels<T> finished_;
  std::vector<int64_t> order_;  // of points; those that share a filter follow one another
  // For the current images.
  std::vector<Task> tasks_;
  int64_t task_sums_ = 0, scratch_size_ = 0;
  std::optional<Workspace<A>> sums_, scratch_;
};

}  // namespace atrousx
