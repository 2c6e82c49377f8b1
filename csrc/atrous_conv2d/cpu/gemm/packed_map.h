// A map packed by slabs of channels: [N, groups, slabs, H, W, kWidth]. The map may have any strides
// and dtype. In the packed map the channels of a pixel in a slab are neighbours, and so are the
// pixels of a row. All taps read the same slabs at different offsets, so a map is packed once for
// all taps of a pass.
#pragma once

#include <array>

#include "atrous_conv2d/arguments.h"
#include "atrous_conv2d/cpu/gemm/microkernel.h"
#include "atrous_conv2d/cpu/gemm/pack.h"

namespace atrousx {

// The part of a map to pack: `channels` of the `group_channels` channels of each group.
struct MapSize {
  int64_t batch, groups, channels, height, width, group_channels;
};

// Where a product reads its lanes. The channels of a pixel in a slab lie `step` apart.
template <typename A>
struct SourceView {
  const A* data;
  Strides4 strides;  // of pixels; `c` is not used
  int64_t slab_size, group_size, step = 1;
};

// A slab holds kWidth elements of type A for each pixel, each of kPack numbers (see RegisterTile).
// A pair usually holds two neighbouring channels of a pixel. With kPairsPixels, for products whose
// depth counts pixels, it holds one channel of two pixels: this one and the one `distance` behind
// it in its row. Past the end of the row the second number is 0. Each pixel has such an element. So
// a product may begin at any pixel, and then it takes every second element.
template <typename A, int kWidth, int kPack = 1, bool kPairsPixels = false>
class Slabs {
  static constexpr int kChannels = kPairsPixels ? kWidth : kWidth * kPack;
  static constexpr int64_t kPixels = 128;  // pixels of a panel

 public:
  // `map` points to the first channel to pack. `memory` has room for elements(size) elements.
  template <typename T>
  Slabs(const MapSize& size, const T* map, const Strides4& strides, A* memory, int64_t distance = 1)
      : size_(size), slabs_(slabs(size)), data_(memory), distance_(distance) {
    const int64_t pixels = size.height * size.width, panels = ceil_div(pixels, kPixels);
    const int64_t planes = size.batch * size.groups * slabs_;
    for_each_task(planes * panels, [&](int64_t task, int64_t) {
      const int64_t plane = task / panels, first = task % panels * kPixels;
      const int64_t slab = plane % slabs_, group = plane / slabs_ % size.groups;
      const int64_t n = plane / slabs_ / size.groups, depth = std::min(kPixels, pixels - first);
      const int64_t channels = std::min<int64_t>(kChannels, size.channels - slab * kChannels);
      const T* const slab_map = map + (group * size.group_channels + slab * kChannels) * strides.c;
      int64_t from[kPixels];
      for (int64_t d = 0; d < depth; ++d)
        from[d] = strides.offset(n, 0, (first + d) / size.width, (first + d) % size.width);
      A* to = data_ + plane * slab_size() + first * kWidth;
      if constexpr (kPack == 1)
        pack_panel<kWidth>(slab_map, PanelRows{from, depth}, lanes_apart(strides.c).data(),
                           channels, to);
      else if constexpr (kPairsPixels)
        pair_pixels(slab_map, {from, depth}, first, strides, channels, to);
      else
        pair_channels(slab_map, {from, depth}, strides, channels, to);
    });
  }

  static int64_t slabs(const MapSize& size) { return ceil_div<int64_t>(size.channels, kChannels); }
  static int64_t elements(const MapSize& size) {
    return size.batch * size.groups * slabs(size) * size.height * size.width * kWidth;
  }

  const A* data() const { return data_; }
  int64_t slab_size() const { return size_.height * size_.width * kWidth; }
  int64_t group_size() const { return slabs_ * slab_size(); }
  SourceView<A> view() const { return {data_, strides(), slab_size(), group_size()}; }
  Strides4 strides() const {
    return {size_.groups * group_size(), 0, size_.width * kWidth, kWidth};
  }

 private:
  static std::array<int64_t, kWidth> lanes_apart(int64_t step) {
    std::array<int64_t, kWidth> lanes;
    for (int64_t l = 0; l < kWidth; ++l) lanes[l] = l * step;
    return lanes;
  }

  static void pair_channels(const BFloat16* map, PanelRows rows, const Strides4& strides,
                            int64_t channels, A* to) {
    const bool even = (strides.n | strides.h | strides.w) % 2 == 0;
    if (strides.c == 1 && even) {
      int64_t halved[kPixels];
      for (int64_t d = 0; d < rows.depth; ++d) halved[d] = rows.from[d] / 2;
      pack_panel<kWidth>(PairsTogether{map}, PanelRows{halved, rows.depth}, lanes_apart(1).data(),
                         channels / 2, to);
    } else {
      pack_panel<kWidth>(PairsApart{map, strides.c}, rows, lanes_apart(2 * strides.c).data(),
                         channels / 2, to);
    }
    if (channels % 2 == 0) return;
    const PairsApart last{map + (channels - 1) * strides.c, 0, false};
    for (int64_t d = 0; d < rows.depth; ++d) to[d * kWidth + channels / 2] = last[rows.from[d]];
  }

  // The rows of the panel are the pixels from `first` on. The last `distance_` pixels of a row of
  // the map have no partner.
  void pair_pixels(const BFloat16* map, PanelRows rows, int64_t first, const Strides4& strides,
                   int64_t channels, A* to) const {
    int64_t from[2][kPixels], places[2][kPixels], depth[2] = {0, 0};
    for (int64_t d = 0; d < rows.depth; ++d) {
      const bool pairs = (first + d) % size_.width + distance_ < size_.width;
      from[pairs][depth[pairs]] = rows.from[d];
      places[pairs][depth[pairs]++] = d * kWidth;
    }
    const auto lanes = lanes_apart(strides.c);
    for (int pairs = 0; pairs < 2; ++pairs)
      pack_panel<kWidth>(PairsApart{map, distance_ * strides.w, pairs == 1},
                         PanelRows{from[pairs], depth[pairs], places[pairs]}, lanes.data(),
                         channels, to);
  }

  const MapSize size_;
  const int64_t slabs_;
  A* const data_;
  const int64_t distance_;  // between the pixels of a pair
};

}  // namespace atrousx
