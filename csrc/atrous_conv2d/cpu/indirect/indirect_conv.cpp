// Gathering passes of wide groups on the CPU. This file packs the weights and goes through the
// steps of the source. Each call is computed by its live taps (indirect_conv.h) or by minimal
// filtering (winograd_conv.h).
#include <functional>
#include <memory>

#include "atrous_conv2d/cpu/indirect/indirect_conv.h"
#include "atrous_conv2d/cpu/winograd/winograd_conv.h"
#include "atrous_conv2d/gather.h"

namespace atrousx {
namespace {

// A call, and how it is computed. settle() decides this once.
struct SettledCall : GatherCall {
  std::optional<WinogradPoints> points;     // of minimal filtering; none: by live taps
  std::shared_ptr<const void> transformed;  // the filters, if this call transformed them, else null
};

// Returns the weight of a pass in the layout of `weight`: as the caller packed it, or packed now.
template <typename T, typename Weight>
std::shared_ptr<const typename Weight::A> packed_weight(const SettledCall& call,
                                                        const Weight& weight) {
  using A = typename Weight::A;
  if (call.transformed != nullptr) return std::static_pointer_cast<const A>(call.transformed);
  if (!call.packed.has_value() || call.packed->numel() == 0) {
    const auto own = std::make_shared<Workspace<A>>(weight.size());
    weight.pack(data<T>(call.weight), call.weight_strides, own->data());
    return {own, own->data()};
  }
  STD_TORCH_CHECK(call.packed->numel() == weight.size() && call.packed->is_contiguous() &&
                      call.packed->device() == call.weight.device() &&
                      call.packed->element_size() == sizeof(A),
                  "packed is not this weight, packed on this CPU");
  const auto given = std::make_shared<Tensor>(*call.packed);
  return {given, static_cast<const A*>(given->const_data_ptr())};
}

// The work of a call at one step of the source.
template <typename A>
using StepWork = std::function<void(const GatherStep&, const SourceView<A>&)>;

// Returns the points of minimal filtering for a call, or none. If its weight came packed, they are
// the points of that weight. Otherwise they are the points that pay for this shape.
std::optional<WinogradPoints> points_of(const GatherCall& call) {
  const ScalarType dtype = call.weight.scalar_type();
  if (!call.packed.has_value()) return winograd_points(call.shape, dtype, false);
  if (call.packed->dim() != 3) return std::nullopt;
  const auto points =
      points_by_numbers(call.packed->size(0), call.packed->size(1), dtype != ScalarType::Float);
  STD_TORCH_CHECK(points.has_value(), "packed is not this weight, packed for its dtype");
  STD_TORCH_CHECK(winograd_serves(call.shape, *points),
                  "packed is not this weight, packed for a map of this size");
  return points;
}

// Transforms the filters of a call. Returns whether their numbers suit minimal filtering.
bool transform_suited(SettledCall& call) {
  bool suits = false;
  dispatch_floating(call.weight.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using A = Accumulate<T>;
    if constexpr (!std::is_same_v<T, double>)
      with_register_tile<A>(call.shape.outer, [&](auto tile) {
        const WinogradWeight<decltype(tile)> weight(call.shape, *call.points);
        const auto own = std::make_shared<Workspace<A>>(weight.size());
        suits = weight.pack_suited(data<T>(call.weight), call.weight_strides, own->data());
        if (suits) call.transformed = {own, own->data()};
      });
  });
  return suits;
}

// Decides how a call is computed. If the numbers of the source or of the filters do not suit
// minimal filtering, it decides for live taps. Filters that were transformed beforehand were
// checked then. `source_suits` keeps the result of the check of the source for the next call.
SettledCall settle(const Tensor& source, const GatherCall& given,
                   std::optional<bool>& source_suits) {
  SettledCall call{given, points_of(given), nullptr};
  if (!call.points.has_value()) return call;
  if (!source_suits.has_value())
    source_suits =
        winograd_allowed() && winograd_suits_map(source, call.shape.inner * call.shape.taps());
  if (*source_suits && (call.packed.has_value() || transform_suited(call))) return call;
  call.points.reset();
  call.packed.reset();
  return call;
}

// Whether each task packs its own weights. If a large weight were packed as a whole, it would go to
// memory and back. If there are many weights for few pixels, the tasks would wait for the packing.
// The sums are the same in both ways.
bool packs_chunks(const SettledCall& call) {
  constexpr int64_t kLarge = 8 << 20, kLargeBeside = 1024;  // elements, elements per pixel
  const GatherShape& shape = call.shape;
  const int64_t weights = shape.groups * shape.outer * shape.inner * shape.taps();
  const int64_t pixels = shape.batch * shape.rows.destinations * shape.columns.destinations;
  const int64_t tasks = shape.groups * ceil_div(shape.outer, kPackingColumns);
  // With too few such tasks, the pixels would be divided and several tasks would pack the same
  // weights.
  const bool divides = tasks >= 2 * torch::stable::get_num_threads();
  const bool packed = call.packed.has_value() && call.packed->numel() > 0;
  return !packed && (weights >= kLarge || (divides && weights >= kLargeBeside * pixels));
}

template <typename T, typename A, int kPack>
StepWork<A> step_work(const SettledCall& call) {
  T* const to = static_cast<T*>(call.destination.mutable_data_ptr());
  StepWork<A> work;
  const auto keep = [&](auto gather) {
    work = [gather](const GatherStep& step, const SourceView<A>& source) {
      gather->multiply(step, source);
    };
  };
  with_register_tile<A, kPack>(call.shape.outer, [&](auto tile) {
    using R = decltype(tile);
    if constexpr (std::is_same_v<T, float>) {
      if (call.points.has_value())
        return keep(std::make_shared<CpuWinograd<T, R>>(
            call.shape, *call.points,
            packed_weight<T>(call, WinogradWeight<R>(call.shape, *call.points)),
            call.tail.epilogue<T>(), to, strides4(call.destination)));
    }
    keep(std::make_shared<CpuGather<T, R>>(
        call.shape,
        GatherWeight<T, R>(
            call.shape, data<T>(call.weight), call.weight_strides,
            packs_chunks(call) ? nullptr : packed_weight<T>(call, PackedWeight<R>(call.shape))),
        call.tail.epilogue<T>(), to, strides4(call.destination)));
  });
  return work;
}

// Computes a call in a half type by minimal filtering. It reads the source in its own dtype. The
// channels of a pixel must be neighbours, so a source in another layout is copied.
void gather_half(const Tensor& source, const SettledCall& call) {
  const Tensor from =
      source.stride(1) == 1 ? source : torch::stable::contiguous(source, memory_format(true));
  dispatch_floating(source.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using A = Accumulate<T>;
    if constexpr (!std::is_same_v<T, A>)
      with_register_tile<A>(call.shape.outer, [&](auto tile) {
        using R = decltype(tile);
        CpuWinograd<T, R>(call.shape, *call.points,
                          packed_weight<T>(call, WinogradWeight<R>(call.shape, *call.points)),
                          call.tail.epilogue<T>(),
                          static_cast<T*>(call.destination.mutable_data_ptr()),
                          strides4(call.destination))
            .multiply(whole_step(call.shape),
                      SourceView<T>{data<T>(from), strides4(from), kSlab, call.shape.inner});
      });
  });
}

// Returns how many sums a call keeps for an image.
int64_t sums_of_image(const SettledCall& call) {
  const GatherShape& shape = call.shape;
  const auto& points = call.points;
  const int64_t of_channel =
      points.has_value() ? winograd_products(without_mirror(shape.rows), (*points)[0]) *
                               winograd_products(without_mirror(shape.columns), (*points)[1])
                         : shape.rows.destinations * shape.columns.destinations;
  return of_channel * shape.groups * shape.outer;
}

// Whether a call reads the source in place. A call with one tap, or with minimal filtering, reads
// each element for one purpose. Then packing gains nothing if channels already are neighbours.
bool reads_in_place(const Tensor& source, const SettledCall& call) {
  return source.stride(1) == 1 && source.scalar_type() == ScalarType::Float &&
         (call.shape.taps() == 1 || call.points.has_value());
}

// Whether planes of a source are read in place, because it has only one call and that call has too
// few outputs for packing to pay. If the size of a plane is a multiple of half a page, the source
// is packed. The channels of a pixel would otherwise share few sets of the caches.
bool reads_planes(const Tensor& source, const std::vector<SettledCall>& calls) {
  constexpr int64_t kFewOutputs = 32, kHalfPage = 2048 / sizeof(float);
  const auto& call = calls[0];
  return calls.size() == 1 && source.scalar_type() == ScalarType::Float && source.stride(3) == 1 &&
         source.stride(1) > 1 && source.stride(1) % kHalfPage != 0 && call.shape.groups == 1 &&
         call.shape.outer <= kFewOutputs && !call.points.has_value();
}

// Runs calls that all read one source in place, or that all read its packed copy.
void gather_together(const Tensor& source, const std::vector<SettledCall>& calls, bool in_place) {
  dispatch_floating(source.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    with_pack<T>([&](auto pack) {
      using A = Accumulate<T>;
      constexpr int kPack = decltype(pack)::value;
      std::vector<StepWork<A>> works;
      for (const SettledCall& call : calls) works.push_back(step_work<T, A, kPack>(call));
      int64_t sums = 0;
      for (const SettledCall& call : calls) sums += sums_of_image(call);
      for_each_gather_step<A, kPack>(calls[0].shape, data<T>(source), strides4(source), in_place,
                                     sums, [&](const GatherStep& step, const SourceView<A>& view) {
                                       for (const auto& work : works) work(step, view);
                                     });
    });
  });
}

}  // namespace

// Uses matrix products for groups of any width.
void gather_cpu(const Tensor& source, const std::vector<GatherCall>& all) {
  if (source.size(0) == 0) return;
  std::vector<SettledCall> calls;
  std::optional<bool> suits;
  for (const GatherCall& given : all) {
    SettledCall call = settle(source, given, suits);
    if (call.points.has_value() && source.scalar_type() != ScalarType::Float)
      gather_half(source, call);
    else
      calls.push_back(std::move(call));
  }
  for (size_t first = 0, end; first < calls.size(); first = end) {
    const bool in_place = reads_in_place(source, calls[first]);
    end = first + 1;
    while (end < calls.size() && reads_in_place(source, calls[end]) == in_place) ++end;
    const std::vector<SettledCall> together(calls.begin() + first, calls.begin() + end);
    gather_together(source, together, in_place || reads_planes(source, together));
  }
}

}  // namespace atrousx
