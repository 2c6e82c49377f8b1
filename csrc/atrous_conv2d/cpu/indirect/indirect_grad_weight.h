// Grad-weight on the CPU. For each tap it is an indirect matrix product over the live pixels of the
// tap.
//
// Input and gradient are packed in chunks: some images, and some of their channels. Within a chunk,
// one task computes a slab of input channels times a few blocks of outputs, for all taps and a part
// of the rows. If this is all that the sums need, the task writes them to the result. Otherwise the
// rows are divided among tasks, or more images follow. Then the sums are kept and added in order.
// If one task computes all outputs of its slab, it packs this slab itself, so there is no packed
// copy of the whole input. Chunks and parts depend only on sizes, so the bits are the same for any
// number of threads.
#pragma once

#include <optional>
#include <vector>

#include "atrous_conv2d/cpu/gemm/microkernel.h"
#include "atrous_conv2d/cpu/gemm/packed_map.h"
#include "atrous_conv2d/cpu/winograd/winograd_grad_weight.h"
#include "atrous_conv2d/cpu/winograd/winograd_weight.h"
#include "atrous_conv2d/plan.h"
#include "cpu/transpose.h"
#include "cpu/workspace.h"
#include "tensor.h"

namespace atrousx {

// to[i] += from[i].
struct AddRow {
  template <typename A>
  static ATROUSX_ALWAYS_INLINE void run(const A* from, int64_t count, A* to) {
    for (int64_t i = 0; i < count; ++i) to[i] += from[i];
  }
};

template <typename T, typename R>
class CpuGradWeight {
  using A = typename R::A;
  static constexpr int kSlab = kGradWeightSlab<R>;   // input channels of a task
  static constexpr int64_t kStripe = 128;            // most outputs of a task
  static constexpr int64_t kDepth = 256 * R::kPack;  // most pixels of one product
  static constexpr int64_t kWantedTasks = 64, kFewTasks = 16;
  static constexpr int64_t kMost = 4 << 20;     // most elements of a map that are packed at a time
  static constexpr int64_t kMostOwn = 1 << 19;  // most elements that a task packs itself
  using Lanes = Slabs<A, kSlab, R::kPack, true>;
  using Columns = Slabs<A, R::kColumns, R::kPack, true>;

 public:
  CpuGradWeight(const ConvGeometry& geometry, const Tensor& grad_output, const Tensor& input)
      : g_(geometry),
        shape_(geometry.forward()),
        grad_output_(grad_output),
        input_(input),
        taps_(geometry.kernel_h * geometry.kernel_w),
        winograd_(minimal_filtering()),
        slabs_(ceil_div<int64_t>(geometry.group_channels(), kSlab)) {
    const int64_t blocks = ceil_div<int64_t>(g_.group_outputs(), R::kColumns);
    stripe_blocks_ = std::max<int64_t>(1, kStripe / R::kColumns);
    const auto tasks = [&] { return g_.groups * slabs_ * ceil_div(blocks, stripe_blocks_); };
    while (stripe_blocks_ > 1 && tasks() < kWantedTasks) stripe_blocks_ /= 2;
    stripes_ = ceil_div(blocks, stripe_blocks_);
    const int64_t slab = g_.height * g_.width * kSlab;
    by_slabs_ = !winograd_.has_value() && stripes_ == 1 && tasks() >= kFewTasks &&
                slab <= kMostOwn && Columns::elements(all_outputs()) <= kMost;
    if (by_slabs_) return;
    splits_ = grad_weight_splits(tasks(), g_.batch * g_.out_h * g_.out_w, kWantedTasks);
    const int64_t stripe = g_.out_h * g_.out_w * stripe_blocks_ * R::kColumns;
    chunk_slabs_ = chunk(slabs_, slab);
    chunk_stripes_ = chunk(stripes_, stripe);
    const int64_t image = g_.groups * std::max(chunk_slabs_ * slab, chunk_stripes_ * stripe);
    chunk_images_ = std::max<int64_t>(1, std::min(kMost / image, g_.batch));
    ends_at_once_ = splits_ == 1 && chunk_images_ == g_.batch;
  }

  void run(T* grad_weight, const Strides4& strides) const {
    const Result result{grad_weight, strides};
    if (by_slabs_) return run_by_slabs(result);
    const int64_t places = ends_at_once_ ? cpu_workers(rectangles()) : splits_ * rectangles();
    const Workspace<A> sums(places * rectangle_size());
    const Workspace<A> lane_memory(Lanes::elements(lane_size(chunk_images_, 0)));
    const Workspace<A> column_memory(Columns::elements(column_size(chunk_images_, 0)));
    std::optional<Lanes> lanes;
    for (int64_t n = 0; n < g_.batch; n += chunk_images_) {
      const int64_t images = std::min(chunk_images_, g_.batch - n);
      for (int64_t stripe = 0; stripe < stripes_; stripe += chunk_stripes_) {
        const Columns columns(column_size(images, stripe),
                              at(grad_output_, n, stripe * stripe_blocks_ * R::kColumns),
                              strides4(grad_output_), column_memory.data());
        for (int64_t slab = 0; slab < slabs_; slab += chunk_slabs_) {
          if (stripe == 0 || chunk_slabs_ < slabs_)
            lanes.emplace(lane_size(images, slab), at(input_, n, slab * kSlab), strides4(input_),
                          lane_memory.data(), g_.stride_w);
          multiply({n, images, slab, stripe}, *lanes, columns, sums.data(), result);
        }
      }
    }
    if (!ends_at_once_) add_parts(sums.data(), result);
  }

 private:
  struct Result {
    T* data;
    Strides4 strides;
  };
  // What is packed at a time. It begins with these numbers.
  struct Chunk {
    int64_t first_image, images, first_slab, first_stripe;
  };
  // The input channels and outputs of one task.
  struct Rectangle {
    int64_t group, slab, stripe;
  };

  // Returns how many of `count` slabs or stripes are packed at a time. With several groups all are.
  int64_t chunk(int64_t count, int64_t elements) const {
    if (g_.groups > 1) return count;
    const int64_t most = std::clamp<int64_t>(kMost / elements, 1, count);
    return ceil_div(count, ceil_div(count, most));
  }
  MapSize all_outputs() const {
    const int64_t outputs = g_.group_outputs();
    return {g_.batch, g_.groups, outputs, g_.out_h, g_.out_w, outputs};
  }
  MapSize lane_size(int64_t images, int64_t slab) const {
    const int64_t channels = g_.group_channels();
    return {images,    g_.groups, std::min(chunk_slabs_ * kSlab, channels - slab * kSlab),
            g_.height, g_.width,  channels};
  }
  MapSize column_size(int64_t images, int64_t stripe) const {
    const int64_t outputs = g_.group_outputs(), width = stripe_blocks_ * R::kColumns;
    return {images,   g_.groups, std::min(chunk_stripes_ * width, outputs - stripe * width),
            g_.out_h, g_.out_w,  outputs};
  }
  static const T* at(const Tensor& map, int64_t n, int64_t channel) {
    return static_cast<const T*>(map.const_data_ptr()) + strides4(map).offset(n, channel, 0, 0);
  }

  int64_t rectangles() const { return g_.groups * slabs_ * stripes_; }
  int64_t block_size() const { return int64_t{kSlab} * R::kColumns; }
  int64_t plane() const { return stripe_blocks_ * block_size(); }  // sums of a tap or a point
  int64_t rectangle_size() const {
    return (winograd_.has_value() ? std::max(winograd_->filters(), taps_) : taps_) * plane();
  }
  int64_t rectangle_number(const Rectangle& r) const {
    return (r.group * slabs_ + r.slab) * stripes_ + r.stripe;
  }

  void multiply(const Chunk& chunk, const Lanes& lanes, const Columns& columns, A* sums,
                const Result& result) const {
    const int64_t slabs = std::min(chunk_slabs_, slabs_ - chunk.first_slab);
    const int64_t stripes = std::min(chunk_stripes_, stripes_ - chunk.first_stripe);
    for_each_task(splits_ * g_.groups * slabs * stripes, [&](int64_t task, int64_t worker) {
      const Rectangle r{task / stripes / slabs % g_.groups,
                        chunk.first_slab + task / stripes % slabs,
                        chunk.first_stripe + task % stripes};
      const int64_t split = task / stripes / slabs / g_.groups;
      const int64_t place = ends_at_once_ ? worker : split * rectangles() + rectangle_number(r);
      A* own = sums + place * rectangle_size();
      if (chunk.first_image == 0) std::fill_n(own, rectangle_size(), A(0));
      if (winograd_.has_value())
        add_points(chunk, r, split, lanes, columns, own);
      else
        for (int64_t tap = 0; tap < taps_; ++tap)
          add_tap(operands(chunk, r, lanes, columns), r, tap, chunk.images, {split, splits_},
                  own + tap * plane());
      if (ends_at_once_) finish(r, own, result);
    });
  }

  void finish(const Rectangle& r, A* sums, const Result& result) const {
    if (winograd_.has_value()) winograd_->transform_back(sums, plane());
    write(r, sums, result);
  }

  std::optional<WinogradGradWeight<R>> minimal_filtering() const {
    if constexpr (std::is_same_v<T, float>) {
      const auto points = winograd_points(shape_, ScalarType::Float, true);
      const int64_t terms = g_.batch * g_.out_h * g_.out_w;
      if (points.has_value() && winograd_suits_map(input_, terms) &&
          winograd_suits_map(grad_output_, terms))
        return WinogradGradWeight<R>(shape_, *points);
    }
    return std::nullopt;
  }

  // Adds the products of all points over a part of the tiles.
  void add_points(const Chunk& chunk, const Rectangle& r, int64_t split, const Lanes& lanes,
                  const Columns& columns, A* sums) const {
    SourceView<A> from = lanes.view(), grad = columns.view();
    from.data += (r.slab - chunk.first_slab) * lanes.slab_size();
    grad.data += (r.stripe - chunk.first_stripe) * stripe_blocks_ * columns.slab_size();
    const int64_t tiles = chunk.images * winograd_->tiles();
    const int64_t part = ceil_div(tiles, splits_), first = std::min(tiles, split * part);
    winograd_->add({from, grad, kSlab, channels(r), blocks(r), plane(), block_size()}, chunk.images,
                   first, std::min(tiles, first + part), sums);
  }

  // What a task multiplies: its slab of the packed input, and the packed gradient of its outputs.
  struct Operands {
    const A *from, *grad;
    Strides4 from_strides, grad_strides;
    int64_t grad_block;  // distance from one block to the next
  };

  Operands operands(const Chunk& chunk, const Rectangle& r, const Lanes& lanes,
                    const Columns& columns) const {
    const int64_t slab = r.slab - chunk.first_slab;
    const int64_t block = (r.stripe - chunk.first_stripe) * stripe_blocks_;
    return {lanes.data() + r.group * lanes.group_size() + slab * lanes.slab_size(),
            columns.data() + r.group * columns.group_size() + block * columns.slab_size(),
            lanes.strides(), columns.strides(), columns.slab_size()};
  }

  // Packs the gradient of all outputs first. Then each task packs its slab of the input, image
  // after image, and multiplies it by all outputs.
  void run_by_slabs(const Result& result) const {
    const Workspace<A> column_memory(Columns::elements(all_outputs()));
    const Columns columns(all_outputs(), at(grad_output_, 0, 0), strides4(grad_output_),
                          column_memory.data());
    const int64_t tasks = g_.groups * slabs_, workers = cpu_workers(tasks);
    const int64_t own_lanes = g_.height * g_.width * kSlab;
    const Workspace<A> lane_memory(workers * own_lanes), sums(workers * rectangle_size());
    for_each_task(tasks, [&](int64_t task, int64_t worker) {
      const Rectangle r{task / slabs_, task % slabs_, 0};
      const int64_t all = g_.group_channels();
      const MapSize size{1, 1, channels(r), g_.height, g_.width, all};
      A* const own = sums.data() + worker * rectangle_size();
      std::fill_n(own, rectangle_size(), A(0));
      for (int64_t n = 0; n < g_.batch; ++n) {
        const Lanes lanes(size, at(input_, n, r.group * all + r.slab * kSlab), strides4(input_),
                          lane_memory.data() + worker * own_lanes, g_.stride_w);
        const A* grad = columns.data() + r.group * columns.group_size() + n * columns.strides().n;
        for (int64_t tap = 0; tap < taps_; ++tap)
          add_tap({lanes.data(), grad, lanes.strides(), columns.strides(), columns.slab_size()}, r,
                  tap, 1, {0, 1}, own + tap * plane());
      }
      finish(r, own, result);
    });
  }

  struct Split {
    int64_t number, count;
  };

  // Adds the products of one tap over a part of the rows at which it is live.
  void add_tap(const Operands& in, const Rectangle& r, int64_t tap, int64_t images,
               const Split& split,
               A* sums) const {  // [blocks, channels, kColumns]
    const TapSpan rows = shape_.rows.span(tap / g_.kernel_w);
    const TapSpan span = shape_.columns.span(tap % g_.kernel_w);
    const int64_t lines = images * rows.destinations.count, part = ceil_div(lines, split.count);
    const int64_t end = std::min(lines, (split.number + 1) * part);
    SegmentList segments{kRunning<A>};
    const auto multiply = [&] {
      multiply_blocks(r, segments, in, sums);
      segments.clear();
    };
    for (int64_t line = split.number * part; line < end; ++line) {
      const int64_t n = line / rows.destinations.count, row = line % rows.destinations.count;
      const int64_t source = in.from_strides.offset(
          n, 0, rows.source_first + row * rows.source_step, span.source_first);
      const int64_t destination =
          in.grad_strides.offset(n, 0, rows.destinations.at(row), span.destinations.first);
      for (int64_t column = 0; column < span.destinations.count;) {
        const int64_t room = span.source_step == 1 ? kDepth / R::kPack - segments.depth : 1;
        const int64_t pixels = std::min(span.destinations.count - column, room * R::kPack);
        segments.add({source + column * span.source_step * kSlab,
                      destination + column * R::kColumns, ceil_div<int64_t>(pixels, R::kPack)},
                     kSlab * R::kPack, R::kColumns * R::kPack);
        if (segments.depth == kDepth / R::kPack) multiply();
        column += pixels;
      }
    }
    if (!segments.items.empty()) multiply();
  }

  // Multiplies the channels of a slab by the blocks of a stripe.
  void multiply_blocks(const Rectangle& r, const SegmentList& segments, const Operands& in,
                       A* sums) const {
    const LanePieces pieces(channels(r), R::kLanes);
    for (int64_t s = 0; s < pieces.count; ++s)
      for (int64_t b = 0; b < blocks(r); ++b)
        multiply_lanes<R, int64_t{kSlab} * R::kPack>(
            pieces.size(s),
            {in.from + pieces.first(s), kEquallySpaced<R::kLanes, 1>.data(),
             in.grad + b * in.grad_block},
            segments, {}, sums + b * block_size() + pieces.first(s) * R::kColumns);
  }

  int64_t channels(const Rectangle& r) const {
    return std::min<int64_t>(kSlab, g_.group_channels() - r.slab * kSlab);
  }
  int64_t blocks(const Rectangle& r) const {
    const int64_t all = ceil_div<int64_t>(g_.group_outputs(), R::kColumns);
    return std::min(stripe_blocks_, all - r.stripe * stripe_blocks_);
  }

  void add_parts(A* sums,  // [splits, rectangles]; the first part becomes the sum
                 const Result& result) const {
    for_each_task(rectangles(), [&](int64_t task, int64_t) {
      A* first = sums + task * rectangle_size();
      for (int64_t s = 1; s < splits_; ++s)
        run_best<AddRow>(static_cast<const A*>(first + s * rectangles() * rectangle_size()),
                         rectangle_size(), first);
      finish({task / stripes_ / slabs_, task / stripes_ % slabs_, task % stripes_}, first, result);
    });
  }

  // Writes the weights of an output in the order of memory and in runs of neighbours. The order is
  // by channel, then tap. If channels are neighbours, it is by tap, then channel.
  void write(const Rectangle& r, const A* sums, const Result& result) const {
    const bool channel_fastest = result.strides.c < result.strides.w;
    const int64_t weights = channels(r) * taps_;
    const int64_t run = channel_fastest ? channels(r) : weights;
    std::vector<int64_t> from(weights);
    for (int64_t i = 0; i < weights; ++i) {
      const int64_t tap = channel_fastest ? i / channels(r) : i % taps_;
      const int64_t channel = channel_fastest ? i % channels(r) : i / taps_;
      from[i] = tap * plane() + channel * R::kColumns;
    }
    for (int64_t b = 0; b < blocks(r); ++b) {
      const int64_t output = (r.stripe * stripe_blocks_ + b) * R::kColumns;
      const int64_t outputs = std::min<int64_t>(R::kColumns, g_.group_outputs() - output);
      T* to = result.data +
              result.strides.offset(r.group * g_.group_outputs() + output, r.slab * kSlab, 0, 0);
      for (int64_t first = 0; first < weights; first += run)
        transpose_gathered(sums + b * block_size(), from.data() + first, run, outputs,
                           to + (channel_fastest ? tap_offset(first / run, result.strides) : 0),
                           result.strides.n);
    }
  }
  int64_t tap_offset(int64_t tap, const Strides4& strides) const {
    return strides.offset(0, 0, tap / g_.kernel_w, tap % g_.kernel_w);
  }

  const ConvGeometry g_;
  const GatherShape shape_;
  const Tensor grad_output_;  // [N, K, OH, OW]
  const Tensor input_;        // [N, C, H, W]
  const int64_t taps_;
  const std::optional<WinogradGradWeight<R>> winograd_;
  const int64_t slabs_;
  int64_t stripes_, stripe_blocks_, splits_ = 1;
  bool by_slabs_;  // each task packs its own slab of the input
  int64_t chunk_slabs_ = 0, chunk_stripes_ = 0, chunk_images_ = 0;
  bool ends_at_once_ = true;  // the sums of a task are complete
};

}  // namespace atrousx
