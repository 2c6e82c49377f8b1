// Forward and grad-input of 3x3 filters without stride on the CPU by minimal filtering
// (winograd.h).
//
// One task owns some tiles that have the same points, and a few blocks of destination channels. It
// walks through the source channels: it transforms a slab of them, multiplies these point by
// point, an indirect matrix product each (cpu_product.h), and transforms the sums back at the end.
// Transformed sources and sums stay in the L2 cache; neither is ever whole in memory.
#pragma once

#include <vector>

#include "../tensor.h"
#include "cpu_finish.h"
#include "cpu_gather_steps.h"
#include "cpu_winograd_weight.h"

namespace atrousx {

template <typename R>
class CpuWinograd {
  using A = typename R::A;
  static constexpr int64_t kTaskLanes = 112;    // register tiles of a task, over all points
  static constexpr int64_t kLeastLanes = 14;    // the same where tasks are few
  static constexpr int64_t kTaskColumns = 128;  // channels of a task, at most

 public:
  // packed_weight: by WinogradWeight<R>(shape, points).
  CpuWinograd(const GatherShape& shape, WinogradPoints points, const Tensor& packed_weight,
              const Epilogue<A>& epilogue, A* destination, const Strides4& destination_strides)
      : shape_(shape),
        weight_(shape, points),
        packed_weight_(packed_weight),
        rows_(without_mirror(shape.rows)),
        columns_(without_mirror(shape.columns)),
        row_tiles_(winograd_tiles(rows_, points[0])),
        column_tiles_(winograd_tiles(columns_, points[1])),
        finished_{epilogue, destination, destination_strides} {}

  // The steps of some images come in order, first to last.
  void multiply(const GatherStep& step, const SourceView<A>& source) {
    if (step.first) plan(step);
    A* const sums = static_cast<A*>(sums_->mutable_data_ptr());
    A* const scratches = static_cast<A*>(scratch_->mutable_data_ptr());
    const bool whole = step.first && step.last;
    for_each_task(static_cast<int64_t>(tasks_.size()), [&](int64_t number, int64_t worker) {
      const Task& task = tasks_[number];
      A* const own = sums + (whole ? worker : number) * task_sums_;
      A* const scratch = scratches + worker * scratch_size_;
      if (step.first) std::fill_n(own, task.sums(), A(0));
      add(task, step, source, scratch, own);
      if (step.last) store(task, step.first_image, own, scratch);
    });
  }

 private:
  struct Task {
    const WinogradTiles *rows, *columns;
    int64_t first, tiles;  // of these rows and columns, across the batch
    int64_t first_block, blocks;

    int points() const { return rows->points * columns->points; }
    // Of a point's sums. A cache line more than is needed: planes a power of two apart would share
    // few cache sets.
    int64_t plane() const { return blocks * tiles * R::kColumns + kLine<A>; }
    int64_t sums() const { return points() * plane(); }
    int64_t destinations() const {
      return winograd_destinations(rows->points) * winograd_destinations(columns->points);
    }
  };

  WinogradOffsets offsets(const Task& task) const {
    return {rows_, columns_, *task.rows, *task.columns, task.first, task.tiles};
  }

  // Divides the work on a step's images among tasks, and makes room for what they sum and
  // transform: a task's sums are kept from step to step, a worker's where there is but one.
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
      task_sums_ = std::max(task_sums_, task.sums());
      scratch_size_ = std::max({scratch_size_, task.points() * (task.tiles * kSlab + kLine<A>),
                                (task.destinations() * task.tiles + 1) * R::kColumns});
    }
    const int64_t tasks = static_cast<int64_t>(tasks_.size()), workers = cpu_workers(tasks);
    sums_ = scratch(packed_weight_, (step.first && step.last ? workers : tasks) * task_sums_);
    scratch_ = scratch(packed_weight_, workers * scratch_size_);
  }

  // Tasks of at most so many destination channels and register tiles; those that share filters come
  // together, the largest first.
  void make_tasks(int64_t images, int64_t columns, int64_t lanes) {
    tasks_.clear();
    const int64_t blocks = weight_.blocks();
    const int64_t parts = ceil_div(blocks, std::max<int64_t>(1, columns / R::kColumns));
    for (int64_t part = 0; part < parts; ++part)
      for (const WinogradTiles& rows : row_tiles_)
        for (const WinogradTiles& columns_of : column_tiles_) {
          const int64_t tiles =
              images * static_cast<int64_t>(rows.firsts.size() * columns_of.firsts.size());
          const int64_t most =
              R::kLanes * std::clamp<int64_t>(lanes / (rows.points * columns_of.points), 1, 32);
          const int64_t chunks = ceil_div(tiles, most), first_block = part * blocks / parts;
          for (int64_t i = 0; i < chunks; ++i)
            tasks_.push_back({&rows, &columns_of, i * tiles / chunks,
                              (i + 1) * tiles / chunks - i * tiles / chunks, first_block,
                              (part + 1) * blocks / parts - first_block});
        }
  }

  // Products of transformed numbers are larger than plain ones: longer sums in registers would
  // round more than PyTorch's.
  int64_t running() const { return weight_.count() == kPairPoints * kPairPoints ? 32 : 64; }

  // sums += the products of the step's channels; scratch: [points, tiles, width].
  void add(const Task& task, const GatherStep& step, const SourceView<A>& source, A* scratch,
           A* sums) const {
    const std::vector<int64_t> from = offsets(task).sources(source.strides);
    const int64_t width = std::min<int64_t>(kSlab, shape_.inner);
    const int64_t plane = task.tiles * width + kLine<A>;
    const int64_t points = task.points(), last = step.first_slab + step.slabs - 1;
    for (int64_t slab = step.first_slab; slab <= last; ++slab) {
      with_tile_points(task.rows->points, task.columns->points, [&](auto rows, auto columns) {
        run_with_lanes<TransformSources<rows, columns>::template Loop>(
            source.data + (slab - step.first_slab) * source.slab_size, from.data(), task.tiles,
            channels_of(slab), width, plane, scratch);
      });
      for (int64_t own = 0; own < points; ++own) {
        SegmentList segments{running()};
        for (int64_t c = 0; c < channels_of(slab); c += running())
          segments.items.push_back({own * plane + c, filters_at(task, slab, own) + c * R::kColumns,
                                    std::min(running(), channels_of(slab) - c)});
        const int64_t after = own + 1 < points ? filters_at(task, slab, own + 1)
                                               : filters_at(task, std::min(slab + 1, last), 0);
        multiply(task, segments, scratch, width, after, sums + own * task.plane());
      }
    }
  }

  // Where a block's filters of a slab begin, of a task's point.
  int64_t filters_at(const Task& task, int64_t slab, int64_t own) const {
    const int64_t point = filter_point(own, task.columns->points, weight_.points);
    return (slab * kSlab * weight_.count() + point * channels_of(slab)) * R::kColumns;
  }

  int64_t channels_of(int64_t slab) const {
    return std::min<int64_t>(kSlab, shape_.inner - slab * kSlab);
  }

  // Lanes are tiles. Meanwhile the filters that follow are prefetched: the next block's, or those
  // `after` them of the first.
  void multiply(const Task& task, const SegmentList& segments, const A* sources, int64_t width,
                int64_t after, A* sums) const {  // [blocks, tiles, kColumns]
    // Lines as far apart as a slab's rows prefetch of each.
    constexpr auto& kLines = kEquallySpaced<kNextLanes<R>, kSlab>;
    const LanePieces pieces(task.tiles, R::kLanes);
    const A* const all = static_cast<const A*>(packed_weight_.const_data_ptr()) +
                         task.first_block * weight_.block_size();
    for (int64_t b = 0; b < task.blocks; ++b) {
      const A* filters = all + b * weight_.block_size();
      const A* next = b + 1 < task.blocks
                          ? filters + weight_.block_size() + segments.items[0].columns
                          : all + after;
      for (int64_t s = 0; s < pieces.count; ++s) {
        int64_t lanes[R::kLanes];
        for (int64_t l = 0; l < pieces.size(s); ++l) lanes[l] = (pieces.first(s) + l) * width;
        multiply_lanes<R, 1>(pieces.size(s), sources, lanes, filters, segments,
                             {next + s * kNextLanes<R> * kSlab, kLines.data()},
                             sums + (b * task.tiles + pieces.first(s)) * R::kColumns);
      }
    }
  }

  void store(const Task& task, int64_t first_image, const A* sums, A* outputs) const {
    const std::vector<int64_t> all = offsets(task).destinations(finished_.strides);
    const Strides4& added = finished_.epilogue.residual_strides;
    const std::vector<int64_t> residuals = offsets(task).destinations(added);
    // In the order of memory: neighbours in a row come together where channels are planes.
    std::vector<std::pair<int64_t, int64_t>> pixels;  // destination, number among all
    for (size_t i = 0; i < all.size(); ++i)
      if (all[i] >= 0) pixels.push_back({all[i] + first_image * finished_.strides.n, i});
    std::sort(pixels.begin(), pixels.end());
    // Those past the map go past all that are stored.
    std::vector<int64_t> to, residual, output_rows(all.size(), all.size());
    for (const auto& [offset, number] : pixels) {
      output_rows[number] = static_cast<int64_t>(to.size());
      to.push_back(offset);
      residual.push_back(residuals[number] + first_image * added.n);
    }
    const PixelPlaces places{to.data(), residual.data(), static_cast<int64_t>(to.size())};
    for (int64_t b = 0; b < task.blocks; ++b) {
      with_tile_points(task.rows->points, task.columns->points, [&](auto r, auto c) {
        run_with_lanes<TransformSums<r, c>::template Loop>(
            sums + b * task.tiles * R::kColumns, task.plane(), task.tiles, int64_t{R::kColumns},
            static_cast<const int64_t*>(output_rows.data()), outputs);
      });
      const int64_t channel = (task.first_block + b) * R::kColumns;
      finished_.store(
          places, {channel, std::min<int64_t>(R::kColumns, shape_.outer - channel), R::kColumns},
          static_cast<const A*>(outputs));
    }
  }

  const GatherShape shape_;
  const WinogradWeight<R> weight_;
  const Tensor packed_weight_;
  const TapAxis rows_, columns_;
  const std::vector<WinogradTiles> row_tiles_, column_tiles_;
  const FinishedPixels<A> finished_;
  // Of the images at hand.
  std::vector<Task> tasks_;
  int64_t task_sums_ = 0, scratch_size_ = 0;
  std::optional<Tensor> sums_, scratch_;
};

}  // namespace atrousx
