// The scheduler behind emulator.h.
#include "emulator.h"

#include "access.h"
#include "stack_switch.h"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <deque>
#include <exception>
#include <memory>
#include <utility>
#include <vector>

namespace emulator {

Coordinates current;

namespace {

constexpr size_t kStackBytes = 256 * 1024;
constexpr unsigned int kWarpSize = 32;
constexpr int64_t kStaticSharedLimit = 48 * 1024;  // the most that nvcc lets a kernel declare
constexpr size_t kGuardBytes = 4096;
constexpr int kPoison = 0xff;  // NaN as a float, -1 as an integer

enum class State { kReady, kAtBarrier, kAtExchange, kDone };

struct AsyncCopy {
  void* to;
  const void* from;
  bool present;
};

struct Fiber {
  void* stack_pointer;
  std::unique_ptr<char[]> stack;
  Coordinates coordinates;
  State state;
  const char* site;  // where it waits
  uint32_t mask;     // the lanes of an exchange
  Contribution contributed;
  const Contribution* received;  // points into `of_all` or `of_some`
  std::array<Contribution, kWarpSize> of_some;
  std::deque<std::vector<AsyncCopy>> copies;  // committed groups, oldest first, then the open group
};

// Shared memory of a block. Every other array is at least kGuardBytes away.
struct SharedArray {
  const char* site;
  Range memory;
};

bool reverse_order = false;
bool eager_copies = false;
void* scheduler_stack_pointer = nullptr;
// The contributions of the last exchange of all lanes of a warp. All lanes read them before the
// next such exchange.
std::array<std::array<Contribution, kWarpSize>, 1024 / kWarpSize> of_all;
std::vector<std::unique_ptr<Fiber>> fibers;  // kept between launches to reuse their stacks
Fiber* running = nullptr;
unsigned int running_index = 0;
const std::function<void()>* kernel_body = nullptr;
std::vector<SharedArray> shared_arrays;  // the first is the dynamic memory
Range parameters{};
std::exception_ptr failure;  // thrown by a kernel; it cannot unwind into the scheduler's stack

void add_shared_array(const char* site, size_t bytes) {
  void* block = nullptr;
  if (posix_memalign(&block, 128, bytes + 2 * kGuardBytes) != 0) throw std::bad_alloc();
  char* const memory = static_cast<char*>(block) + kGuardBytes;
  std::memset(memory, kPoison, bytes);
  shared_arrays.push_back({site, {memory, bytes}});
}

void to_scheduler() { switch_stack(&running->stack_pointer, scheduler_stack_pointer); }

void fiber_main() {
  try {
    (*kernel_body)();
  } catch (...) {
    failure = std::current_exception();
  }
  running->state = State::kDone;
  to_scheduler();
}

void resume(unsigned int index) {
  running = fibers[index].get();
  running_index = index;
  current = running->coordinates;
  usual.stack = {running->stack.get(), kStackBytes};
  switch_stack(&scheduler_stack_pointer, running->stack_pointer);
  running = nullptr;
  usual.stack = {};
  if (failure) std::rethrow_exception(std::exchange(failure, nullptr));
}

void wait(State state, const char* site) {
  running->state = state;
  running->site = site;
  to_scheduler();
}

// Resumes the lanes of a warp at every complete exchange. The warp starts at thread `first`.
// Returns whether there was a complete exchange.
bool release_exchanges(unsigned int first, unsigned int lanes) {
  bool released = false;
  for (unsigned int i = 0; i < lanes; ++i) {
    if (fibers[first + i]->state != State::kAtExchange) continue;
    const Fiber& leader = *fibers[first + i];
    const uint32_t existing = lanes == kWarpSize ? ~uint32_t{0} : (uint32_t{1} << lanes) - 1;
    const uint32_t mask = leader.mask & existing;
    const char* site = leader.site;
    bool complete = (mask >> i & 1) != 0;
    for (unsigned int j = 0; j < lanes && complete; ++j) {
      const Fiber& other = *fibers[first + j];
      complete = (mask >> j & 1) == 0 || (other.state == State::kAtExchange && other.site == site &&
                                          (other.mask & existing) == mask);
    }
    if (!complete) continue;
    const bool all = mask == ~uint32_t{0};
    auto& values = all ? of_all[first / kWarpSize] : fibers[first + i]->of_some;
    for (unsigned int j = 0; j < lanes; ++j)
      if ((mask >> j & 1) != 0) values[j] = fibers[first + j]->contributed;
    for (unsigned int j = 0; j < lanes; ++j) {
      if ((mask >> j & 1) == 0) continue;
      Fiber& other = *fibers[first + j];
      if (!all) other.of_some = values;
      other.received = all ? values.data() : other.of_some.data();
      other.state = State::kReady;
    }
    released = true;
  }
  return released;
}

// Resumes a block when every thread waits at the same barrier. Throws an explanation when no thread
// can continue.
void release_barrier(unsigned int threads) {
  const Fiber* waiting = nullptr;
  for (unsigned int i = 0; i < threads; ++i)
    if (fibers[i]->state != State::kDone) waiting = fibers[i].get();
  const auto name = [](const Fiber& f) {
    const dim3 t = f.coordinates.thread;
    return "thread (" + std::to_string(t.x) + ", " + std::to_string(t.y) + ", " +
           std::to_string(t.z) + ") " +
           (f.state == State::kDone ? std::string("has returned")
                                    : "waits at " + std::string(f.site));
  };
  for (unsigned int i = 0; i < threads; ++i) {
    const Fiber& fiber = *fibers[i];
    if (fiber.state != State::kAtBarrier || fiber.site != waiting->site)
      throw std::runtime_error("divergent barrier: " + name(*waiting) + " while " + name(fiber));
  }
  for (unsigned int i = 0; i < threads; ++i) fibers[i]->state = State::kReady;
}

void start_fiber(unsigned int index, const Coordinates& coordinates) {
  if (index >= fibers.size()) {
    fibers.push_back(std::make_unique<Fiber>());
    fibers.back()->stack = std::make_unique<char[]>(kStackBytes);
  }
  Fiber& fiber = *fibers[index];
  fiber.coordinates = coordinates;
  fiber.state = State::kReady;
  if (fiber.copies.size() != 1 || !fiber.copies.front().empty()) fiber.copies.assign(1, {});
  fiber.stack_pointer = new_stack(fiber.stack.get(), kStackBytes, fiber_main);
}

// Runs a warp until it waits for the block, or for an exchange that never completes. Returns
// whether all its threads have returned.
bool run_warp(unsigned int warp, unsigned int threads) {
  const unsigned int first = warp * kWarpSize;
  const unsigned int lanes = threads - first < kWarpSize ? threads - first : kWarpSize;
  for (;;) {
    bool done = true;
    for (unsigned int k = 0; k < lanes; ++k) {
      const unsigned int i = first + (reverse_order ? lanes - 1 - k : k);
      if (fibers[i]->state == State::kReady) resume(i);
      done = done && fibers[i]->state == State::kDone;
    }
    if (done || !release_exchanges(first, lanes)) return done;
  }
}

void run_block(const dim3& grid, const dim3& block, const dim3& index) {
  const auto threads = static_cast<unsigned int>(block.count());
  for (unsigned int i = 0; i < threads; ++i)
    start_fiber(
        i, {{i % block.x, i / block.x % block.y, i / (block.x * block.y)}, index, block, grid});
  const unsigned int warps = (threads + kWarpSize - 1) / kWarpSize;
  for (;;) {
    bool done = true;
    for (unsigned int w = 0; w < warps; ++w)
      done = run_warp(reverse_order ? warps - 1 - w : w, threads) && done;
    if (done) return;
    release_barrier(threads);
  }
}

void perform(const AsyncCopy& copy) {
  copy.present ? std::memcpy(copy.to, copy.from, 16) : std::memset(copy.to, 0, 16);
}

// Shared memory lives as long as a block. It is poisoned when the block starts.
class BlockMemory {
 public:
  explicit BlockMemory(size_t dynamic_bytes) { add_shared_array("dynamic", dynamic_bytes); }
  ~BlockMemory() {
    for (const SharedArray& array : shared_arrays)
      std::free(const_cast<char*>(static_cast<const char*>(array.memory.start)) - kGuardBytes);
    shared_arrays.clear();
  }
  int64_t bytes() const {
    int64_t sum = 0;
    for (const SharedArray& array : shared_arrays) sum += static_cast<int64_t>(array.memory.bytes);
    return sum;
  }
};

// CUDA checks these limits before a launch. The executor knows the sizes only after a block has
// run.
void check_shared_bytes(int64_t bytes, const SharedMemory& shared) {
  if (bytes - static_cast<int64_t>(shared.dynamic_bytes) > kStaticSharedLimit)
    throw std::runtime_error("more than 48 KiB of static shared memory");
  if (bytes > shared.limit)
    throw std::runtime_error(std::to_string(bytes) + " bytes of shared memory, where a block may " +
                             "have " + std::to_string(shared.limit));
}

}  // namespace

void set_reverse(bool reverse) { reverse_order = reverse; }

void set_eager_copies(bool eager) { eager_copies = eager; }

unsigned int lane() { return running_index % kWarpSize; }

void block_barrier(const char* site) { wait(State::kAtBarrier, site); }

const Contribution* warp_exchange(uint32_t mask, const Contribution& value, const char* site) {
  const auto threads = static_cast<unsigned int>(current.block_size.count());
  const unsigned int lanes = std::min(kWarpSize, threads - running_index / kWarpSize * kWarpSize);
  if (lanes < kWarpSize && mask >> lanes != 0)
    throw std::runtime_error(std::string("a mask names lanes that the warp does not have at ") +
                             site);
  if ((mask >> lane() & 1) == 0)
    throw std::runtime_error(std::string("a mask leaves out the lane that calls at ") + site);
  running->mask = mask;
  running->contributed = value;
  wait(State::kAtExchange, site);
  return running->received;
}

void async_copy(void* to, const void* from, bool present) {
  const auto aligned = [](const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; };
  if (!aligned(to) || !aligned(from)) throw std::runtime_error("misaligned asynchronous copy");
  if (present) check_access(from, 16, false, true);
  check_access(to, 16, true, true);
  const AsyncCopy copy{to, from, present};
  eager_copies ? perform(copy) : running->copies.back().push_back(copy);
}

void commit_async_copies() { running->copies.emplace_back(); }

void wait_async_copies(size_t groups) {
  auto& copies = running->copies;
  for (; copies.size() > groups + 1; copies.pop_front())
    for (const AsyncCopy& copy : copies.front()) perform(copy);
}

void* shared_memory(const char* site, size_t bytes) {
  const auto has_site = [=](const SharedArray& array) { return array.site == site; };
  auto found = std::find_if(shared_arrays.begin(), shared_arrays.end(), has_site);
  if (found == shared_arrays.end()) {
    add_shared_array(site, bytes);
    found = shared_arrays.end() - 1;
  }
  return const_cast<void*>(found->memory.start);
}

void* dynamic_shared_memory() { return const_cast<void*>(shared_arrays.front().memory.start); }

void abandon_launch(std::exception_ptr error) {
  failure = std::move(error);
  running->state = State::kDone;
  to_scheduler();
  std::abort();  // the scheduler never returns to this stack
}

bool is_running() { return running != nullptr; }

bool belongs_to_thread(const void* address, size_t bytes, bool writes) {
  if (Range{running->stack.get(), kStackBytes}.contains(address, bytes)) return true;
  for (const SharedArray& array : shared_arrays)
    if (array.memory.contains(address, bytes)) return true;
  // A lane also reads the result of an exchange, which lies in its fiber.
  return !writes && (parameters.contains(address, bytes) ||
                     Range{running, sizeof(Fiber)}.contains(address, bytes));
}

bool is_beside_shared_memory(const void* address) {
  for (const SharedArray& array : shared_arrays) {
    const char* const start = static_cast<const char*>(array.memory.start) - kGuardBytes;
    if (Range{start, array.memory.bytes + 2 * kGuardBytes}.contains(address, 1)) return true;
  }
  return false;
}

void run(dim3 grid, dim3 block, const SharedMemory& shared, const std::function<void()>& body,
         const Range& readable) {
  kernel_body = &body;
  parameters = readable;
  usual = {};
  for (uint64_t k = 0; k < grid.count(); ++k) {
    const uint64_t i = reverse_order ? grid.count() - 1 - k : k;
    const BlockMemory memory(shared.dynamic_bytes);
    run_block(
        grid, block,
        {static_cast<unsigned int>(i % grid.x), static_cast<unsigned int>(i / grid.x % grid.y),
         static_cast<unsigned int>(i / grid.x / grid.y)});
    check_shared_bytes(memory.bytes(), shared);
  }
}

}  // namespace emulator
