// What a GPU allows, from NVIDIA's tables of compute capabilities and the GPUs' data sheets.
#pragma once

#include <cstdint>
#include <string>

namespace emulator {

struct Gpu {
  const char* name;
  int capability;  // 90 for 9.0
  int multiprocessors;
  int64_t shared_bytes;  // a block's, static and dynamic, where it has opted in
};

constexpr int64_t kSharedWithoutOptIn = 48 * 1024;
constexpr int64_t kRegisters = 65536;       // of a block
constexpr int64_t kParameterBytes = 32764;  // from compute capability 7.0 on
constexpr unsigned int kThreadsOfBlock = 1024;

constexpr Gpu kGpus[] = {
    {"H200", 90, 132, 227 * 1024},
    {"A100", 80, 108, 163 * 1024},
    {"RTX 4090", 89, 128, 99 * 1024},
    {"RTX 5090", 120, 170, 99 * 1024},
    // Few multiprocessors: small work fills it, and takes the paths that large work takes
    // elsewhere.
    {"Jetson Orin NX", 87, 8, 163 * 1024},
};

const Gpu& gpu();
void set_gpu(const std::string& name);

// What ptxas says that a thread of a kernel, by its mangled name, takes.
void set_registers(const std::string& kernel, int count);

}  // namespace emulator
