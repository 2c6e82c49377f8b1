// Chooses the CPU instruction set at run time. A loop is written once, as a struct with an
// always-inline `run`. The target attribute of GCC and Clang compiles it three times. Only these
// loops use wider instructions, so one binary runs on every x86-64 CPU. On other CPUs only the
// portable version is compiled.
#pragma once

#include <cstdlib>
#include <cstring>
#include <initializer_list>

#define ATROUSX_ALWAYS_INLINE inline __attribute__((always_inline))
// Write this after the parameters of a lambda that handles vectors. If the lambda is not inlined,
// the compiler does not use the instruction set of the caller for it.
#define ATROUSX_INLINE_LAMBDA __attribute__((always_inline))

namespace atrousx {

enum class CpuIsa { kPortable, kAvx2, kAvx512 };

inline const char* cpu_isa_name(CpuIsa isa) {
  return isa == CpuIsa::kAvx512 ? "avx512" : isa == CpuIsa::kAvx2 ? "avx2" : "portable";
}

// Returns the best instruction set of this CPU.
inline CpuIsa best_cpu_isa() {
#if defined(__x86_64__)
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return CpuIsa::kPortable;
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    return CpuIsa::kAvx512;
  return CpuIsa::kAvx2;
#else
  return CpuIsa::kPortable;
#endif
}

// Returns the instruction set in use: the best one of this CPU. ATROUSX_CPU=portable|avx2|avx512
// can ask for a lesser one.
inline CpuIsa cpu_isa() {
  static const CpuIsa isa = [] {
    CpuIsa best = best_cpu_isa();
    const char* asked = std::getenv("ATROUSX_CPU");
    for (CpuIsa isa : {CpuIsa::kPortable, CpuIsa::kAvx2, CpuIsa::kAvx512})
      if (asked != nullptr && std::strcmp(asked, cpu_isa_name(isa)) == 0 && isa < best) best = isa;
    return best;
  }();
  return isa;
}

// Whether the CPU multiplies pairs of bfloat16 (AVX512-BF16). False with ATROUSX_CPU=avx512.
inline bool cpu_has_bf16_pairs() {
  static const bool has = [] {
#if defined(__x86_64__)
    const char* asked = std::getenv("ATROUSX_CPU");
    return cpu_isa() == CpuIsa::kAvx512 && __builtin_cpu_supports("avx512bf16") &&
           (asked == nullptr || std::strcmp(asked, cpu_isa_name(CpuIsa::kAvx512)) != 0);
#else
    return false;
#endif
  }();
  return has;
}

namespace detail {

template <typename Loop, typename... Args>
void run_portable(Args... args) {
  Loop::run(args...);
}

#if defined(__x86_64__)
template <typename Loop, typename... Args>
[[gnu::target("avx2,fma,f16c")]] void run_avx2(Args... args) {
  Loop::run(args...);
}

template <typename Loop, typename... Args>
[[gnu::target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,prefer-vector-width=512")]] void
run_avx512(Args... args) {
  Loop::run(args...);
}
#endif

}  // namespace detail

// Loop::run(args...) compiled for one instruction set. The CPU must have this set.
template <CpuIsa kIsa, typename Loop, typename... Args>
constexpr auto run_on = &detail::run_portable<Loop, Args...>;
#if defined(__x86_64__)
template <typename Loop, typename... Args>
constexpr auto run_on<CpuIsa::kAvx2, Loop, Args...> = &detail::run_avx2<Loop, Args...>;
template <typename Loop, typename... Args>
constexpr auto run_on<CpuIsa::kAvx512, Loop, Args...> = &detail::run_avx512<Loop, Args...>;
#endif

// Runs Loop::run(args...), compiled for the instruction set in use. Arguments are passed by value.
template <typename Loop, typename... Args>
void run_best(Args... args) {
#if defined(__x86_64__)
  switch (cpu_isa()) {
    case CpuIsa::kAvx512:
      return detail::run_avx512<Loop, Args...>(args...);
    case CpuIsa::kAvx2:
      return detail::run_avx2<Loop, Args...>(args...);
    case CpuIsa::kPortable:
      break;
  }
#endif
  detail::run_portable<Loop, Args...>(args...);
}

}  // namespace atrousx
