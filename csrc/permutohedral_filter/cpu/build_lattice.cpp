// The lattice of a batch of images on the CPU: simplices, vertices, compressed rows, neighbours.
//
// A task is a class of corners of one image (vertex_sort.h). Vertices are numbered in the order in
// which points meet them: point after point, and corner after corner. So the vertices of nearby
// points are near in memory. The result does not depend on the number of threads.
#include <algorithm>
#include <cstring>

#include "permutohedral_filter/cpu/embed.h"
#include "permutohedral_filter/cpu/splat_blur_slice.h"
#include "permutohedral_filter/cpu/vertex_sort.h"

namespace atrousx {
namespace {

using torch::stable::contiguous;
using torch::stable::parallel_for;

constexpr int64_t kPointsPerTask = 4096, kCornersPerTask = 1 << 16;

// features [N, D, P] -> simplices of N P points
template <typename T>
void embed(const Tensor& features, const Simplices<T>& out) {
  const int64_t dims = features.size(1), points = features.size(2);
  const auto plan = EmbeddingPlan<T>::make(static_cast<int>(dims));
  for (int64_t n = 0; n < features.size(0); ++n)
    parallel_for(0, points, kPointsPerTask, [&](int64_t begin, int64_t end) {
      run_with_lanes<EmbedPoints>(&plan,
                                  ImageFeatures<T>{data<T>(features) + n * dims * points, points},
                                  out, n * points, begin, end);
    });
}

// The least and the largest of `points` multiples of each of D coordinates, which lie `rows` apart.
struct Ranges {
  static ATROUSX_ALWAYS_INLINE void run(const int32_t* multiple, int64_t rows, int64_t points,
                                        int dims, int32_t* least, int32_t* most) {
    for (int i = 0; i < dims; ++i, multiple += rows) {
      int32_t low = multiple[0], high = multiple[0];
      for (int64_t p = 1; p < points; ++p) {
        low = min_of(low, multiple[p]);
        high = max_of(high, multiple[p]);
      }
      least[i] = low;
      most[i] = high;
    }
  }
};

template <typename T, typename Index>
struct Assembly {
  int64_t images, points, vertices = 0;
  int dims;
  Simplices<T> simplices;
  std::vector<ClassKeys> keys;              // [N]
  std::vector<VertexClass<Index>> classes;  // [N, D + 1]
  Workspace<uint64_t> entries;              // [N, D + 1, P] of the classes

  int width() const { return dims + 1; }
  int64_t corners() const { return images * points * width(); }
  int64_t first_point(int64_t task) const { return task / width() * points; }
  const ClassKeys& layout(int64_t task) const { return keys[task / width()]; }

  // Calls f(class, task) for the classes of all images. The corner k of a task is task % width().
  template <typename F>
  void each_class(const F& f) {
    parallel_for(0, images * width(), 1, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) f(classes[task], task);
    });
  }

  void sort() {
    keys.resize(images);
    int words = 1;
    for (int64_t n = 0; n < images; ++n) {
      int32_t least[kMaxFeatures], most[kMaxFeatures];
      run_best<Ranges>(simplices.multiple + n * points, simplices.rows, points, dims,
                       static_cast<int32_t*>(least), static_cast<int32_t*>(most));
      STD_TORCH_CHECK(keys[n].make(dims, points, least, most),
                      "a lattice of so many points spans too many vertices");
      words = std::max(words, keys[n].words);
    }
    classes.resize(images * width());
    entries = Workspace<uint64_t>(corners());
    parallel_for(0, images * width(), 1, [&](int64_t begin, int64_t end) {
      const Workspace<uint64_t> memory((words + 1) * points);
      for (int64_t task = begin; task < end; ++task) {
        const int64_t first = first_point(task);
        classes[task].entries = entries.data() + task * points;
        classes[task].sort(
            layout(task), static_cast<int>(task % width()),
            {simplices.multiple + first, simplices.rank + first, simplices.rows, points},
            memory.data());
      }
    });
  }

  // The first corner that has vertex m of a class.
  int64_t first_corner(const VertexClass<Index>& c, int64_t task, int64_t m) const {
    const auto point = static_cast<int64_t>(c.entries[c.begins[m]] & layout(task).point_mask());
    return (first_point(task) + point) * width() + task % width();
  }

  // corner_vertices [N P, D + 1]: only the first corner of each vertex gets the vertex's number.
  void number(Index* corner_vertices) {
    const Workspace<uint8_t> marked(corners());
    const int64_t blocks = ceil_div(corners(), kCornersPerTask);
    std::vector<int64_t> before(blocks + 1, 0);
    const auto each_block = [&](const auto& f) {
      parallel_for(0, blocks, 1, [&](int64_t begin, int64_t end) {
        for (int64_t b = begin; b < end; ++b)
          f(b, b * kCornersPerTask, std::min(corners(), (b + 1) * kCornersPerTask));
      });
    };
    std::memset(marked.data(), 0, corners());
    each_class([&](auto& c, int64_t task) {
      for (int64_t m = 0; m < c.vertices; ++m) marked[first_corner(c, task, m)] = 1;
    });
    each_block([&](int64_t b, int64_t begin, int64_t end) {
      before[b + 1] = std::count(&marked[begin], &marked[begin] + (end - begin), 1);
    });
    for (int64_t b = 0; b < blocks; ++b) before[b + 1] += before[b];
    vertices = before[blocks];
    each_block([&](int64_t b, int64_t begin, int64_t end) {
      Index next = static_cast<Index>(before[b]);
      for (int64_t i = begin; i < end; ++i)
        if (marked[i]) corner_vertices[i] = next++;
    });
    each_class([&](auto& c, int64_t task) {
      for (int64_t m = 0; m < c.vertices; ++m)
        c.number[m] = corner_vertices[first_corner(c, task, m)];
    });
  }

  // Fills starts [M + 1], entry_points and entry_weights [E], and all of corner_vertices
  // [N P, D + 1]. The order is vertex after vertex; the points of a vertex are near each other.
  void fill_rows(Index* starts, Index* entry_points, T* entry_weights, Index* corner_vertices) {
    struct Place {
      const uint64_t* entries;
      int64_t first;  // point of the image
      int64_t k;
    };
    const Workspace<Place> places(vertices);
    starts[0] = 0;
    each_class([&](auto& c, int64_t task) {
      for (int64_t m = 0; m < c.vertices; ++m) {
        starts[c.number[m] + 1] = c.begins[m + 1] - c.begins[m];
        places[c.number[m]] = {c.entries + c.begins[m], first_point(task), task % width()};
      }
    });
    for (int64_t m = 0; m < vertices; ++m) starts[m + 1] += starts[m];
    const uint64_t mask = keys[0].point_mask();
    parallel_for(0, vertices, kPointsPerTask, [&](int64_t begin, int64_t end) {
      constexpr int64_t kAhead = 8;
      for (int64_t m = begin; m < end; ++m) {
        __builtin_prefetch(places[std::min(m + kAhead, vertices - 1)].entries);
        const Place here = places[m];
        for (int64_t e = starts[m]; e < static_cast<int64_t>(starts[m + 1]); ++e) {
          const int64_t point =
              here.first + static_cast<int64_t>(here.entries[e - starts[m]] & mask);
          const int64_t corner = point * width() + here.k;
          entry_points[e] = static_cast<Index>(point);
          entry_weights[e] = simplices.weight[corner];
          corner_vertices[corner] = static_cast<Index>(m);
        }
      }
    });
  }

  // neighbours [D + 1, 2, M]
  void link(Index* neighbours) {
    for (int axis = 0; axis < width(); ++axis)
      std::fill_n(neighbours + (2 * axis + 1) * vertices, vertices, Index{-1});
    each_class([&](auto& c, int64_t task) {
      const int k = static_cast<int>(task % width());
      const VertexClass<Index>& next = classes[task - k + (k == 0 ? dims : k - 1)];
      for (int axis = 0; axis < width(); ++axis) {
        Index* ahead = neighbours + 2 * axis * vertices;
        if (layout(task).words == 1)
          link_class(layout(task), c, next, k, axis, ahead);
        else
          link_wide_class(layout(task), c, next, k, axis, ahead);
      }
    });
  }

  // Both classes are sorted, and stay sorted when the step is added. So one loop without branches
  // goes through both.
  void link_class(const ClassKeys& layout, const VertexClass<Index>& c,
                  const VertexClass<Index>& next, int k, int axis, Index* ahead) {
    const uint64_t step = layout.step(0, k, axis);
    Index* behind = ahead + vertices;
    int64_t at = 0;
    for (int64_t m = 0; m < c.vertices;) {
      const uint64_t wanted = c.keys[m] + step, found = next.keys[at];
      if (found == wanted) behind[next.number[at]] = c.number[m];
      ahead[c.number[m]] = found == wanted ? next.number[at] : Index{-1};
      at += found < wanted;
      m += found >= wanted;
    }
  }

  void link_wide_class(const ClassKeys& layout, const VertexClass<Index>& c,
                       const VertexClass<Index>& next, int k, int axis, Index* ahead) {
    Index* behind = ahead + vertices;
    const auto compare = [&](int64_t at, int64_t m) {
      for (int w = 0; w < layout.words; ++w) {
        const uint64_t found = next.keys[w * (next.vertices + 1) + at];
        const uint64_t wanted = c.keys[w * (c.vertices + 1) + m] + layout.step(w, k, axis);
        if (found != wanted) return found < wanted ? -1 : 1;
      }
      return 0;
    };
    int64_t at = 0;
    for (int64_t m = 0; m < c.vertices; ++m) {
      while (compare(at, m) < 0) ++at;
      const bool found = compare(at, m) == 0;
      ahead[c.number[m]] = found ? next.number[at] : Index{-1};
      if (found) behind[next.number[at]] = c.number[m];
    }
  }
};

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> assemble_cpu(const Tensor& features) {
  check_features(features);
  STD_TORCH_CHECK(features.numel() != 0, "a lattice must have points");
  const Tensor source = contiguous(features);
  const int64_t images = features.size(0), dims = features.size(1), points = features.size(2);
  const int64_t rows = images * points, corners = rows * (dims + 1);
  const ScalarType type = features.scalar_type();
  const ScalarType index = corners < (int64_t{1} << 31) ? ScalarType::Int : ScalarType::Long;
  const Tensor weights = empty_large(features, {rows, dims + 1}, type);
  const Tensor corner_vertices = empty_large(features, {rows, dims + 1}, index);
  const Tensor entry_points = empty_large(features, {corners}, index);
  const Tensor entry_weights = empty_large(features, {corners}, type);
  std::optional<Tensor> starts, neighbours;
  dispatch_lattice(type, index, [&](auto zero, auto i) {
    using T = decltype(zero);
    using Index = decltype(i);
    const Workspace<int32_t> multiple(corners);
    const Workspace<uint8_t> rank(corners);
    Assembly<T, Index> assembly;
    assembly.images = images;
    assembly.points = points;
    assembly.dims = static_cast<int>(dims);
    assembly.simplices = {multiple.data(), rank.data(), mutable_data<T>(weights), rows};
    embed<T>(source, assembly.simplices);
    assembly.sort();
    assembly.number(mutable_data<Index>(corner_vertices));
    starts = empty_large(features, {assembly.vertices + 1}, index);
    neighbours = empty_large(features, {dims + 1, 2, assembly.vertices}, index);
    assembly.fill_rows(mutable_data<Index>(*starts), mutable_data<Index>(entry_points),
                       mutable_data<T>(entry_weights), mutable_data<Index>(corner_vertices));
    assembly.link(mutable_data<Index>(*neighbours));
  });
  return {weights, corner_vertices, *starts, entry_points, entry_weights, *neighbours};
}

}  // namespace
}  // namespace atrousx

STABLE_TORCH_LIBRARY_IMPL(atrousx, CPU, m) {
  m.impl("_permutohedral_assemble", ATROUSX_BOX(atrousx::assemble_cpu));
}
