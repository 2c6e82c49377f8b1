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
    // No GPU: the least that a test can ask of a launcher.
    {"one multiprocessor", 80, 1, 163 * 1024},
    {"little shared memory", 75, 1, 64 * 1024},
};

const Gpu& gpu();
void set_gpu(const std::string& name);

// Grids that are larger are cut: kernels take in turn what a grid leaves.
void set_most_blocks(unsigned int count);

// The names of the kernels launched since the last call, template arguments included, a line each.
std::string take_launched();

// Kernels whose names hold this run without their last block, as if a launcher had counted wrong;
// none where it is empty.
void break_kernels(const std::string& part_of_name);

// What ptxas says that a thread of a kernel takes; by the kernel's name, mangled, or as
// take_launched tells it.
void set_registers(const std::string& kernel, int count);

}  // namespace emulator
