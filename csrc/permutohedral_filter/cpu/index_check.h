// Checks the indices of a lattice on the CPU. This is done in every call, because a caller may pass
// any indices, or change them between two calls. It is one pass over memory that the call reads
// again.
#pragma once

#include <atomic>

#include "cpu/dispatch.h"
#include "permutohedral_filter/lattice.h"

namespace atrousx {

// Whether all of `count` indices are at least `least` and below `end`.
struct IndicesWithin {
  template <typename Index>
  static ATROUSX_ALWAYS_INLINE void run(const Index* indices, int64_t count, Index least, Index end,
                                        bool* within) {
    // Unsigned: numbers below `least` become larger than all others.
    using Unsigned = std::make_unsigned_t<Index>;
    Unsigned most = 0;
    for (int64_t i = 0; i < count; ++i)
      most = max_of(most, static_cast<Unsigned>(static_cast<Unsigned>(indices[i]) -
                                                static_cast<Unsigned>(least)));
    *within = count == 0 || most < static_cast<Unsigned>(end) - static_cast<Unsigned>(least);
  }
};

// Whether each of `count` indices is at most the next.
struct IndicesAscend {
  template <typename Index>
  static ATROUSX_ALWAYS_INLINE void run(const Index* indices, int64_t count, bool* ascend) {
    Index falls = 0;
    for (int64_t i = 0; i < count; ++i) falls |= indices[i] > indices[i + 1];
    *ascend = falls == 0;
  }
};

// Whether Loop returns true for all of `count` indices. A task takes a chunk of them.
template <typename Loop, typename Index, typename... Args>
bool all_indices(const Index* indices, int64_t count, Args... args) {
  constexpr int64_t kIndicesPerTask = 1 << 16;
  std::atomic<bool> all{true};
  torch::stable::parallel_for(0, count, kIndicesPerTask, [&](int64_t begin, int64_t end) {
    bool here = true;
    run_best<Loop>(indices + begin, end - begin, args..., &here);
    if (!here) all = false;
  });
  return all;
}

template <typename Index>
void check_indices_as(const Lattice& l) {
  const auto within = [](const Tensor& t, int64_t least, int64_t end) {
    return all_indices<IndicesWithin>(data<Index>(t), t.numel(), static_cast<Index>(least),
                                      static_cast<Index>(end));
  };
  const Index* starts = data<Index>(l.starts);
  const int64_t vertices = l.vertices();
  STD_TORCH_CHECK(within(l.corner_vertices, 0, vertices), "corner_vertices must be vertices");
  STD_TORCH_CHECK(within(l.entry_points, 0, l.points()), "entry_points must be points");
  STD_TORCH_CHECK(within(l.neighbours, -1, vertices), "neighbours must be vertices or -1");
  STD_TORCH_CHECK(starts[0] == 0 && static_cast<int64_t>(starts[vertices]) == l.corners() &&
                      all_indices<IndicesAscend>(starts, vertices),
                  "starts must ascend from 0 to the number of entries");
}

// Chains (blur_chains.h) check that neighbours are mutual.
inline void check_indices(const Lattice& l) {
  l.index_type() == ScalarType::Int ? check_indices_as<int32_t>(l) : check_indices_as<int64_t>(l);
}

inline void check_ranks(const Tensor& rank, int64_t dims) {
  const Tensor dense = torch::stable::contiguous(rank);
  STD_TORCH_CHECK(all_indices<IndicesWithin>(data<uint8_t>(dense), dense.numel(), uint8_t{0},
                                             static_cast<uint8_t>(dims + 1)),
                  "rank must hold numbers from 0 to D");
}

}  // namespace atrousx
