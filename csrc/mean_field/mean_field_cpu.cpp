// Mean-field inference of the dense CRF on the CPU, all iterations in one call.
//
// Labels are the channels of the permutohedral loops; rows of labels are padded to whole vectors
// with log-probabilities of minus infinity, so that their probabilities are 0. An iteration splats
// and blurs Q on each kernel's lattice, then visits each point once: it slices, subtracts the
// messages from log P and takes the softmax, all in the row of Q that it replaces.
#include <cmath>
#include <cstring>
#include <limits>

#include "../permutohedral/cpu_rows.h"

namespace atrousx {
namespace {

using torch::stable::contiguous;
using torch::stable::parallel_for;

// e^x of each lane, x <= 0. Float: 2^k e^r with |r| <= log(2) / 2 and r's series up to r^7 (5e-9);
// results below 2^-126 are 0, NaN stays.
ATROUSX_ALWAYS_INLINE void exp_lanes(typename RowVector<float>::type& x) {
  using Vector = typename RowVector<float>::type;
  typedef int32_t Bits __attribute__((vector_size(32)));
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: what is added to it is rounded to an integer
  const Vector shifted = x * 1.44269504f + kRound;
  const Vector k = shifted - kRound;
  const Vector r = (x - k * 0.693359375f) + k * 2.12194440e-4f;  // log(2) in two parts
  Vector series = r * (1.0f / 5040) + 1.0f / 720;
  for (float coefficient : {1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f})
    series = series * r + coefficient;
  Bits exponent, bits;
  std::memcpy(&exponent, &shifted, sizeof exponent);
  std::memcpy(&bits, &series, sizeof bits);
  // The integer is in the last bits of `shifted`; the first ones are shifted out.
  const Bits scaled = bits + (exponent << 23);
  const Bits vanished = x < -87.0f;
  const Bits result = scaled & ~vanished;
  std::memcpy(&x, &result, sizeof result);
}

ATROUSX_ALWAYS_INLINE void exp_lanes(typename RowVector<double>::type& x) {
  for (int i = 0; i < RowVector<double>::kLanes; ++i) x[i] = std::exp(x[i]);
}

template <typename T>
ATROUSX_ALWAYS_INLINE T largest(const T* row, int64_t vectors) {
  using Vector = typename RowVector<T>::type;
  const Vector* v = reinterpret_cast<const Vector*>(row);
  Vector most = v[0];
  for (int64_t i = 1; i < vectors; ++i) most = v[i] > most ? v[i] : most;
  T result = most[0];
  for (int64_t i = 1; i < RowVector<T>::kLanes; ++i) result = max_of(result, most[i]);
  return result;
}

// In place; minus infinity becomes 0.
template <typename T>
ATROUSX_ALWAYS_INLINE void softmax(T* row, int64_t vectors) {
  using Vector = typename RowVector<T>::type;
  Vector* v = reinterpret_cast<Vector*>(row);
  const T most = largest(row, vectors);
  Vector sums{};
  for (int64_t i = 0; i < vectors; ++i) {
    Vector x = v[i] - most;
    exp_lanes(x);
    v[i] = x;
    sums += x;
  }
  T sum = T(0);
  for (int64_t i = 0; i < RowVector<T>::kLanes; ++i) sum += sums[i];
  const T scale = T(1) / sum;
  for (int64_t i = 0; i < vectors; ++i) v[i] = v[i] * scale;
}

// logits [N, L, P] -> log P, up to a constant per point, and Q = P: rows of labels
struct StartRows {
  template <typename T>
  static ATROUSX_ALWAYS_INLINE void run(const T* logits, T* log_p, T* q, int64_t labels,
                                        int64_t vectors, int64_t points, int64_t begin,
                                        int64_t end) {
    const int64_t stride = vectors * RowVector<T>::kLanes;
    for (int64_t p = begin; p < end; ++p) {
      const T* source = logits + p / points * labels * points + p % points;
      T* row = log_p + p * stride;
      for (int64_t l = 0; l < labels; ++l) row[l] = source[l * points];
      for (int64_t l = labels; l < stride; ++l) row[l] = -std::numeric_limits<T>::infinity();
      const T most = largest(row, vectors);
      for (int64_t l = 0; l < labels; ++l) row[l] -= most;
      T* own = q + p * stride;
      for (int64_t l = 0; l < stride; ++l) own[l] = row[l];
      softmax(own, vectors);
    }
  }
};

// One Gaussian kernel of the energy, with Blur(Splat(Q)).
template <typename T, typename Index>
struct MessageTerm {
  const T* lattice;         // [M, padded L]
  const Index* vertices;    // [N P, D + 1]
  const T* corner_weights;  // [N P, D + 1]
  const T* slice_scale;     // [N P] or null
  const T* costs;           // [L, padded L], row: the label that is met; null is Potts'
  T weight;
  int dims;
};

// q[p] = softmax(log P[p] - messages)
struct UpdateRows {
  // row += factor * the filtered labels of one point
  template <int kVectors, typename T, typename Index>
  static ATROUSX_ALWAYS_INLINE void block(int64_t lane, const MessageTerm<T, Index>* term,
                                          int64_t stride, int64_t point, T scale, T factor,
                                          T* row) {
    RowBlock<T, kVectors> filtered;
    const int64_t corner = point * (term->dims + 1);
    slice_block(term->lattice + lane, stride, term->vertices + corner,
                term->corner_weights + corner, scale, term->dims, filtered);
    RowBlock<T, kVectors> sum;
    sum.load(row + lane);
    for (int i = 0; i < kVectors; ++i) sum.v[i] += factor * filtered.v[i];
    sum.store(row + lane);
  }

  template <typename T, typename Index>
  static ATROUSX_ALWAYS_INLINE void run(const MessageTerm<T, Index>* terms, int64_t count,
                                        const T* log_p, T* q, T* scratch, int64_t labels,
                                        int64_t vectors, int64_t begin, int64_t end) {
    using Vector = typename RowVector<T>::type;
    constexpr int64_t kLanes = RowVector<T>::kLanes;
    const int64_t stride = vectors * kLanes;
    for (int64_t p = begin; p < end; ++p) {
      T* row = q + p * stride;
      Vector* v = reinterpret_cast<Vector*>(row);
      const Vector* start = reinterpret_cast<const Vector*>(log_p + p * stride);
      for (int64_t i = 0; i < vectors; ++i) v[i] = start[i];
      for (const MessageTerm<T, Index>* term = terms; term != terms + count; ++term) {
        const T own = slice_scale<T>(term->dims);
        const T scale = term->slice_scale == nullptr ? own : own * term->slice_scale[p];
        if (term->costs == nullptr) {
          // Probabilities sum to one: what unequal labels cost is a constant less what equal ones
          // do, and softmax drops the constant.
          over_blocks<UpdateRows>(vectors, kLanes, term, stride, p, scale, term->weight, row);
          continue;
        }
        for (int64_t i = 0; i < stride; ++i) scratch[i] = T(0);
        over_blocks<UpdateRows>(vectors, kLanes, term, stride, p, scale, -term->weight, scratch);
        for (int64_t l = 0; l < labels; ++l) {
          const Vector* cost = reinterpret_cast<const Vector*>(term->costs + l * stride);
          for (int64_t i = 0; i < vectors; ++i) v[i] += scratch[l] * cost[i];
        }
      }
      softmax(row, vectors);
    }
  }
};

// rows of Q -> [N, L, P]
struct FinishRows {
  template <typename T>
  static ATROUSX_ALWAYS_INLINE void run(const T* q, T* output, int64_t labels, int64_t stride,
                                        int64_t points, int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) {
      T* target = output + p / points * labels * points + p % points;
      for (int64_t l = 0; l < labels; ++l) target[l * points] = q[p * stride + l];
    }
  }
};

constexpr size_t kTermTensors = 9;

// A term's tensors: its lattice's six, what splatting and slicing multiply by, the compatibility;
// the last three may be empty.
struct TermTensors {
  Lattice lattice;
  std::optional<Tensor> splat_scale, slice_scale, compatibility;

  static TermTensors make(const Tensor* t, const Tensor& logits, int64_t points) {
    const auto given = [](const Tensor& tensor) {
      return tensor.numel() == 0 ? std::nullopt : std::optional<Tensor>(tensor);
    };
    TermTensors term{{t[0], t[1], t[2], t[3], t[4], t[5]}, given(t[6]), given(t[7]), given(t[8])};
    const Lattice& l = term.lattice;
    check_lattice(l);
    STD_TORCH_CHECK(l.points() == points && l.corner_weights.scalar_type() == logits.scalar_type(),
                    "a lattice must have the points and the dtype of logits");
    for (const auto* scale : {&term.splat_scale, &term.slice_scale})
      check_values(l, l.corner_weights, *scale, std::nullopt);
    const int64_t labels = logits.size(1);
    STD_TORCH_CHECK(
        !term.compatibility || (term.compatibility->numel() == labels * labels &&
                                term.compatibility->is_contiguous() &&
                                term.compatibility->scalar_type() == logits.scalar_type()),
        "a compatibility must be contiguous, [L, L]");
    return term;
  }
};

// entry_weights times the points' splat_scale, once for all iterations
template <typename T, typename Index>
std::vector<T> scaled_entries(const TermTensors& term) {
  const int64_t entries = term.lattice.entry_points.numel();
  std::vector<T> scaled(entries);
  const T* weight = data<T>(term.lattice.entry_weights);
  const T* scale = data<T>(term.splat_scale);
  const Index* point = data<Index>(term.lattice.entry_points);
  parallel_for(0, entries, row_grain(1), [&](int64_t begin, int64_t end) {
    for (int64_t e = begin; e < end; ++e)
      scaled[e] = scale == nullptr ? weight[e] : weight[e] * scale[point[e]];
  });
  return scaled;
}

// The compatibility [L, L] transposed, in padded rows.
template <typename T>
std::vector<T> padded_costs(const TermTensors& term, int64_t labels, int64_t stride) {
  if (!term.compatibility) return {};
  std::vector<T> costs(labels * stride, T(0));
  for (int64_t pays = 0; pays < labels; ++pays)
    for (int64_t met = 0; met < labels; ++met)
      costs[met * stride + pays] = data<T>(*term.compatibility)[pays * labels + met];
  return costs;
}

template <typename T, typename Index>
void infer(const Tensor& logits, const std::vector<TermTensors>& terms,
           const std::vector<double>& weights, int64_t iterations, const Tensor& output) {
  const int64_t images = logits.size(0), labels = logits.size(1), points = logits.size(2);
  const int64_t rows = images * points, vectors = row_vectors<T>(labels);
  const int64_t stride = vectors * RowVector<T>::kLanes, grain = row_grain(stride);
  const Tensor log_p = empty_like_of(logits, {rows, stride});
  const Tensor q = empty_like_of(logits, {rows, stride});
  std::vector<Tensor> lattices;
  std::vector<std::vector<T>> entries, costs;
  std::vector<MessageTerm<T, Index>> messages;
  for (size_t k = 0; k < terms.size(); ++k) {
    const Lattice& l = terms[k].lattice;
    lattices.push_back(empty_like_of(logits, {l.vertices(), stride}));
    entries.push_back(scaled_entries<T, Index>(terms[k]));
    costs.push_back(padded_costs<T>(terms[k], labels, stride));
    messages.push_back({data<T>(lattices[k]), data<Index>(l.corner_vertices),
                        data<T>(l.corner_weights), data<T>(terms[k].slice_scale),
                        costs[k].empty() ? nullptr : costs[k].data(), static_cast<T>(weights[k]),
                        l.dims()});
  }
  parallel_for(0, rows, grain, [&](int64_t begin, int64_t end) {
    run_best<StartRows>(data<T>(logits), mutable_data<T>(log_p), mutable_data<T>(q), labels,
                        vectors, points, begin, end);
  });
  for (int64_t iteration = 0; iteration < iterations; ++iteration) {
    for (size_t k = 0; k < terms.size(); ++k)
      lift<T, Index>(terms[k].lattice, data<T>(q), stride, vectors, entries[k].data(),
                     static_cast<const T*>(nullptr), false, mutable_data<T>(lattices[k]));
    parallel_for(0, rows, grain, [&](int64_t begin, int64_t end) {
      std::vector<T> scratch(stride);
      run_best<UpdateRows>(static_cast<const MessageTerm<T, Index>*>(messages.data()),
                           static_cast<int64_t>(messages.size()), data<T>(log_p),
                           mutable_data<T>(q), scratch.data(), labels, vectors, begin, end);
    });
  }
  parallel_for(0, rows, grain, [&](int64_t begin, int64_t end) {
    run_best<FinishRows>(data<T>(q), mutable_data<T>(output), labels, stride, points, begin, end);
  });
}

Tensor mean_field_cpu(const Tensor& logits, std::vector<Tensor> tensors,
                      std::vector<double> weights, int64_t iterations) {
  STD_TORCH_CHECK(logits.dim() == 3, "logits must have 3 dimensions [N, L, P]");
  STD_TORCH_CHECK(tensors.size() == weights.size() * kTermTensors, "a term has a weight and ",
                  kTermTensors, " tensors");
  const Tensor source = contiguous(logits);
  const Tensor output = empty_like_of(logits, {logits.size(0), logits.size(1), logits.size(2)});
  if (output.numel() == 0) return output;
  std::vector<TermTensors> terms;
  for (size_t k = 0; k < weights.size(); ++k)
    terms.push_back(
        TermTensors::make(&tensors[k * kTermTensors], source, logits.size(0) * logits.size(2)));
  const ScalarType index = terms.empty() ? ScalarType::Int : terms[0].lattice.index_type();
  for (const TermTensors& term : terms)
    STD_TORCH_CHECK(term.lattice.index_type() == index, "lattices must have one index dtype");
  dispatch_lattice(logits.scalar_type(), index, [&](auto zero, auto i) {
    infer<decltype(zero), decltype(i)>(source, terms, weights, iterations, output);
  });
  return output;
}

}  // namespace
}  // namespace atrousx

STABLE_TORCH_LIBRARY_IMPL(atrousx, CPU, m) {
  m.impl("_mean_field", TORCH_BOX(&atrousx::mean_field_cpu));
}
