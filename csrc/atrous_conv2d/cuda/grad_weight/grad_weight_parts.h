// How a grad-weight is cut into jobs of a matrix product whose depth is pixels. Host and device
// share this file; it needs no torch. The rows of the product are the weights of an output:
//   of one tap     a job has channels of one tap, and a part of the pixels with that tap live
//   of all taps    a job has channels of several taps, side by side, and a tile of the tap plan:
//                  pixels at which the same taps are live. Rows of the other taps are discarded.
// The second way is for few channels: the rows of one tap would leave a tile nearly empty. Parts
// are summed in order, so their number depends on sizes alone.
#pragma once

#include "atrous_conv2d/plan.h"

namespace atrousx {

struct GradWeightJob {
  int64_t part, group, tap;  // tap: of the first row, if rows are of one tap
  int64_t first_row, first_output;
};

// A row of the product: one weight of every output.
struct GradWeightRow {
  int64_t tap, channel;
  int64_t i, j;  // which of the tile's live taps
  bool exists, live;

  ATROUSX_HOST_DEVICE int64_t offset(const Tile& tile, const Strides4& input) const {
    return tile.tap_offset(i, j, input) + channel * input.c;
  }
};

struct GradWeightParts {
  using HoldsNoAddress = void;
  bool all_taps;
  int64_t count;
  int64_t tap_rows;  // rows per tap: its channels, padded to whole vectors
  int64_t job_rows, job_outputs;
  TapPlan plan;  // its tiles are the parts, if rows are of all taps

  ATROUSX_HOST_DEVICE int64_t row_tiles(const GatherShape& shape) const {
    return ceil_div(all_taps ? shape.taps() * tap_rows : tap_rows, job_rows);
  }
  ATROUSX_HOST_DEVICE int64_t jobs(const GatherShape& shape) const {
    return count * shape.groups * (all_taps ? 1 : shape.taps()) *
           ceil_div(shape.outer, job_outputs) * row_tiles(shape);
  }

  ATROUSX_HOST_DEVICE GradWeightJob job(int64_t index, const GatherShape& shape) const {
    const int64_t rows = row_tiles(shape), outputs = ceil_div(shape.outer, job_outputs);
    const int64_t taps = all_taps ? 1 : shape.taps(), rest = index / rows / outputs;
    return {rest / taps / shape.groups, rest / taps % shape.groups, rest % taps,
            index % rows * job_rows, index / rows % outputs * job_outputs};
  }

  // The pixels of a job. If rows are of one tap, all parts have the same length, so that blocks
  // take equally long. Taps with few live pixels leave the last parts empty.
  ATROUSX_HOST_DEVICE Tile tile(const GradWeightJob& job, const GatherShape& shape) const {
    if (all_taps) return plan.tile(job.part, shape.batch);
    const int64_t h = job.tap / shape.columns.taps, w = job.tap % shape.columns.taps;
    const TapSpan rows = shape.rows.span(h), columns = shape.columns.span(w);
    const int64_t pixels = shape.batch * rows.destinations.count * columns.destinations.count;
    const int64_t length =
        ceil_div(shape.batch * shape.rows.destinations * shape.columns.destinations, count);
    const int64_t first = min_of(job.part * length, pixels);
    return {{rows.destinations, {h, 1, 1}, rows.source_first, rows.source_step, 0},
            {columns.destinations, {w, 1, 1}, columns.source_first, columns.source_step, 0},
            first,
            min_of(length, pixels - first)};
  }

  // A row of a job. In a forward pass live taps are adjacent: their step is 1.
  ATROUSX_HOST_DEVICE GradWeightRow row(const GradWeightJob& job, int64_t number, const Tile& tile,
                                        const GatherShape& shape) const {
    const int64_t index = job.first_row + number;
    const int64_t tap = job.tap + index / tap_rows, channel = index % tap_rows;
    const int64_t i = tap / shape.columns.taps - tile.rows.taps.first;
    const int64_t j = tap % shape.columns.taps - tile.columns.taps.first;
    const bool exists = channel < shape.inner && tap < (all_taps ? shape.taps() : job.tap + 1);
    return {tap,
            channel,
            i,
            j,
            exists,
            exists && 0 <= i && i < tile.rows.taps.count && 0 <= j && j < tile.columns.taps.count};
  }

  // The index of a weight in [parts, taps, K, C / groups].
  ATROUSX_HOST_DEVICE int64_t element(const GradWeightJob& job, const GradWeightRow& row,
                                      int64_t output, const GatherShape& shape) const {
    const int64_t first = ((job.part * shape.taps() + row.tap) * shape.groups + job.group);
    return (first * shape.outer + output) * shape.inner + row.channel;
  }
};

struct GradWeightTile {
  int64_t tap_rows, rows, outputs;  // as in GradWeightParts
};

// Whether rows may be of all taps. This needs at least one part per pair of classes, so there must
// be few pairs, and their sums may take at most 64 MiB.
inline bool all_taps_at_once(const GatherShape& shape) {
  constexpr int64_t kMost = TapPlan::kMaxClasses, kMostPairs = 64, kMostSums = int64_t{16} << 20;
  if (shape.taps() == 1 || max_of(shape.rows.taps, shape.columns.taps) > kMost) return false;
  const auto rows = static_cast<int64_t>(axis_classes(shape.rows).size());
  const auto columns = static_cast<int64_t>(axis_classes(shape.columns).size());
  const int64_t weights = shape.groups * shape.outer * shape.inner * shape.taps();
  return max_of(rows, columns) <= kMost && rows * columns <= kMostPairs &&
         weights <= kMostSums / (rows * columns);
}

// Makes enough parts for a few jobs on each multiprocessor of a large GPU.
inline GradWeightParts grad_weight_parts(const GatherShape& shape, const GradWeightTile& tile) {
  constexpr int64_t kWantedJobs = 512;
  GradWeightParts cut{};
  const int64_t pixels = shape.batch * shape.rows.destinations * shape.columns.destinations;
  cut.all_taps = pixels > 0 && 2 * tile.tap_rows <= tile.rows && all_taps_at_once(shape);
  cut.count = 1;
  cut.tap_rows = tile.tap_rows;
  cut.job_rows = tile.rows;
  cut.job_outputs = tile.outputs;
  cut.count = grad_weight_splits(cut.jobs(shape), pixels, kWantedJobs);
  if (!cut.all_taps) return cut;
  cut.plan = tap_plans(shape.rows, shape.columns, shape.batch, ceil_div(pixels, cut.count))[0];
  cut.count = cut.plan.tiles();
  return cut;
}

}  // namespace atrousx
