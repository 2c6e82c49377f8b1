// Plans convolutions of one input at several dilations as gathering passes into one output. CPU and
// CUDA share this file, and it does not use torch.
#pragma once

#include <vector>

#include "atrous_conv2d/plan.h"

namespace atrousx {

// A pass over some taps of a filter, and the row and column of the first of them in the filter.
struct RatePass {
  GatherShape shape;
  WeightStrides weight_strides;
  int64_t first_row, first_column;
};

// Returns the pass over the taps rows x columns of a branch. A branch has stride 1 and keeps the
// size of the map.
inline RatePass rate_pass(const ConvGeometry& g, const Strides4& weight_strides,
                          const Progression& rows, const Progression& columns) {
  const auto axis = [](int64_t extent, int64_t padding, int64_t dilation, const Progression& taps) {
    return TapAxis{
        extent, extent, taps.count, 1, taps.first * dilation - padding, taps.step * dilation, 1};
  };
  RatePass pass{g.forward(), g.forward_weight(weight_strides), rows.first, columns.first};
  pass.shape.rows = axis(g.height, g.padding_top, g.dilation_h, rows);
  pass.shape.columns = axis(g.width, g.padding_left, g.dilation_w, columns);
  pass.weight_strides.h *= rows.step;
  pass.weight_strides.w *= columns.step;
  return pass;
}

// Returns an odd number of taps without the middle one, as progressions. Of three taps, both ends
// are one progression. Of more, the taps before and the taps behind the middle are one each.
inline std::vector<Progression> off_centre(int64_t taps) {
  const int64_t centre = taps / 2;
  if (centre == 0) return {};
  if (centre == 1) return {{0, 2, 2}};
  return {{0, 1, centre}, {centre + 1, 1, centre}};
}

// Returns the 1x1 convolution that the centre taps of the branches form.
inline ConvGeometry pointwise(ConvGeometry g) {
  g.kernel_h = g.kernel_w = 1;
  g.padding_top = g.padding_left = 0;
  return g;
}

// Returns the passes that cover every tap of a branch once, except the centre tap. First come the
// whole rows above and below it, then its own row to the left and right.
inline std::vector<RatePass> off_centre_passes(const ConvGeometry& g,
                                               const Strides4& weight_strides) {
  std::vector<RatePass> passes;
  for (const Progression& rows : off_centre(g.kernel_h))
    passes.push_back(rate_pass(g, weight_strides, rows, {0, 1, g.kernel_w}));
  for (const Progression& columns : off_centre(g.kernel_w))
    passes.push_back(rate_pass(g, weight_strides, {g.kernel_h / 2, 1, 1}, columns));
  return passes;
}

}  // namespace atrousx
