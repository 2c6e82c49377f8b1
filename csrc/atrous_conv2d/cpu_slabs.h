// A map packed by slabs of channels, [N, groups, slabs, H, W, kWidth]: whatever its strides and
// dtype were, a pixel's channels of one slab are neighbours, and so are the pixels of a row. Every
// tap reads the same slabs, only further on: a map is packed once for all taps of a pass.
#pragma once

#include "arguments.h"
#include "cpu_pack.h"
#include "cpu_product.h"

namespace atrousx {

// `channels` of each group are packed, of `group_channels` that it has.
struct MapSize {
  int64_t batch, groups, channels, height, width, group_channels;
};

// Where a product reads its lanes: a pixel's channels of a slab are neighbours.
template <typename A>
struct SourceView {
  const A* data;
  Strides4 strides;  // of a pixel; `c` is meaningless
  int64_t slab_size, group_size;
};

// kWidth elements of type A a pixel, each of kPack numbers (see RegisterTile). A pair are two
// neighbouring channels or, where a product's depth are pixels, one channel of a pixel and of the
// one `distance` behind it in its row, or of zero past the row's end: there are as many such
// elements as pixels, so a product may begin at any pixel and take every second one.
template <typename A, int kWidth, int kPack = 1, bool kPairsPixels = false>
class Slabs {
  static constexpr int kChannels = kPairsPixels ? kWidth : kWidth * kPack;
  static constexpr int64_t kPixels = 128;  // of a panel

 public:
  // map: its first channel that is packed; memory: elements(size) of them.
  template <typename T>
  Slabs(const MapSize& size, const T* map, const Strides4& strides, A* memory, int64_t distance = 1)
      : size_(size), slabs_(slabs(size)), data_(memory) {
    const int64_t pixels = size.height * size.width, panels = ceil_div(pixels, kPixels);
    const int64_t planes = size.batch * size.groups * slabs_;
    for_each_task(planes * panels, [&](int64_t task, int64_t) {
      const int64_t plane = task / panels, first = task % panels * kPixels;
      const int64_t slab = plane % slabs_, group = plane / slabs_ % size.groups;
      const int64_t n = plane / slabs_ / size.groups, depth = std::min(kPixels, pixels - first);
      const int64_t channels = std::min<int64_t>(kChannels, size.channels - slab * kChannels);
      int64_t from[kPixels], lanes[kChannels];
      for (int64_t d = 0; d < depth; ++d)
        from[d] = strides.offset(n, 0, (first + d) / size.width, (first + d) % size.width);
      for (int64_t l = 0; l < channels; ++l)
        lanes[l] = (group * size.group_channels + slab * kChannels + l) * strides.c;
      A* to = data_ + plane * slab_size() + first * kWidth;
      if constexpr (kPack == 1)
        pack_panel<kWidth>(map, {from, depth}, lanes, channels, to);
      else if constexpr (kPairsPixels)
        pair_pixels(map, {from, depth}, first, distance, strides.w, lanes, channels, to);
      else
        pair_channels(map, {from, depth}, lanes, channels, to);
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
  template <typename T>
  static void pair_channels(const T* map, PanelRows rows, const int64_t* lanes, int64_t channels,
                            A* to) {
    A wide[kPixels * kChannels];
    pack_panel<kChannels>(map, rows, lanes, channels, wide);
    run_best<PairNeighbours>(static_cast<const A*>(wide), rows.depth * kWidth, to);
  }

  // The rows of the panel are pixels from `first` on.
  template <typename T>
  void pair_pixels(const T* map, PanelRows rows, int64_t first, int64_t distance, int64_t step,
                   const int64_t* lanes, int64_t channels, A* to) const {
    A near[kPixels * kWidth], far[kPixels * kWidth];
    int64_t behind[kPixels];
    const auto in_row = [&](int64_t d) {
      return (first + d) % size_.width + distance < size_.width;
    };
    for (int64_t d = 0; d < rows.depth; ++d)
      behind[d] = rows.from[d] + (in_row(d) ? distance * step : 0);
    pack_panel<kWidth>(map, rows, lanes, channels, near);
    pack_panel<kWidth>(map, {behind, rows.depth}, lanes, channels, far);
    for (int64_t d = 0; d < rows.depth; ++d)
      run_best<PairRows>(static_cast<const A*>(near + d * kWidth),
                         in_row(d) ? static_cast<const A*>(far + d * kWidth) : nullptr,
                         int64_t{kWidth}, to + d * kWidth);
  }

  const MapSize size_;
  const int64_t slabs_;
  A* const data_;
};

}  // namespace atrousx
