// Host-executed mean-field inference: the kernels in the order of launches that CUDA runs them in.
#include "arrays.h"
#include "mean_field/sequence.h"

namespace {

namespace py = pybind11;
using emulator::Buffer;

struct HostLaunch {
  unsigned int blocks;  // at most

  template <typename... Parameters, typename... Arguments>
  void operator()(void (*kernel)(Parameters...), int64_t threads, Arguments... arguments) const {
    constexpr int64_t kBlock = 64;
    const auto needed = atrousx::ceil_div<int64_t>(threads, kBlock);
    const auto grid = static_cast<unsigned int>(atrousx::min_of<int64_t>(needed, blocks));
    emulator::launch(grid, kBlock, 0, kernel, arguments...);
  }
};

// One term in blocks of exactly its sizes; an empty array stands for what is not given.
template <typename T, typename Index>
struct HostTerm {
  Buffer<T> corner_weights, entry_weights, splat_scale, slice_scale, compatibility, scaled_entries;
  Buffer<Index> corner_vertices, starts, entry_points, neighbours;
  Buffer<atrousx::LabelPack<T>> costs, lattice;
  int64_t vertices;
  int dims;
  bool diagonal;
  T weight;

  HostTerm(const std::vector<py::array>& a, double weight, const atrousx::RowShape& shape)
      : corner_weights(a[0]),
        entry_weights(a[4]),
        splat_scale(a[6]),
        slice_scale(a[7]),
        compatibility(a[8]),
        scaled_entries(a[6].size() == 0 ? 0 : a[4].size()),
        corner_vertices(a[1]),
        starts(a[2]),
        entry_points(a[3]),
        neighbours(a[5]),
        costs(a[8].size() == 0 ? 0 : (a[8].ndim() == 1 ? 1 : shape.labels) * shape.packs),
        lattice(a[5].shape(2) * shape.packs),
        vertices(a[5].shape(2)),
        dims(static_cast<int>(a[0].shape(1)) - 1),
        diagonal(a[8].ndim() == 1),
        weight(static_cast<T>(weight)) {}

  template <typename U>
  static U* given(Buffer<U>& buffer) {
    return buffer.size() == 0 ? nullptr : buffer.data();
  }

  atrousx::MeanFieldTerm<T, Index> view() {
    return {corner_weights.data(),
            corner_vertices.data(),
            starts.data(),
            entry_points.data(),
            entry_weights.data(),
            neighbours.data(),
            given(splat_scale),
            given(slice_scale),
            given(compatibility),
            diagonal,
            weight,
            vertices,
            static_cast<int64_t>(entry_weights.size()),
            dims,
            given(scaled_entries),
            given(costs),
            lattice.data()};
  }
};

template <typename T, typename Index>
py::array run(const py::array& logits, const std::vector<std::vector<py::array>>& arrays,
              const std::vector<double>& weights, int64_t iterations, unsigned int blocks) {
  const int64_t images = logits.shape(0), labels = logits.shape(1), points = logits.shape(2);
  const auto shape = atrousx::RowShape::make<T>(labels);
  std::vector<std::unique_ptr<HostTerm<T, Index>>> terms;
  std::vector<atrousx::MeanFieldTerm<T, Index>> views;
  int64_t most = 0;
  bool matrix = false;
  for (size_t k = 0; k < arrays.size(); ++k) {
    terms.push_back(std::make_unique<HostTerm<T, Index>>(arrays[k], weights[k], shape));
    views.push_back(terms[k]->view());
    most = std::max(most, views[k].vertices);
    matrix = matrix || views[k].message().matrix;
  }
  const size_t packs = images * points * shape.packs;
  Buffer<T> source(logits), output(logits.size());
  Buffer<atrousx::LabelPack<T>> log_p(packs), q(packs), filtered(matrix ? packs : 0);
  Buffer<atrousx::LabelPack<T>> spare(most * shape.packs);
  const atrousx::MeanFieldRows<T> rows{log_p.data(), q.data(), filtered.data(), spare.data()};
  const T* in = source.data();
  atrousx::run_mean_field(HostLaunch{blocks}, in, output.data(), views, rows, images, points,
                          iterations, shape);
  return output.to_array({images, labels, points}, logits.dtype());
}

// terms: nine arrays each, as the operator's tensors; logits [N, L, P], indices of their width
py::array mean_field(const py::array& logits, const std::vector<std::vector<py::array>>& terms,
                     const std::vector<double>& weights, int64_t iterations, unsigned int blocks) {
  // Two of the four combinations are compiled, since compiling is what the tests spend their time
  // on.
  if (logits.itemsize() == 4)
    return run<float, int32_t>(logits, terms, weights, iterations, blocks);
  return run<double, int64_t>(logits, terms, weights, iterations, blocks);
}

}  // namespace

void bind_mean_field(py::module_& m) { m.def("mean_field", &mean_field); }
