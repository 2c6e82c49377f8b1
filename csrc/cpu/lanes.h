// Vectors with a number of lanes that is fixed at compile time. They are the compiler's own vector
// types, so one source works for every instruction set. Loads widen elements of any dtype to the
// accumulation type. Stores round them to the nearest value, ties to even.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

#include "cpu/dispatch.h"
#include "portable.h"

#if defined(__GNUC__) && !defined(__clang__)
// GCC warns that the ABI of a returned vector depends on the instruction set. These functions are
// always inlined, so no vector is returned by a call.
#pragma GCC diagnostic ignored "-Wpsabi"
#endif

namespace atrousx {

// A vector is aligned like a single element, or to kAlign bytes if it reads memory of another type.
// may_alias lets it read and write the elements of a plain array. A vector of one lane is a plain
// number.
template <typename T, int kLanes, size_t kAlign = alignof(T)>
struct LanesOf {
  typedef T type __attribute__((vector_size(kLanes * sizeof(T)), aligned(kAlign), may_alias));
};
template <typename T, size_t kAlign>
struct LanesOf<T, 1, kAlign> {
  using type = T;
};
template <typename T, int kLanes>
using Lanes = typename LanesOf<T, kLanes>::type;
template <typename T, int kLanes, size_t kAlign>
using LanesAt = typename LanesOf<T, kLanes, kAlign>::type;

// The number of lanes in a register of kBytes bytes.
template <int kBytes, typename T>
constexpr int kLanesIn = kBytes / static_cast<int>(sizeof(T));

template <typename Vector>
ATROUSX_ALWAYS_INLINE Vector load_raw(const void* from) {
  return *static_cast<const Vector*>(from);
}

// Keeps a value in a register and hides its origin from the compiler. A product is then rounded on
// its own and not fused with a sum. A vector that several products use is then loaded only once.
// Otherwise each product may load it from memory, with two loads where it spans two cache lines.
template <typename Vector>
ATROUSX_ALWAYS_INLINE Vector in_register(Vector v) {
#if defined(__x86_64__)
  asm("" : "+v"(v));
#elif defined(__aarch64__)
  asm("" : "+w"(v));
#endif
  return v;
}

// Takes an element of `bits` where `mask` is all ones, else the element of `otherwise`.
template <typename Bits, typename Mask>
ATROUSX_ALWAYS_INLINE Bits select_bits(const Mask& mask, const Bits& bits, const Bits& otherwise) {
  return ((Bits)mask & bits) | (~(Bits)mask & otherwise);
}

template <int kLanes>
struct HalfBits {
  using Float = Lanes<float, kLanes>;
  using Wide = Lanes<uint32_t, kLanes>;
  using Narrow = Lanes<uint16_t, kLanes>;

  static ATROUSX_ALWAYS_INLINE Float widen(const BFloat16* from) {
    return (Float)(widen(load_raw<Narrow>(from)) << 16);
  }
  static ATROUSX_ALWAYS_INLINE Wide widen(Narrow bits) {
#if defined(__x86_64__)
    // GCC 12 would convert the two halves one after the other.
    if constexpr (kLanes == 16) {
      Wide wide;
      asm("vpmovzxwd %1, %0" : "=v"(wide) : "v"(bits));
      return wide;
    }
#endif
    return __builtin_convertvector(bits, Wide);
  }
  static ATROUSX_ALWAYS_INLINE Wide round(Float v, BFloat16) {
    const Wide bits = (Wide)v;
    const Wide rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return select_bits(v != v, Wide{} + 0x7fc0, rounded);
  }

  // The exponent and fraction of a half are shifted to their place in a float. The result is 2^112
  // too small, so it is multiplied by 2^112. This also makes subnormal halves correct: after the
  // shift they are subnormal floats.
  static ATROUSX_ALWAYS_INLINE Float widen(const Half* from) {
    return widen(widen(load_raw<Narrow>(from)), Half{});
  }
  static ATROUSX_ALWAYS_INLINE Float widen(Wide bits, Half) {
    const Wide magnitude = (Wide)((Float)((bits & 0x7fff) << 13) * 0x1p112f);
    const Wide special = (Wide)((bits & 0x7c00) == 0x7c00) & 0x7f800000;
    return (Float)(magnitude | special | (bits & 0x8000) << 16);
  }
  static ATROUSX_ALWAYS_INLINE Wide round(Float v, Half) {
    const Wide magnitude = (Wide)v & 0x7fffffff;
    // Below 2^-14 halves are multiples of 2^-24. A float from 1/2 to 1 has its last bit there.
    const Wide subnormal = (Wide)((Float)magnitude + 0.5f) - 0x3f000000;
    const Wide normal = (magnitude + 0xfff - 0x38000000 + ((magnitude >> 13) & 1)) >> 13;
    Wide rounded = select_bits(magnitude < 0x38800000, subnormal, normal);
    rounded = select_bits(magnitude >= 0x47800000, Wide{} + 0x7c00, rounded);
    rounded = select_bits(magnitude > 0x7f800000, Wide{} + 0x7e00, rounded);
    return rounded | ((Wide)v >> 16 & 0x8000);
  }

  // A lane holds two neighbours, the even one in its low half. No element moves to another lane.
  static ATROUSX_ALWAYS_INLINE Float widen_even(Wide pairs, BFloat16) {
    return (Float)(pairs << 16);
  }
  static ATROUSX_ALWAYS_INLINE Float widen_odd(Wide pairs, BFloat16) {
    return (Float)(pairs & 0xffff0000);
  }
  static ATROUSX_ALWAYS_INLINE Float widen_even(Wide pairs, Half) {
    return widen(pairs & 0xffff, Half{});
  }
  static ATROUSX_ALWAYS_INLINE Float widen_odd(Wide pairs, Half) {
    return widen(pairs >> 16, Half{});
  }
  // Only for sums of bfloat16. A NaN among them has zeros in its low half, so rounding keeps it.
  static ATROUSX_ALWAYS_INLINE Wide round_pairs(Float even, Float odd, BFloat16) {
    return half_up((Wide)even) >> 16 | (half_up((Wide)odd) & 0xffff0000);
  }
  static ATROUSX_ALWAYS_INLINE Wide half_up(Wide bits) {
    return bits + 0x7fff + ((bits >> 16) & 1);
  }
  static ATROUSX_ALWAYS_INLINE Wide round_pairs(Float even, Float odd, Half) {
    return round(even, Half{}) | round(odd, Half{}) << 16;
  }
};

template <int kLanes, typename T>
ATROUSX_ALWAYS_INLINE Lanes<Accumulate<T>, kLanes> load_lanes(const T* from) {
  if constexpr (kLanes == 1)
    return static_cast<Accumulate<T>>(*from);
  else if constexpr (std::is_same_v<T, Accumulate<T>>)
    return load_raw<Lanes<T, kLanes>>(from);
  else
    return HalfBits<kLanes>::widen(from);
}

template <int kLanes, typename T>
ATROUSX_ALWAYS_INLINE void store_lanes(T* to, Lanes<Accumulate<T>, kLanes> v) {
  if constexpr (kLanes == 1) {
    *to = static_cast<T>(v);
  } else if constexpr (std::is_same_v<T, Accumulate<T>>) {
    *reinterpret_cast<Lanes<T, kLanes>*>(to) = v;
  } else {
    using Bits = HalfBits<kLanes>;
    *reinterpret_cast<typename Bits::Narrow*>(to) =
        __builtin_convertvector(Bits::round(v, T{}), typename Bits::Narrow);
  }
}

// result[lane] is element index[lane] of the 2 kLanes elements of a and b.
template <int kLanes, typename A, typename Index>
ATROUSX_ALWAYS_INLINE Lanes<A, kLanes> permute_lanes(Lanes<A, kLanes> a, Lanes<A, kLanes> b,
                                                     Lanes<Index, kLanes> index) {
#if defined(__clang__)
  Lanes<A, kLanes> result;
  for (int lane = 0; lane < kLanes; ++lane)
    result[lane] = index[lane] < kLanes ? a[index[lane]] : b[index[lane] - kLanes];
  return result;
#else
  return __builtin_shuffle(a, b, index);
#endif
}

// Returns the bytes of a vector register in the instruction set in use.
inline int vector_bytes() {
  return cpu_isa() == CpuIsa::kAvx512 ? 64 : cpu_isa() == CpuIsa::kAvx2 ? 32 : 16;
}

// Runs Loop<vector_bytes()>::run(args...), compiled for the instruction set in use.
template <template <int> class Loop, typename... Args>
void run_with_lanes(Args... args) {
#if defined(__x86_64__)
  switch (cpu_isa()) {
    case CpuIsa::kAvx512:
      return run_on<CpuIsa::kAvx512, Loop<64>, Args...>(args...);
    case CpuIsa::kAvx2:
      return run_on<CpuIsa::kAvx2, Loop<32>, Args...>(args...);
    case CpuIsa::kPortable:
      break;
  }
#endif
  run_on<CpuIsa::kPortable, Loop<16>, Args...>(args...);
}

}  // namespace atrousx
