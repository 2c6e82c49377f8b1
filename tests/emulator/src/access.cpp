// The functions that -fsanitize=thread calls, without its runtime. They check every load and store
// of a kernel. Atomic operations of host code also call them; these are executed unchanged. This
// file is compiled without the flag.
#include "access.h"

#include <link.h>

#include <cstdio>
#include <vector>

namespace emulator {

namespace {

const char own = 0;  // an address of this library

// The segments of this library: constants, tables and the executor's variables.
const std::vector<Range>& own_segments() {
  static const std::vector<Range> segments = [] {
    std::vector<Range> found;
    dl_iterate_phdr(
        [](dl_phdr_info* info, size_t, void* out) {
          std::vector<Range> segments;
          bool mine = false;
          for (int i = 0; i < info->dlpi_phnum; ++i) {
            const auto& header = info->dlpi_phdr[i];
            if (header.p_type != PT_LOAD) continue;
            segments.push_back(
                {reinterpret_cast<const void*>(info->dlpi_addr + header.p_vaddr), header.p_memsz});
            mine = mine || segments.back().contains(&emulator::own, 1);
          }
          if (mine) *static_cast<std::vector<Range>*>(out) = segments;
          return mine ? 1 : 0;
        },
        &found);
    return found;
  }();
  return segments;
}

const char* fault_of(const void* address, size_t bytes, bool writes, bool aligned) {
  if (is_device_memory(address)) {
    if (aligned && reinterpret_cast<uintptr_t>(address) % bytes != 0)
      return "memory that is not aligned to the access";
    return fault_of_device_access(address, bytes, &usual.block);
  }
  if (belongs_to_thread(address, bytes, writes)) return nullptr;
  for (const Range& segment : own_segments())
    if (segment.contains(address, bytes)) return nullptr;
  return is_beside_shared_memory(address) ? "memory beyond the end of a shared array"
                                          : "host memory";
}

}  // namespace

Usual usual{};

void check_access(const void* address, size_t bytes, bool writes, bool aligned) {
  if (usual.stack.contains(address, bytes)) return;
  const bool right = !aligned || (reinterpret_cast<uintptr_t>(address) & (bytes - 1)) == 0;
  if (right && usual.block.contains(address, bytes)) return;
  if (!is_running()) return;
  const char* what = fault_of(address, bytes, writes, aligned);
  if (what == nullptr) return;
  char text[160];
  std::snprintf(text, sizeof(text), "a kernel %s %zu bytes of %s at %p",
                writes ? "stored" : "loaded", bytes, what, address);
  abandon_launch(std::make_exception_ptr(AccessFault(text)));
}

}  // namespace emulator

using emulator::check_access;

extern "C" {

void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
void __tsan_read_range(void* p, size_t n) { check_access(p, n, false, false); }
void __tsan_write_range(void* p, size_t n) { check_access(p, n, true, false); }

#define ACCESSES(bytes)                                                                \
  void __tsan_read##bytes(void* p) { check_access(p, bytes, false, true); }            \
  void __tsan_write##bytes(void* p) { check_access(p, bytes, true, true); }            \
  void __tsan_unaligned_read##bytes(void* p) { check_access(p, bytes, false, false); } \
  void __tsan_unaligned_write##bytes(void* p) { check_access(p, bytes, true, false); }
ACCESSES(1)
ACCESSES(2)
ACCESSES(4)
ACCESSES(8)
ACCESSES(16)

#define UPDATE(bits, type, name)                                         \
  type __tsan_atomic##bits##_##name(volatile type* p, type value, int) { \
    return __atomic_##name(p, value, __ATOMIC_SEQ_CST);                  \
  }
#define ATOMICS(bits, type)                                                                       \
  type __tsan_atomic##bits##_load(const volatile type* p, int) {                                  \
    return __atomic_load_n(p, __ATOMIC_SEQ_CST);                                                  \
  }                                                                                               \
  void __tsan_atomic##bits##_store(volatile type* p, type value, int) {                           \
    __atomic_store_n(p, value, __ATOMIC_SEQ_CST);                                                 \
  }                                                                                               \
  type __tsan_atomic##bits##_exchange(volatile type* p, type value, int) {                        \
    return __atomic_exchange_n(p, value, __ATOMIC_SEQ_CST);                                       \
  }                                                                                               \
  UPDATE(bits, type, fetch_add)                                                                   \
  UPDATE(bits, type, fetch_sub)                                                                   \
  UPDATE(bits, type, fetch_and)                                                                   \
  UPDATE(bits, type, fetch_or)                                                                    \
  UPDATE(bits, type, fetch_xor)                                                                   \
  int __tsan_atomic##bits##_compare_exchange_strong(volatile type* p, type* expected, type value, \
                                                    int, int) {                                   \
    return __atomic_compare_exchange_n(p, expected, value, false, __ATOMIC_SEQ_CST,               \
                                       __ATOMIC_SEQ_CST);                                         \
  }                                                                                               \
  int __tsan_atomic##bits##_compare_exchange_weak(volatile type* p, type* expected, type value,   \
                                                  int a, int b) {                                 \
    return __tsan_atomic##bits##_compare_exchange_strong(p, expected, value, a, b);               \
  }                                                                                               \
  type __tsan_atomic##bits##_compare_exchange_val(volatile type* p, type expected, type value,    \
                                                  int a, int b) {                                 \
    __tsan_atomic##bits##_compare_exchange_strong(p, &expected, value, a, b);                     \
    return expected;                                                                              \
  }
ATOMICS(8, uint8_t)
ATOMICS(16, uint16_t)
ATOMICS(32, uint32_t)
ATOMICS(64, uint64_t)
void __tsan_atomic_thread_fence(int) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
void __tsan_atomic_signal_fence(int) { __atomic_signal_fence(__ATOMIC_SEQ_CST); }

}  // extern "C"
