// One axis of the resampling in the form that the CPU uses: runs of outputs between the same two
// inputs.
#pragma once

#include <vector>

#include "upsample_bilinear2d/plan.h"

namespace atrousx {

// Output o is (1 - weight[o]) times input lower[o] plus weight[o] times the next input. With a
// weight of 0 it reads lower[o] alone. At the last input the weight is always 0.
template <typename A>
struct CpuAxis {
  int64_t in, out;
  std::vector<int64_t> lower;  // [out], never decreasing
  std::vector<A> weight;       // [out]
  // Outputs [start[i], start[i + 1]) have lower i. Those before mixed[i] have weight 0. They come
  // first, because the weight grows with the output.
  std::vector<int64_t> start;  // [in + 1]
  std::vector<int64_t> mixed;  // [in]

  explicit CpuAxis(const BilinearAxis<A>& axis)
      : in(axis.in),
        out(axis.out),
        lower(axis.out),
        weight(axis.out),
        start(axis.in + 1, 0),
        mixed(axis.in, 0) {
    int64_t cell = 0;
    const auto advance = [&](int64_t to, int64_t first) {
      for (; cell < to; ++cell) start[cell + 1] = mixed[cell + 1] = first;
    };
    for (int64_t o = 0; o < out; ++o) {
      const BilinearTap<A> tap = axis.tap(o);
      lower[o] = tap.lower;
      weight[o] = tap.upper > tap.lower ? tap.weight : A(0);
      advance(tap.lower, o);
      if (!(weight[o] > A(0))) mixed[cell] = o + 1;
    }
    advance(in - 1, out);
    start[in] = out;
  }
};

}  // namespace atrousx
