// The limits of GPUs, from NVIDIA's tables of compute capabilities and the GPUs' data sheets.
#pragma once

#include <cstdint>
#include <string>

namespace emulator {

struct Gpu {
  const char* name;
  int capability;  // 90 for 9.0
  int multiprocessors;
  int64_t shared_bytes;  // of a block, static and dynamic, after opting in
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
    // It has few multiprocessors. Small work fills it, and takes the paths that large work takes on
    // other GPUs.
    {"Jetson Orin NX", 87, 8, 163 * 1024},
    // Not real GPUs: they have the lowest limits with which tests run a launcher.
    {"one multiprocessor", 80, 1, 163 * 1024},
    {"little shared memory", 75, 1, 64 * 1024},
};

const Gpu& gpu();
void set_gpu(const std::string& name);

// Limits the grid. Larger grids are cut; kernels loop over the remaining jobs.
void set_most_blocks(unsigned int count);

// Returns the kernels launched since the last call, one name per line, with template arguments.
std::string take_launched();

// Kernels whose names contain this text run without their last block, as if a launcher had counted
// wrong. An empty text ends this.
void break_kernels(const std::string& part_of_name);

// Sets the registers of a kernel's thread, as reported by ptxas. The kernel's name is mangled, or
// in the form that take_launched returns.
void set_registers(const std::string& kernel, int count);

}  // namespace emulator
