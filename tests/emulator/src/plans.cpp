// The plans of the kernels, as operators on numbers. The tests compare them with brute force, and
// use sizes that no test can allocate.
#include <ATen/ops/tensor.h>
#include <torch/library.h>

#include "atrous_conv2d/cuda/depthwise/depthwise_plan.h"
#include "atrous_conv2d/plan_cache.h"
#include "multi_rate_conv2d/cuda/union_plan.h"
#include "upsample_bilinear2d/plan.h"

namespace {

using atrousx::Strides4;
using atrousx::TapAxis;
using Numbers = std::vector<int64_t>;

// [1 for grad-input or 0, in, out, taps, stride, padding, dilation]
TapAxis tap_axis(at::IntArrayRef a) {
  const auto make = a[0] != 0 ? &TapAxis::grad_input : &TapAxis::forward;
  return make(a[1], a[2], a[3], a[4], a[5], a[6]);
}

Strides4 strides4(at::IntArrayRef s) { return {s[0], s[1], s[2], s[3]}; }

// A table with rows of `columns` numbers.
at::Tensor table(const Numbers& numbers, int64_t columns) {
  const auto rows = static_cast<int64_t>(numbers.size()) / columns;
  return at::tensor(numbers, at::kLong).view({rows, columns});
}

int64_t tap_source(at::IntArrayRef axis, int64_t destination, int64_t tap) {
  return tap_axis(axis).source(destination, tap);
}

// First, step and number of the destinations; the first source and its step.
Numbers tap_span(at::IntArrayRef axis, int64_t tap) {
  const auto span = tap_axis(axis).span(tap);
  const auto& d = span.destinations;
  return {d.first, d.step, d.count, span.source_first, span.source_step};
}

// One row per class: destinations and taps (first, step, count), first source, its steps.
at::Tensor tap_classes(at::IntArrayRef axis) {
  Numbers rows;
  for (const auto& c : atrousx::axis_classes(tap_axis(axis))) {
    const auto &d = c.destinations, &t = c.taps;
    rows.insert(rows.end(), {d.first, d.step, d.count, t.first, t.step, t.count, c.source_first,
                             c.source_per_destination, c.source_per_tap});
  }
  return table(rows, 9);
}

int64_t count_of(const atrousx::TapPlans& plans) {
  int64_t tiles = 0;
  for (const auto& plan : plans) tiles += plan.tiles();
  return tiles;
}

int64_t tap_tiles(at::IntArrayRef rows, at::IntArrayRef columns, int64_t batch,
                  int64_t tile_pixels) {
  return count_of(atrousx::tap_plans(tap_axis(rows), tap_axis(columns), batch, tile_pixels));
}

int64_t cached_tap_tiles(at::IntArrayRef rows, at::IntArrayRef columns, int64_t batch,
                         int64_t tile_pixels) {
  return count_of(
      *atrousx::cached_tap_plans(tap_axis(rows), tap_axis(columns), batch, tile_pixels));
}

// For every pixel of every tile: (tile, destination offset). For each of its live taps:
// (destination offset, tap row, tap column, source offset).
std::tuple<at::Tensor, at::Tensor> tap_pixels(at::IntArrayRef rows, at::IntArrayRef columns,
                                              int64_t batch, int64_t tile_pixels,
                                              at::IntArrayRef to_strides,
                                              at::IntArrayRef from_strides) {
  const Strides4 to = strides4(to_strides), from = strides4(from_strides);
  Numbers pixels, reads;
  int64_t number = 0;
  for (const auto& plan : atrousx::tap_plans(tap_axis(rows), tap_axis(columns), batch, tile_pixels))
    for (int64_t t = 0; t < plan.tiles(); ++t, ++number) {
      const atrousx::Tile tile = plan.tile(t, batch);
      for (int64_t p = 0; p < tile.pixels; ++p) {
        const auto pixel = tile.pixel(p);
        const int64_t destination = tile.destination_offset(pixel, to);
        pixels.insert(pixels.end(), {number, destination});
        for (int64_t i = 0; i < tile.rows.taps.count; ++i)
          for (int64_t j = 0; j < tile.columns.taps.count; ++j)
            reads.insert(reads.end(),
                         {destination, tile.rows.taps.at(i), tile.columns.taps.at(j),
                          tile.source_offset(pixel, from) + tile.tap_offset(i, j, from)});
      }
    }
  return {table(pixels, 2), table(reads, 4)};
}

// (destination offset, offset of the first tap's source) of the last pixel of the last tile.
Numbers last_tap_offsets(at::IntArrayRef rows, at::IntArrayRef columns, int64_t batch,
                         int64_t tile_pixels, at::IntArrayRef strides) {
  const auto plan =
      atrousx::tap_plans(tap_axis(rows), tap_axis(columns), batch, tile_pixels).back();
  const atrousx::Tile tile = plan.tile(plan.tiles() - 1, batch);
  const auto pixel = tile.pixel(tile.pixels - 1);
  return {tile.destination_offset(pixel, strides4(strides)),
          tile.source_offset(pixel, strides4(strides))};
}

// Whether the depthwise kernels can count the pixels of a batch of one-row maps.
bool is_countable(int64_t batch, int64_t width) {
  const auto rows = TapAxis::forward(1, 1, 1, 1, 0, 1);
  const auto columns = TapAxis::forward(width, width, 1, 1, 0, 1);
  return atrousx::is_countable({rows, columns, batch, 8, 1, 1});
}

// One row per tile of the union of branches with taps[i] rows and columns at dilations[i]: (row,
// column, rows, columns, first, pixels). Empty if there is no plan.
at::Tensor union_tiles(at::IntArrayRef size, at::IntArrayRef taps, at::IntArrayRef dilations,
                       int64_t tile_pixels) {
  std::vector<atrousx::RatePass> passes;
  for (size_t i = 0; i < taps.size(); ++i) {
    const int64_t d = dilations[i], side = d * (taps[i] / 2);
    const atrousx::ConvGeometry g{size[0], 1,       size[1], size[2], 1,    taps[i], taps[i], 1,
                                  size[1], size[2], 1,       1,       side, side,    d,       d};
    for (const auto& pass : atrousx::off_centre_passes(g, {1, 1, 1, 1})) passes.push_back(pass);
  }
  const auto plan = atrousx::union_plan(passes, size[0], tile_pixels);
  Numbers rows;
  for (int t = 0; plan && t < plan->tiles(); ++t) {
    const atrousx::UnionTile tile = atrousx::union_tile(*plan, t, size[0]);
    rows.insert(rows.end(),
                {tile.row, tile.column, tile.rows, tile.columns, tile.first, tile.pixels});
  }
  return table(rows, 6);
}

using BilinearAxis = atrousx::BilinearAxis<float>;

// (lower, upper, weight) of every output.
at::Tensor bilinear_taps(int64_t in, int64_t out, bool align_corners, std::optional<double> scale) {
  const auto axis = BilinearAxis::make(in, out, align_corners, scale);
  std::vector<double> rows;
  for (int64_t o = 0; o < out; ++o) {
    const auto tap = axis.tap(o);
    rows.insert(rows.end(), {static_cast<double>(tap.lower), static_cast<double>(tap.upper),
                             static_cast<double>(tap.weight)});
  }
  return at::tensor(rows, at::kDouble).view({-1, 3});
}

// The outputs [first, last) that may read each input.
at::Tensor bilinear_readers(int64_t in, int64_t out, bool align_corners,
                            std::optional<double> scale) {
  const auto axis = BilinearAxis::make(in, out, align_corners, scale);
  Numbers rows;
  for (int64_t i = 0; i < in; ++i) {
    const auto range = axis.readers(i);
    rows.insert(rows.end(), {range.first, range.last});
  }
  return table(rows, 2);
}

int64_t offset(at::IntArrayRef strides, at::IntArrayRef index) {
  return strides4(strides).offset(index[0], index[1], index[2], index[3]);
}

}  // namespace

TORCH_LIBRARY(atrousx_plans, m) {
  m.def("tap_source(int[] axis, int destination, int tap) -> int", &tap_source);
  m.def("tap_span(int[] axis, int tap) -> int[]", &tap_span);
  m.def("tap_classes(int[] axis) -> Tensor", &tap_classes);
  m.def("tap_tiles(int[] rows, int[] columns, int batch, int tile_pixels) -> int", &tap_tiles);
  m.def("cached_tap_tiles(int[] rows, int[] columns, int batch, int tile_pixels) -> int",
        &cached_tap_tiles);
  m.def("cached_plans() -> int",
        [] { return static_cast<int64_t>(atrousx::tap_plan_cache().size()); });
  m.def(
      "tap_pixels(int[] rows, int[] columns, int batch, int tile_pixels, int[] to_strides, "
      "int[] from_strides) -> (Tensor, Tensor)",
      &tap_pixels);
  m.def(
      "last_tap_offsets(int[] rows, int[] columns, int batch, int tile_pixels, int[] strides) "
      "-> int[]",
      &last_tap_offsets);
  m.def("grad_weight_splits(int tasks, int pixels, int wanted) -> int",
        &atrousx::grad_weight_splits);
  m.def("is_countable(int batch, int width) -> bool", &is_countable);
  m.def("union_tiles(int[] size, int[] taps, int[] dilations, int tile_pixels) -> Tensor",
        &union_tiles);
  m.def("bilinear_taps(int size, int out, bool align_corners, float? scale) -> Tensor",
        &bilinear_taps);
  m.def("bilinear_readers(int size, int out, bool align_corners, float? scale) -> Tensor",
        &bilinear_readers);
  m.def("offset(int[] strides, int[] index) -> int", &offset);
}
