// Goes through the source of gathering passes on the CPU in steps. A step is some images, or some
// slabs of channels of one image. It is packed, or read in place.
#pragma once

#include "atrous_conv2d/cpu/gemm/packed_map.h"
#include "atrous_conv2d/cpu/gemm/packed_weight.h"
#include "cpu/workspace.h"

namespace atrousx {

// A part of a source: some of its images, and some slabs of their channels.
struct GatherStep {
  int64_t first_image, images, first_slab, slabs;
  bool first, last;  // whether this is the first step, or the last step, of these images
};

// Returns the step that is the whole source.
inline GatherStep whole_step(const GatherShape& shape) {
  return {0, shape.batch, 0, ceil_div<int64_t>(shape.inner, kSlab), true, true};
}

// Calls f(step, view) for every step of a source, [N, groups * inner, rows, columns]. If `in_place`
// is true, the source is not packed; its channels must be neighbours or planes. `sums` is how many
// sums of an image are kept from step to step.
template <typename A, int kPack, typename T, typename F>
void for_each_gather_step(const GatherShape& shape, const T* source, const Strides4& strides,
                          bool in_place, int64_t sums, F&& f) {
  constexpr bool kAsItIs = std::is_same_v<T, A> && kPack == 1;
  if constexpr (kAsItIs) {
    if (in_place && strides.c == 1)
      return f(whole_step(shape), SourceView<A>{source, strides, kSlab, shape.inner});
  }
  using Packed = Slabs<A, kSlab, kPack>;
  constexpr int64_t kChannels = kSlab * kPack;
  // The most elements that are packed at a time, so that they are still in a cache when they are
  // read. More steps also keep sums for longer, which must not cost more than the cache gains.
  constexpr int64_t kMost = 1 << 20;
  MapSize size{1,          shape.groups, shape.inner, shape.rows.sources, shape.columns.sources,
               shape.inner};
  const int64_t image = std::max<int64_t>(Packed::elements(size), 1);
  const int64_t slabs = std::max<int64_t>(Packed::slabs(size), 1);
  const int64_t images = std::clamp<int64_t>(kMost / image, 1, shape.batch);
  const int64_t steps = std::min({ceil_div(image, kMost), 1 + image / sums, slabs});
  const int64_t step_slabs = ceil_div(slabs, steps);
  size.batch = images;
  size.channels = std::min(step_slabs * kChannels, shape.inner);
  const Workspace<A> memory(in_place ? 0 : Packed::elements(size));
  for (int64_t n = 0; n < shape.batch; n += images)
    for (int64_t slab = 0; slab < slabs; slab += step_slabs) {
      const GatherStep step{n,         std::min(images, shape.batch - n),
                            slab,      std::min(step_slabs, slabs - slab),
                            slab == 0, slab + step_slabs >= slabs};
      const T* from = source + strides.offset(n, slab * kChannels, 0, 0);
      if constexpr (kAsItIs) {
        if (in_place) {
          f(step,
            SourceView<A>{from, strides, kSlab * strides.c, shape.inner * strides.c, strides.c});
          continue;
        }
      }
      size.batch = step.images;
      size.channels = std::min(step.slabs * kChannels, shape.inner - slab * kChannels);
      f(step, Packed(size, from, strides, memory.data()).view());
    }
}

}  // namespace atrousx
