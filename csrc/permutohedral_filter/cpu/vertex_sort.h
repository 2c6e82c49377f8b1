// For the CPU: the vertices of one image whose coordinates have the same remainder modulo D + 1,
// with their keys and order.
//
// Corner k of every point is a vertex of remainder k. So the corners of an image fall into D + 1
// classes of P corners, and each class is sorted separately. Keys are made of the quotients of the
// coordinates, a few bits each. A neighbour's key is in the next class, at a constant distance.
#pragma once

#include <bit>
#include <vector>

#include "cpu/dispatch.h"
#include "cpu/workspace.h"
#include "permutohedral_filter/plan.h"

namespace atrousx {

// How quotients become digits of one or more words. Each digit has room for a step to a neighbour.
struct ClassKeys {
  int dims, words = 1, point_bits, word_bits[kMaxFeatures];
  int word[kMaxFeatures];
  uint64_t stride[kMaxFeatures];
  int64_t minimum[kMaxFeatures];

  // Makes the layout from the least and the largest multiple of each coordinate. Returns false if
  // one digit and a point's number together need more than 63 bits.
  bool make(int dimensions, int64_t points, const int32_t* least, const int32_t* most) {
    dims = dimensions;
    point_bits = std::bit_width(static_cast<uint64_t>(points));
    words = 1;
    int used = 0;
    for (int i = 0; i < dims; ++i) {
      // A quotient is the multiple or one less. A neighbour's is at most one less or one more than
      // that.
      minimum[i] = int64_t{least[i]} - 2;
      const auto extent = static_cast<uint64_t>(most[i] + 2 - minimum[i]);
      const int bits = std::bit_width(extent - 1);
      if (bits + point_bits > 63) return false;
      if (used + bits + point_bits > 63) {
        ++words;
        used = 0;
      }
      word[i] = words - 1;
      stride[i] = uint64_t{1} << used;
      word_bits[words - 1] = used += bits;
    }
    return true;
  }

  uint64_t point_mask() const { return (uint64_t{1} << point_bits) - 1; }

  // The step in word `w` from a vertex of class k to the next vertex along an axis. One coordinate
  // grows by D and the others fall by 1. This leads into class k - 1, or from class 0 into class D.
  uint64_t step(int w, int k, int axis) const {
    uint64_t sum = 0;
    for (int i = 0; i < dims; ++i)
      if (word[i] == w) sum += stride[i] * (static_cast<uint64_t>(i == axis) - (k == 0 ? 1 : 0));
    return sum;
  }
};

// The simplices around the points of an image.
struct ImageSimplices {
  const int32_t* multiple;  // [D + 1, rows]
  const uint8_t* rank;      // [D + 1, rows]
  int64_t rows, points;
};

// Packs word `w` of the keys of corner k of all points. The points' numbers are the low bits.
struct PackClass {
  static ATROUSX_ALWAYS_INLINE void run(const ClassKeys* keys, int w, int k, ImageSimplices image,
                                        uint64_t* out) {
    constexpr int64_t kChunk = 512;
    const auto [multiple, rank, rows, count] = image;
    for (int64_t begin = 0; begin < count; begin += kChunk) {
      const int64_t end = min_of(count, begin + kChunk);
      for (int64_t p = begin; p < end; ++p) out[p] = static_cast<uint64_t>(p);
      for (int i = 0; i < keys->dims; ++i) {
        if (keys->word[i] != w) continue;
        const int32_t* m = multiple + i * rows;
        const uint8_t* r = rank + i * rows;
        const auto low = static_cast<int32_t>(keys->minimum[i]);
        const int shift = std::countr_zero(keys->stride[i]) + keys->point_bits;
        for (int64_t p = begin; p < end; ++p) {
          const auto digit = static_cast<uint32_t>(m[p] - low - (r[p] > keys->dims - k));
          out[p] += static_cast<uint64_t>(digit) << shift;
        }
      }
    }
  }
};

// Sorts by bits [low, high), and keeps the order of equal ones. Returns the array that holds the
// result: `from` or `to`.
inline uint64_t* radix_sort(uint64_t* from, uint64_t* to, int64_t count, int low, int high) {
  constexpr int kDigitBits = 11;
  const int passes = max_of(1, ceil_div(high - low, kDigitBits));
  const int bits = ceil_div(high - low, passes);
  const uint64_t mask = (uint64_t{1} << bits) - 1;
  for (int pass = 0; pass < passes; ++pass, low += bits) {
    int64_t next[1 << kDigitBits] = {};
    for (int64_t i = 0; i < count; ++i) ++next[from[i] >> low & mask];
    int64_t before = 0;
    for (uint64_t digit = 0; digit <= mask; ++digit) {
      const int64_t own = next[digit];
      next[digit] = before;
      before += own;
    }
    for (int64_t i = 0; i < count; ++i) to[next[from[i] >> low & mask]++] = from[i];
    std::swap(from, to);
  }
  return from;
}

// The sorted corners of one class of an image, and their vertices.
template <typename Index>
struct VertexClass {
  uint64_t* entries;  // [P] sorted by key, then point: a word of the key above the point's number
  int64_t vertices = 0;      // M'
  Workspace<Index> begins;   // [M' + 1] where the entries of a vertex begin
  Workspace<Index> number;   // [M'] the vertex's number in the lattice
  Workspace<uint64_t> keys;  // [words, M' + 1]; the last key is all ones

  // Overwrites `memory` [words + 1, P].
  void sort(const ClassKeys& layout, int k, const ImageSimplices& image, uint64_t* memory) {
    const uint64_t mask = layout.point_mask();
    const int64_t points = image.points;
    uint64_t* other = memory + layout.words * points;
    for (int w = layout.words - 1; w >= 0; --w) {
      uint64_t* word = memory + w * points;
      run_best<PackClass>(&layout, w, k, image, word);
      if (w == layout.words - 1)
        std::copy(word, word + points, other);
      else
        for (int64_t i = 0; i < points; ++i) other[i] = word[entries[i] & mask];
      const int low = layout.point_bits;
      const uint64_t* sorted = radix_sort(other, entries, points, low, low + layout.word_bits[w]);
      if (sorted != entries) std::copy(sorted, sorted + points, entries);
    }
    find_vertices(layout, memory, points);
  }

 private:
  // given [words, P]: the words in the order of the points
  void find_vertices(const ClassKeys& layout, const uint64_t* given, int64_t points) {
    const uint64_t mask = layout.point_mask();
    const auto word = [&](int w, int64_t i) {
      const uint64_t at = entries[i];
      return (w == 0 ? at : given[w * points + static_cast<int64_t>(at & mask)]) >>
             layout.point_bits;
    };
    const auto begins_vertex = [&](int64_t i) {
      bool differs = i == 0;
      for (int w = 0; w < layout.words && !differs; ++w) differs = word(w, i) != word(w, i - 1);
      return differs;
    };
    for (int64_t i = 0; i < points; ++i) vertices += begins_vertex(i);
    begins = Workspace<Index>(vertices + 1);
    number = Workspace<Index>(vertices);
    keys = Workspace<uint64_t>(layout.words * (vertices + 1));
    int64_t m = 0;
    for (int64_t i = 0; i < points; ++i) {
      if (!begins_vertex(i)) continue;
      begins[m] = static_cast<Index>(i);
      for (int w = 0; w < layout.words; ++w) keys[w * (vertices + 1) + m] = word(w, i);
      ++m;
    }
    begins[m] = static_cast<Index>(points);
    for (int w = 0; w < layout.words; ++w) keys[w * (vertices + 1) + m] = ~uint64_t{0};
  }
};

}  // namespace atrousx
