// The loss of one pixel, shared by host and device.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "portable.h"

namespace atrousx {

// With v the upsampled logits of a pixel, t its label, w the class weights, e the smoothing and
// lse = log sum_c exp(v_c):
//   loss = (1 - e) w_t (lse - v_t) + (e / C) sum_c w_c (lse - v_c)
// A label outside 0..C-1 that is not ignored makes the loss NaN. Raising an error would stop the
// GPU; NaN travels with the data. The Python side checks for such labels on the CPU.
template <typename A>
struct PixelLoss {
  const A* class_weight;  // [C], or null for 1
  int64_t channels, ignore_index;
  A smoothing;

  ATROUSX_HOST_DEVICE bool ignored(int64_t label) const { return label == ignore_index; }
  ATROUSX_HOST_DEVICE bool valid(int64_t label) const { return label >= 0 && label < channels; }
  ATROUSX_HOST_DEVICE A weight(int64_t c) const {
    return class_weight == nullptr ? A(1) : class_weight[c];
  }
  ATROUSX_HOST_DEVICE A spread() const { return smoothing / static_cast<A>(channels); }
  ATROUSX_HOST_DEVICE A total_weight() const {
    if (class_weight == nullptr) return static_cast<A>(channels);
    A sum = A(0);
    for (int64_t c = 0; c < channels; ++c) sum += class_weight[c];
    return sum;
  }

  // weighted: sum_c w_c v_c, read only if there is smoothing.
  ATROUSX_HOST_DEVICE A loss(int64_t label, A lse, A own, A weighted, A total) const {
    if (ignored(label)) return A(0);
    if (!valid(label)) return std::numeric_limits<A>::quiet_NaN();
    const A chosen = (A(1) - smoothing) * weight(label) * (lse - own);
    return smoothing == A(0) ? chosen : chosen + spread() * (total * lse - weighted);
  }
  ATROUSX_HOST_DEVICE A pixel_weight(int64_t label) const {
    return valid(label) && !ignored(label) ? weight(label) : A(0);
  }

  // d loss / d v_c = softmax_scale(label) p_c - (1 - e) w_t [c = t] - (e / C) w_c, or 0 if the
  // label is ignored.
  ATROUSX_HOST_DEVICE A softmax_scale(int64_t label, A total) const {
    if (ignored(label)) return A(0);
    if (!valid(label)) return std::numeric_limits<A>::quiet_NaN();
    return (A(1) - smoothing) * weight(label) + spread() * total;
  }
};

}  // namespace atrousx
