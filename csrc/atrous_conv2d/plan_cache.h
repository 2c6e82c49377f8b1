// Keeps the tap plans of the geometries that were used last. Making a plan takes under a
// microsecond for DeepLab's layers. But the smallest layers take little more than ten on a GPU, and
// a network uses the same few plans again and again.
#pragma once

#include <list>
#include <memory>
#include <mutex>

#include "atrous_conv2d/plan.h"

namespace atrousx {

// Any thread may call get(). A value lives as long as somebody holds its pointer.
template <typename Key, typename Value, size_t kMost>
class LruCache {
 public:
  // Returns the value of a key. Calls make() unless the key is among the kMost keys used last.
  template <typename F>
  std::shared_ptr<const Value> get(const Key& key, F&& make) {
    const std::lock_guard lock(mutex_);
    const auto found = std::find_if(entries_.begin(), entries_.end(),
                                    [&](const auto& entry) { return entry.first == key; });
    if (found != entries_.end()) {
      entries_.splice(entries_.begin(), entries_, found);
    } else {
      auto value = std::make_shared<const Value>(make());
      entries_.emplace_front(key, std::move(value));
      if (entries_.size() > kMost) entries_.pop_back();
    }
    return entries_.front().second;
  }

  size_t size() const {
    const std::lock_guard lock(mutex_);
    return entries_.size();
  }

 private:
  mutable std::mutex mutex_;
  std::list<std::pair<Key, std::shared_ptr<const Value>>> entries_;  // the last one used is first
};

struct TapPlanKey {
  TapAxis rows, columns;
  int64_t batch, tile_pixels;

  bool operator==(const TapPlanKey&) const = default;
};

constexpr size_t kMostPlans = 64;  // a network has fewer geometries

using TapPlans = std::vector<TapPlan>;
using TapPlanCache = LruCache<TapPlanKey, TapPlans, kMostPlans>;

// Never destroyed, because threads may still compute while the process ends.
inline TapPlanCache& tap_plan_cache() {
  static auto* const cache = new TapPlanCache;
  return *cache;
}

// Returns tap_plans(...) from the cache. Very large filters or strides make large plans, which are
// not kept.
inline std::shared_ptr<const TapPlans> cached_tap_plans(const TapAxis& rows, const TapAxis& columns,
                                                        int64_t batch, int64_t tile_pixels) {
  constexpr int64_t kMostPairs = 4096;  // pairs of classes, about 100 KB
  const auto make = [&] { return tap_plans(rows, columns, batch, tile_pixels); };
  const auto classes = [](const TapAxis& axis) { return 2 * axis.taps + axis.divisor; };
  if (classes(rows) > kMostPairs / classes(columns))
    return std::make_shared<const TapPlans>(make());
  return tap_plan_cache().get({rows, columns, batch, tile_pixels}, make);
}

}  // namespace atrousx
