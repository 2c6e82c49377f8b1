// A map packed by slabs of channels, [N, groups, slabs, H, W, kWidth]: whatever its strides and
// dtype were, a pixel's channels of one slab are neighbours, and so are the pixels of a row. Every
// tap reads the same slabs, only further on: a map is packed once for all taps of a pass.
#pragma once

#include "../huge_pages.h"
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

// kWidth elements of type A a pixel, each of kPack channels (see RegisterTile).
template <typename A, int kWidth, int kPack = 1>
class Slabs {
  static constexpr int kChannels = kWidth * kPack;
  static constexpr int64_t kPixels = 128;  // of a panel

 public:
  // map: its first channel that is packed; memory: elements(size) of them.
  template <typename T>
  Slabs(const MapSize& size, const T* map, const Strides4& strides, A* memory)
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
      pack(map, {from, depth}, lanes, channels, data_ + plane * slab_size() + first * kWidth);
    });
  }

  static int64_t slabs(const MapSize& size) { return ceil_div<int64_t>(size.channels, kChannels); }
  static int64_t elements(const MapSize& size) {
    return size.batch * size.groups * slabs(size) * size.height * size.width * kWidth;
  }
  // Memory for a packed map. like: names dtype and device.
  static Tensor memory(const MapSize& size, const Tensor& like) {
    const Tensor packed = scratch(like, elements(size));
    prefer_huge_pages(packed.mutable_data_ptr(), packed.numel() * static_cast<int64_t>(sizeof(A)));
    return packed;
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
  static void pack(const T* map, PanelRows rows, const int64_t* lanes, int64_t channels, A* to) {
    if constexpr (kPack == 1) {
      pack_panel<kWidth>(map, rows, lanes, channels, to);
    } else {
      A wide[kPixels * kChannels];
      pack_panel<kChannels>(map, rows, lanes, channels, wide);
      run_best<PairNeighbours>(static_cast<const A*>(wide), rows.depth * kWidth, to);
    }
  }

  const MapSize size_;
  const int64_t slabs_;
  A* const data_;
};

}  // namespace atrousx
