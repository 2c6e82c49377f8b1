// The blur along one axis of a lattice, in place. The rows that it reads are scattered over
// megabytes, so it prefetches a row some steps before it reads it.
#pragma once

#include <algorithm>
#include <vector>

#include "cpu/workspace.h"
#include "permutohedral_filter/cpu/row_vectors.h"
#include "permutohedral_filter/lattice.h"

namespace atrousx {

// The vertices linked along each axis, chain after chain. A vertex without neighbours is in no
// chain. The last vertex m of a chain is written as ~m.
template <typename Index>
struct Chains {
  static constexpr int64_t kAhead = 12;  // the list of an axis ends with vertex 0, kAhead times

  std::vector<int64_t> counts;          // [D + 1]
  std::vector<Workspace<Index>> lists;  // [D + 1], counts + kAhead each

  // Needs checked indices (index_check.h).
  static Chains make(const Lattice& l) {
    const int64_t axes = l.dims() + 1, vertices = l.vertices();
    Chains chains;
    chains.counts.resize(axes);
    chains.lists.resize(axes);
    torch::stable::parallel_for(0, axes, 1, [&](int64_t begin, int64_t end) {
      for (int64_t axis = begin; axis < end; ++axis)
        chains.counts[axis] =
            list(data<Index>(l.neighbours) + axis * 2 * vertices, vertices, chains.lists[axis]);
    });
    for (const int64_t count : chains.counts)
      STD_TORCH_CHECK(count != kBroken, "neighbours must be mutual, ahead and behind");
    return chains;
  }

 private:
  static constexpr int64_t kBroken = -1;

  static int64_t list(const Index* ahead, int64_t vertices, Workspace<Index>& out) {
    const Index* behind = ahead + vertices;
    out = Workspace<Index>(vertices + kAhead);
    // The first vertices of the chains are gathered without branches, at the end of the list.
    int64_t first = vertices, count = 0;
    for (int64_t m = vertices - 1; m >= 0; --m) {
      out[first - 1] = static_cast<Index>(m);
      first -= (behind[m] & ~ahead[m]) < 0;  // with two comparisons the compiler makes a branch
    }
    // If each vertex is behind the one ahead of it, chains share no vertex and come to an end.
    for (; first < vertices; ++first) {
      for (Index at = out[first], next; at >= 0; at = next) {
        out[count++] = at;
        next = ahead[at];
        if (next >= 0 && behind[next] != at) return kBroken;
      }
      out[count - 1] = ~out[count - 1];
    }
    std::fill_n(&out[count], kAhead, Index{0});
    return count;
  }
};

// Blurs along one axis in place: lattice[m] += half of each neighbour's former value. A task owns
// the chains that begin in [begin, end) of the list.
struct BlurChains {
  template <int kVectors, typename T, typename Index>
  static ATROUSX_ALWAYS_INLINE void block(int64_t lane, const Index* chain, T* lattice,
                                          int64_t stride, int64_t begin, int64_t end) {
    while (begin != 0 && begin < end && chain[begin - 1] >= 0) ++begin;
    if (begin == end) return;
    while (chain[end - 1] >= 0) ++end;
    const auto row_of = [&](Index at) {
      return lattice + static_cast<int64_t>(at < 0 ? ~at : at) * stride + lane;
    };
    RowBlock<T, kVectors> before, here, after;
    before.clear();
    after.clear();
    T* row = row_of(chain[begin]);
    here.load(row);
    for (int64_t i = begin; i < end; ++i) {
      prefetch_row(row_of(chain[i + Chains<Index>::kAhead]), kVectors);
      T* next = row_of(chain[i + 1]);  // if this chain ends: the first of the next chain
      if (i + 1 < end) after.load(next);
      if (chain[i] >= 0) {
        for (int v = 0; v < kVectors; ++v)
          before.v[v] = here.v[v] + T(0.5) * (before.v[v] + after.v[v]);
        before.store(row);
        before = here;
      } else {
        for (int v = 0; v < kVectors; ++v) here.v[v] += T(0.5) * before.v[v];
        here.store(row);
        before.clear();
      }
      here = after;
      row = next;
    }
  }

  template <typename T, typename Index>
  static ATROUSX_ALWAYS_INLINE void run(const Index* chain, T* lattice, int64_t vectors,
                                        int64_t begin, int64_t end) {
    constexpr int64_t kLanes = RowVector<T>::kLanes;
    over_blocks<BlurChains>(vectors, kLanes, chain, lattice, vectors * kLanes, begin, end);
  }
};

}  // namespace atrousx
