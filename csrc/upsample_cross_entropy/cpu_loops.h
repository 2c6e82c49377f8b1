// The CPU's loops of upsample_cross_entropy: pixel rows forward, rows of logits backward.
#pragma once

#include "../upsample_bilinear2d/cpu_backward.h"
#include "../upsample_bilinear2d/cpu_lines.h"
#include "plan.h"

namespace atrousx {

// Labels as the loops know them: a class, or one of these.
constexpr int kIgnoredClass = -1, kInvalidClass = -2;

template <typename A>
using ClassIndex = std::conditional_t<sizeof(A) == 8, int64_t, int32_t>;

struct ClassifyLabels {
  template <typename Label, typename Index>
  static ATROUSX_ALWAYS_INLINE void run(const Label* labels, int64_t count, int64_t channels,
                                        int64_t ignore_index, Index* classes) {
    for (int64_t j = 0; j < count; ++j) {
      const auto label = static_cast<int64_t>(labels[j]);
      const bool valid = label >= 0 && label < channels;
      const auto c = valid ? static_cast<Index>(label) : Index(kInvalidClass);
      classes[j] = label == ignore_index ? Index(kIgnoredClass) : c;
    }
  }
};

struct Labels {
  const void* data;  // [N, OH, OW]
  ScalarType dtype;
  int64_t channels, ignore_index;

  // Of `count` pixels from `at` on; those up to a whole block are ignored.
  template <typename Index>
  void classify(int64_t at, int64_t count, Index* classes) const {
    if (dtype == ScalarType::Long)
      run_best<ClassifyLabels>(static_cast<const int64_t*>(data) + at, count, channels,
                               ignore_index, classes);
    else if (dtype == ScalarType::Int)
      run_best<ClassifyLabels>(static_cast<const int32_t*>(data) + at, count, channels,
                               ignore_index, classes);
    else
      run_best<ClassifyLabels>(static_cast<const uint8_t*>(data) + at, count, channels,
                               ignore_index, classes);
    std::fill(classes + count, classes + kLineBlock, Index(kIgnoredClass));
  }
};

// The weights of a block's classes: 0 where ignored, NaN where there is no such class.
template <int kLanes, typename A>
ATROUSX_ALWAYS_INLINE void weigh_classes(const PixelLoss<A>& loss, const ClassIndex<A>* classes,
                                         A* weight) {
  using V = Lanes<A, kLanes>;
  for (int64_t j = 0; j < kLineBlock && loss.class_weight != nullptr; ++j)
    weight[j] = loss.class_weight[max_of(classes[j], ClassIndex<A>(0))];
  for (int64_t j = 0; j < kLineBlock; j += kLanes) {
    const auto c = load_raw<Lanes<ClassIndex<A>, kLanes>>(classes + j);
    V w = V{} + A(1);
    if (loss.class_weight != nullptr) w = load_lanes<kLanes>(weight + j);
    const auto known = c >= 0, invalid = c == kInvalidClass;
    const V none = V{}, nan = none + std::numeric_limits<A>::quiet_NaN();
    w = known ? w : none;
    store_lanes<kLanes>(weight + j, invalid ? nan : w);
  }
}

template <typename A>
struct LossPlan {
  LinesPlan<A> lines;
  PixelLoss<A> loss;  // of classes, not labels
  A total;            // of the class weights
  Labels labels;
};

template <typename A>
struct LossForwardPlan : LossPlan<A> {
  A* log_sum;          // [N, OH, OW]
  A* losses;           // [N, OH, OW], or null
  double* row_loss;    // [N, OH]
  double* row_weight;  // [N, OH]
  int64_t room() const { return this->lines.room() + this->lines.r.channels * kLineBlock; }
};

// One block of pixels after another.
template <int kBytes, typename A>
class LossBlocks {
  static constexpr int kLanes = kLanesIn<kBytes, A>;
  using Math = LaneMath<A, kLanes>;
  using V = Lanes<A, kLanes>;
  using Index = ClassIndex<A>;

 public:
  ATROUSX_ALWAYS_INLINE LossBlocks(const LossForwardPlan<A>* plan, A* values)
      : plan_(plan), values_(values) {}

  ATROUSX_ALWAYS_INLINE void block(int64_t row, int64_t first, int64_t count,
                                   const BlendedLines<A>& lines) {
    const int64_t at = row * plan_->lines.r.out_width + first;
    alignas(64) A lse[kLineBlock], sum[kLineBlock], loss[kLineBlock];
    softmax_sums<kLanes, false>(lines, plan_->loss.channels, count, values_, static_cast<A*>(lse),
                                static_cast<A*>(sum));
    Index classes[kLineBlock];
    plan_->labels.classify(at, count, static_cast<Index*>(classes));
    A own[kLineBlock], weight[kLineBlock];
    for (int64_t j = 0; j < kLineBlock; ++j)
      own[j] = values_[max_of(classes[j], Index(0)) * kLineBlock + j];
    weigh_classes<kLanes>(plan_->loss, static_cast<const Index*>(classes), static_cast<A*>(weight));
    for (int64_t j = 0; j < count; j += kLanes) {
      const V log_sum = load_lanes<kLanes>(lse + j) + Math::log_normal(load_lanes<kLanes>(sum + j));
      const V w = load_lanes<kLanes>(weight + j);
      V value = (A(1) - plan_->loss.smoothing) * w * (log_sum - load_lanes<kLanes>(own + j));
      if (plan_->loss.smoothing != A(0)) value += spread(j, log_sum);
      const auto counts = load_raw<Lanes<Index, kLanes>>(classes + j) != kIgnoredClass;
      store_lanes<kLanes>(lse + j, log_sum);
      store_lanes<kLanes>(loss + j, counts ? value : V{});
    }
    std::copy_n(lse, count, plan_->log_sum + at);
    if (plan_->losses != nullptr) std::copy_n(loss, count, plan_->losses + at);
    plan_->row_loss[row] += total(loss, count);
    plan_->row_weight[row] += total(weight, count);
  }

 private:
  // The smoothed part of the losses: (e / C) sum_c w_c (lse - v_c)
  ATROUSX_ALWAYS_INLINE V spread(int64_t j, V log_sum) const {
    V weighted = V{};
    for (int64_t c = 0; c < plan_->loss.channels; ++c)
      weighted += plan_->loss.weight(c) * load_lanes<kLanes>(values_ + c * kLineBlock + j);
    return plan_->loss.spread() * (plan_->total * log_sum - weighted);
  }

  // In float64, whole vectors of them; numbers past `count` are 0.
  static ATROUSX_ALWAYS_INLINE double total(const A* numbers, int64_t count) {
    constexpr int kWide = kBytes / 8;
    Lanes<double, kWide> sums = {};
    for (int64_t j = 0; j < count; j += kWide)
      sums += __builtin_convertvector(load_raw<Lanes<A, kWide>>(numbers + j), Lanes<double, kWide>);
    double sum = 0;
    for (int lane = 0; lane < kWide; ++lane) sum += sums[lane];
    return sum;
  }

  const LossForwardPlan<A>* plan_;
  A* values_;  // [C, kLineBlock]
};

// Losses and log-sums of pixel rows [begin, end) of all images.
template <int kBytes>
struct LossForward {
  template <typename A>
  static ATROUSX_ALWAYS_INLINE void run(const LossForwardPlan<A>* plan, A* room, int64_t begin,
                                        int64_t end) {
    for (int64_t row = begin; row < end; ++row) plan->row_loss[row] = plan->row_weight[row] = 0;
    Lines<kBytes, A> lines(&plan->lines, room);
    LossBlocks<kBytes, A> blocks(plan, room + plan->lines.room());
    over_blocks<kBytes>(&plan->lines, &lines, begin, end, &blocks);
  }
};

// Stores a few channels' gradients of a row of logits, which come as [W, lanes].
template <int kBytes>
struct StoreGradient {
  template <typename T, typename A>
  static ATROUSX_ALWAYS_INLINE void run(const A* from, int64_t width, int64_t count, T* to,
                                        int64_t channel_stride, int64_t column_stride) {
    constexpr int kLanes = kLanesIn<kBytes, A>;
    if (column_stride == 1) {
      T* rows[kLanes];
      for (int i = 0; i < kLanes; ++i) rows[i] = to + i * channel_stride;
      BackwardNarrow<kBytes>::turn_back(from, width, count, static_cast<T* const*>(rows));
    } else if (count == kLanes) {
      for (int64_t w = 0; w < width; ++w)
        store_lanes<kLanes>(to + w * column_stride, load_lanes<kLanes>(from + w * kLanes));
    } else {
      for (int64_t w = 0; w < width; ++w)
        for (int64_t i = 0; i < count; ++i)
          to[w * column_stride + i] = static_cast<T>(from[w * kLanes + i]);
    }
  }
};

struct GradientRows {
  void* data;  // [N, C, H, W], contiguous or channels_last
  ScalarType dtype;
  Strides4 strides;

  template <typename A>
  void store(const A* from, int64_t n, int64_t c, int64_t h, int64_t width, int64_t count) const {
    dispatch_floating(dtype, [&](auto zero) {
      using T = decltype(zero);
      if constexpr (std::is_same_v<Accumulate<T>, A>)
        run_with_lanes<StoreGradient>(from, width, count,
                                      static_cast<T*>(data) + strides.offset(n, c, h, 0), strides.c,
                                      strides.w);
    });
  }
};

template <typename A>
struct LossBackwardPlan : LossPlan<A> {
  const A* log_sum;  // [N, OH, OW]
  const A* grads;    // [N, OH, OW], or null for
  A grad;            // the same everywhere
  GradientRows out;

  // Channels whose sums are kept: at least a vector of them, those past the last are zeros.
  int64_t kept() const { return max_of(this->lines.r.channels, this->lines.groups.lanes); }
  int64_t room() const {
    const int64_t lanes = this->lines.groups.lanes;
    return this->lines.room() + (2 * kept() + lanes) * this->lines.pitch() +
           lanes * (this->lines.columns.in + kRowRoom);
  }
};

// Rows of logits [begin, end) of all images. A pixel's gradient is made where it is summed: down
// the rows into the lines of the two rows of logits around it, then along these lines, as in the
// backward of plain upsampling (cpu_backward.h), whose remarks on order hold here, too.
template <int kBytes>
struct LossBackward {
  // Pixel rows that are summed while a vector of sums is in registers.
  static constexpr int64_t kRows = 16;

  template <typename A>
  struct Pixels {
    using Index = ClassIndex<A>;
    A weight[kRows];  // of the lower row of logits
    // Per pixel: log-sum, factor of the softmax, of the label's own term, of the smoothing's.
    alignas(64) A lse[kRows][kLineBlock], scale[kRows][kLineBlock], own[kRows][kLineBlock],
        spread[kRows][kLineBlock];
    alignas(64) Index classes[kRows][kLineBlock];
  };

  template <typename A>
  static ATROUSX_ALWAYS_INLINE void run(const LossBackwardPlan<A>* plan, A* room, int64_t begin,
                                        int64_t end) {
    const LinesPlan<A>& at = plan->lines;
    const int64_t height = at.r.height, size = plan->kept() * at.pitch();
    Lines<kBytes, A> lines(&at, room);
    A *here = room + at.room(), *next = here + size, *turned = next + size;
    std::fill_n(here, 2 * size, A(0));
    bool first = true;
    for (int64_t r = begin; r < end; ++r) {
      const int64_t h = r % height;
      const int64_t *start = at.rows.start.data() + h, *mixed = at.rows.mixed.data() + h;
      // The row before leaves a share only where pixels lie between it and this one.
      const bool carried = h > 0 && mixed[-1] < start[0];
      if (carried && first) band(plan, &lines, r - 1, here, next);
      first = false;
      std::swap(here, next);
      std::fill_n(next, size, A(0));
      band(plan, &lines, r, here, next);
      if (carried || start[0] < start[1])
        along(plan, static_cast<const A*>(here), turned, r / height, h);
      else
        untouched(plan, turned, r / height, h);
    }
  }

  // Pixel rows between row r of the logits and the next: adds their gradients to both rows' lines.
  template <typename A>
  static ATROUSX_ALWAYS_INLINE void band(const LossBackwardPlan<A>* plan, Lines<kBytes, A>* lines,
                                         int64_t r, A* here, A* next) {
    const CpuAxis<A>& rows = plan->lines.rows;
    const int64_t h = r % rows.in, shift = r / rows.in * rows.out;
    const int64_t begin = rows.start[h], mixed = rows.mixed[h], end = rows.start[h + 1];
    if (begin < mixed) group<false>(plan, lines->hold(r, false), shift, begin, mixed, here, next);
    if (mixed < end) group<true>(plan, lines->hold(r, true), shift, mixed, end, here, next);
  }

  template <bool kMixed, typename A>
  static ATROUSX_ALWAYS_INLINE void group(const LossBackwardPlan<A>* plan,
                                          const BlendedLines<A>& lines, int64_t shift,
                                          int64_t begin, int64_t end, A* here, A* next) {
    const int64_t width = plan->lines.r.out_width;
    Pixels<A> pixels;
    for (int64_t oh = begin; oh < end; oh += kRows) {
      const int64_t rows = min_of(kRows, end - oh);
      for (int64_t k = 0; k < rows; ++k) pixels.weight[k] = plan->lines.rows.weight[oh + k];
      for (int64_t j = 0; j < width; j += kLineBlock) {
        const int64_t count = min_of(kLineBlock, width - j);
        for (int64_t k = 0; k < rows; ++k)
          prepare(plan, (shift + oh + k) * width + j, count, k, &pixels);
        BlendedLines<A> block = lines;
        block.top += j;
        block.bottom += j;
        if (plan->loss.smoothing == A(0))
          add<kMixed, false>(plan, block, &pixels, rows, count, here + j, next + j);
        else
          add<kMixed, true>(plan, block, &pixels, rows, count, here + j, next + j);
      }
    }
  }

  template <typename A>
  static ATROUSX_ALWAYS_INLINE void prepare(const LossBackwardPlan<A>* plan, int64_t at,
                                            int64_t count, int64_t k, Pixels<A>* pixels) {
    constexpr int kLanes = kLanesIn<kBytes, A>;
    using V = Lanes<A, kLanes>;
    using Index = ClassIndex<A>;
    const PixelLoss<A>& loss = plan->loss;
    Index* classes = pixels->classes[k];
    plan->labels.classify(at, count, classes);
    // Through whole vectors that end with the row: what lies behind it may be no memory of ours.
    Rows<kBytes>::convert(plan->log_sum + at, static_cast<A*>(pixels->lse[k]), count);
    std::fill(pixels->lse[k] + count, pixels->lse[k] + kLineBlock, std::numeric_limits<A>::max());
    A grads[kLineBlock] = {}, weight[kLineBlock];
    if (plan->grads != nullptr)
      Rows<kBytes>::convert(plan->grads + at, static_cast<A*>(grads), count);
    weigh_classes<kLanes>(loss, static_cast<const Index*>(classes), static_cast<A*>(weight));
    for (int64_t j = 0; j < kLineBlock; j += kLanes) {
      const auto counts = load_raw<Lanes<Index, kLanes>>(classes + j) != kIgnoredClass;
      const V all = plan->grads == nullptr ? V{} + plan->grad : load_lanes<kLanes>(grads + j);
      const V grad = counts ? all : V{};
      const V own = grad * ((A(1) - loss.smoothing) * load_lanes<kLanes>(weight + j));
      const V spread = grad * loss.spread();
      store_lanes<kLanes>(pixels->own[k] + j, own);
      store_lanes<kLanes>(pixels->spread[k] + j, spread);
      store_lanes<kLanes>(pixels->scale[k] + j, counts ? own + spread * plan->total : V{});
    }
  }

  // A block's gradients, times the rows' weights, added to both lines.
  template <bool kMixed, bool kSmoothed, typename A>
  static ATROUSX_ALWAYS_INLINE void add(const LossBackwardPlan<A>* plan,
                                        const BlendedLines<A>& lines, const Pixels<A>* pixels,
                                        int64_t rows, int64_t count, A* here, A* next) {
    constexpr int kLanes = kLanesIn<kBytes, A>;
    using V = Lanes<A, kLanes>;
    using Indices = Lanes<ClassIndex<A>, kLanes>;
    const int64_t pitch = plan->lines.pitch();
    for (int64_t j = 0; j < count; j += kLanes) {
      for (int64_t c = 0; c < plan->loss.channels; ++c) {
        const V top = load_lanes<kLanes>(lines.top + c * lines.top_pitch + j);
        const V bottom = load_lanes<kLanes>(lines.bottom + c * lines.bottom_pitch + j);
        V upper = load_lanes<kLanes>(here + c * pitch + j);
        V lower = load_lanes<kLanes>(next + c * pitch + j);
        const auto index = static_cast<ClassIndex<A>>(c);
        for (int64_t k = 0; k < rows; ++k) {
          const A w = pixels->weight[k], rest = A(1) - w;
          const V value = kMixed ? rest * top + w * bottom : top;
          V slope =
              load_lanes<kLanes>(pixels->scale[k] + j) *
              LaneMath<A, kLanes>::exp_nonpositive(value - load_lanes<kLanes>(pixels->lse[k] + j));
          if constexpr (kSmoothed)
            slope -= plan->loss.weight(c) * load_lanes<kLanes>(pixels->spread[k] + j);
          const V own = load_lanes<kLanes>(pixels->own[k] + j);
          slope -= load_raw<Indices>(pixels->classes[k] + j) == index ? own : V{};
          upper += kMixed ? rest * slope : slope;
          if constexpr (kMixed) lower += w * slope;
        }
        store_lanes<kLanes>(here + c * pitch + j, upper);
        if constexpr (kMixed) store_lanes<kLanes>(next + c * pitch + j, lower);
      }
    }
  }

  // A row of logits that no pixel reads.
  template <typename A>
  static ATROUSX_ALWAYS_INLINE void untouched(const LossBackwardPlan<A>* plan, A* zeros, int64_t n,
                                              int64_t h) {
    constexpr int kLanes = kLanesIn<kBytes, A>;
    const int64_t channels = plan->lines.r.channels, width = plan->lines.columns.in;
    std::fill_n(zeros, kLanes * width, A(0));
    for (int64_t c = 0; c < channels; c += kLanes)
      plan->out.store(static_cast<const A*>(zeros), n, c, h, width,
                      min_of<int64_t>(kLanes, channels - c));
  }

  // The sums along the lines of a row of logits, a vector of channels at a time.
  template <typename A>
  static ATROUSX_ALWAYS_INLINE void along(const LossBackwardPlan<A>* plan, const A* lines,
                                          A* turned, int64_t n, int64_t h) {
    constexpr int kLanes = kLanesIn<kBytes, A>;
    const int64_t pitch = plan->lines.pitch(), channels = plan->lines.r.channels;
    const CpuAxis<A>& columns = plan->lines.columns;
    A* result = turned + kLanes * pitch;
    for (int64_t c = 0; c < channels; c += kLanes) {
      const int64_t from = max_of<int64_t>(0, min_of(c, channels - kLanes));
      BackwardNarrow<kBytes>::turn(lines + from * pitch, pitch, columns.out, turned);
      AlongRow<kBytes>::run(&columns, static_cast<const A*>(turned), int64_t{kLanes}, result);
      plan->out.store(static_cast<const A*>(result), n, from, h, columns.in,
                      min_of<int64_t>(kLanes, channels));
    }
  }
};

}  // namespace atrousx
