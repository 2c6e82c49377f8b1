// CUDA allocation, launches and registration of mean-field inference.
#include "cuda/launch.h"
#include "mean_field/cuda/launch_order.h"
#include "mean_field/terms.h"

namespace atrousx {
namespace {

using torch::stable::contiguous;

struct StreamLaunch {
  cudaStream_t stream;
  const Arena& arena;

  template <typename... Parameters, typename... Arguments>
  void operator()(void (*kernel)(Parameters...), int64_t threads, Arguments... arguments) const {
    launch({"_mean_field", grid_for(threads), kThreads, stream}, kernel, arena.lend(arguments)...);
  }
};

static_assert(kThreads == kRowThreads);

template <typename T, typename Index>
MeanFieldTerm<T, Index> make_term(const MeanFieldTensors& tensors, double weight, RowShape shape,
                                  Arena& arena) {
  const Lattice& l = tensors.lattice;
  MeanFieldTerm<T, Index> term{};
  term.corner_weights = arena.reads<T>(l.corner_weights);
  term.corner_vertices = arena.reads<Index>(l.corner_vertices);
  term.starts = arena.reads<Index>(l.starts);
  term.entry_points = arena.reads<Index>(l.entry_points);
  term.entry_weights = arena.reads<T>(l.entry_weights);
  term.neighbours = arena.reads<Index>(l.neighbours);
  term.splat_scale = arena.reads<T>(tensors.splat_scale);
  term.slice_scale = arena.reads<T>(tensors.slice_scale);
  term.compatibility = arena.reads<T>(tensors.compatibility);
  term.diagonal = tensors.diagonal();
  term.weight = static_cast<T>(weight);
  term.vertices = l.vertices();
  term.entries = l.entry_points.numel();
  term.dims = l.dims();
  if (term.splat_scale != nullptr) term.scaled_entries = arena.take<T>(term.entries);
  if (term.compatibility != nullptr)
    term.costs = arena.take<LabelPack<T>>((term.diagonal ? 1 : shape.labels) * shape.packs);
  term.lattice = arena.take<LabelPack<T>>(term.vertices * shape.packs);
  return term;
}

template <typename T, typename Index>
void infer(const Tensor& logits, const std::vector<MeanFieldTensors>& tensors,
           const std::vector<double>& weights, int64_t iterations, const Tensor& output) {
  const int64_t images = logits.size(0), points = logits.size(2);
  const RowShape shape = RowShape::make<T>(logits.size(1));
  const LaunchContext context(logits.get_device_index());
  Arena arena(logits);
  std::vector<MeanFieldTerm<T, Index>> terms;
  int64_t most_vertices = 0;
  bool matrix = false;
  for (size_t k = 0; k < tensors.size(); ++k) {
    terms.push_back(make_term<T, Index>(tensors[k], weights[k], shape, arena));
    most_vertices = max_of(most_vertices, terms[k].vertices);
    matrix = matrix || terms[k].message().matrix;
  }
  const int64_t packs = images * points * shape.packs;
  MeanFieldRows<T> rows{};
  rows.log_p = arena.take<LabelPack<T>>(packs);
  rows.q = arena.take<LabelPack<T>>(packs);
  if (matrix) rows.filtered = arena.take<LabelPack<T>>(packs);
  rows.spare = arena.take<LabelPack<T>>(most_vertices * shape.packs);
  run_mean_field(StreamLaunch{context.stream(), arena}, arena.reads<T>(logits),
                 arena.writes<T>(output), terms, rows, {images, points, iterations, shape});
}

Tensor mean_field_cuda(const Tensor& logits, std::vector<Tensor> tensors,
                       std::vector<double> weights, int64_t iterations) {
  const std::vector<MeanFieldTensors> terms = mean_field_tensors(logits, tensors, weights);
  check_iterations(iterations);
  STD_TORCH_CHECK(terms.size() <= kMaxMessages, "there may be at most ", kMaxMessages, " terms");
  const Tensor source = contiguous(logits);
  const Tensor output = empty_like_of(logits, {logits.size(0), logits.size(1), logits.size(2)});
  if (output.numel() == 0) return output;
  const ScalarType index = terms.empty() ? ScalarType::Int : terms[0].lattice.index_type();
  dispatch_lattice(logits.scalar_type(), index, [&](auto zero, auto i) {
    infer<decltype(zero), decltype(i)>(source, terms, weights, iterations, output);
  });
  return output;
}

}  // namespace
}  // namespace atrousx

STABLE_TORCH_LIBRARY_IMPL(atrousx, ATROUSX_CUDA_KEY, m) {
  m.impl("_mean_field", ATROUSX_BOX(atrousx::mean_field_cuda));
}
