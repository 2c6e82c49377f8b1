// Implements cuda_runtime.h on the host executor: limits of GPUs, launches and errors.
#include "cuda_runtime.h"

#include <cxxabi.h>
#include <dlfcn.h>

#include <algorithm>
#include <map>
#include <set>
#include <stdexcept>
#include <string>

#include "access.h"
#include "gpu.h"

namespace emulator {

namespace {

const Gpu* chosen = &kGpus[0];
std::map<std::string, int>& registers() {
  static std::map<std::string, int> of_kernels;
  return of_kernels;
}
std::map<const void*, int64_t> allowed_shared;
unsigned int most_blocks = ~0u;
std::set<const void*> launched;
std::set<const void*> loaded;
bool capturing = false;
cudaStreamCaptureMode capture_mode = cudaStreamCaptureModeGlobal;
std::string broken;

cudaError_t last_error = cudaSuccess;
std::string last_message;

cudaError_t fail(cudaError_t error, const std::string& message) {
  last_error = error;
  last_message = message;
  return error;
}

// A function's name without its parameters, because nvcc and g++ mangle some parameters
// differently.
std::string plain_name(const char* mangled) {
  int status = 0;
  char* plain = abi::__cxa_demangle(mangled, nullptr, nullptr, &status);
  const std::string result = plain == nullptr ? mangled : plain;
  std::free(plain);
  return result.substr(0, result.find('('));
}

std::string plain_name(const void* kernel) {
  Dl_info info{};
  return dladdr(kernel, &info) != 0 && info.dli_sname != nullptr ? plain_name(info.dli_sname) : "";
}

int64_t allowed(const void* kernel) {
  const auto found = allowed_shared.find(kernel);
  return found == allowed_shared.end() ? kSharedWithoutOptIn
                                       : std::min(found->second, gpu().shared_bytes);
}

// Registers of all threads of a block. The hardware gives a warp registers in units of 256.
int64_t registers_of_block(const void* kernel, uint64_t threads) {
  const auto found = registers().find(plain_name(kernel));
  if (found == registers().end()) return 0;
  const int64_t of_warp = (found->second * 32 + 255) / 256 * 256;
  return of_warp * static_cast<int64_t>((threads + 31) / 32);
}

// Why CUDA would refuse the launch, or an empty string if it would not.
std::string refusal(const void* kernel, const cudaLaunchConfig_t& config, size_t parameter_bytes) {
  const dim3 &grid = config.gridDim, &block = config.blockDim;
  if (grid.count() == 0 || grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535)
    return "invalid grid of " + std::to_string(grid.count()) + " blocks";
  if (block.count() == 0 || block.count() > kThreadsOfBlock)
    return "invalid block of " + std::to_string(block.count()) + " threads";
  const auto dynamic = static_cast<int64_t>(config.dynamicSmemBytes);
  if (dynamic > allowed(kernel))
    return std::to_string(dynamic) + " bytes of dynamic shared memory, where the kernel may have " +
           std::to_string(allowed(kernel));
  if (static_cast<int64_t>(parameter_bytes) > kParameterBytes)
    return std::to_string(parameter_bytes) + " bytes of parameters";
  const int64_t taken = registers_of_block(kernel, block.count());
  if (taken > kRegisters) return std::to_string(taken) + " registers in a block";
  return "";
}

}  // namespace

const Gpu& gpu() { return *chosen; }

void set_gpu(const std::string& name) {
  for (const Gpu& known : kGpus)
    if (known.name == name) {
      chosen = &known;
      return;
    }
  throw std::runtime_error("no such GPU: " + name);
}

void set_registers(const std::string& kernel, int count) {
  registers()[plain_name(kernel.c_str())] = count;
}

void set_most_blocks(unsigned int count) { most_blocks = count; }

void break_kernels(const std::string& part_of_name) { broken = part_of_name; }

std::string take_launched() {
  std::string names;
  for (const void* kernel : std::exchange(launched, {})) names += plain_name(kernel) + "\n";
  return names;
}

void set_capturing(bool whether) { capturing = whether; }

cudaError_t load(const void* kernel) {
  if (loaded.count(kernel) > 0) return cudaSuccess;
  if (capturing && capture_mode != cudaStreamCaptureModeRelaxed)
    return fail(cudaErrorStreamCaptureUnsupported,
                plain_name(kernel) + ": loaded while a stream is captured");
  loaded.insert(kernel);
  return cudaSuccess;
}

cudaError_t allow_shared_memory(const void* kernel, int bytes) {
  if (bytes > gpu().shared_bytes)
    return fail(cudaErrorInvalidValue, std::to_string(bytes) + " bytes of shared memory, where a " +
                                           gpu().name + " has " +
                                           std::to_string(gpu().shared_bytes));
  allowed_shared[kernel] = bytes;
  return cudaSuccess;
}

cudaError_t launch_checked(const Call& call, const cudaLaunchConfig_t& config) {
  const std::string name = plain_name(call.kernel);
  const std::string refused = refusal(call.kernel, config, call.memory.bytes);
  if (!refused.empty()) return fail(cudaErrorInvalidConfiguration, name + ": " + refused);
  const cudaError_t error = load(call.kernel);
  if (error != cudaSuccess) return error;
  launched.insert(call.kernel);
  const OpenDeviceMemory open;
  const bool opted_in = allowed_shared.count(call.kernel) > 0;
  const SharedMemory shared{config.dynamicSmemBytes,
                            opted_in ? gpu().shared_bytes : kSharedWithoutOptIn};
  dim3 grid = config.gridDim;
  grid.x = std::min(grid.x, most_blocks);
  const bool breaks = !broken.empty() && name.find(broken) != std::string::npos;
  const auto body = [&] {
    if (!breaks || blockIdx.x + 1 < gridDim.x) call.run(call.memory.start);
  };
  try {
    run(grid, config.blockDim, shared, body, call.memory);
  } catch (const AccessFault& error) {
    return fail(cudaErrorIllegalAddress, name + ": " + error.what());
  } catch (const std::exception& error) {
    return fail(cudaErrorLaunchFailure, name + ": " + error.what());
  }
  return cudaSuccess;
}

}  // namespace emulator

cudaError_t cudaGetLastError() {
  const cudaError_t error = emulator::last_error;
  emulator::last_error = cudaSuccess;
  return error;
}

const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaSuccess ? "no error" : emulator::last_message.c_str();
}

cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  const emulator::Gpu& gpu = emulator::gpu();
  *value = attribute == cudaDevAttrMultiProcessorCount ? gpu.multiprocessors
                                                       : static_cast<int>(gpu.shared_bytes);
  return cudaSuccess;
}

cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
  std::swap(emulator::capture_mode, *mode);
  return cudaSuccess;
}

extern "C" {

// The function of libtorch_cuda with this name. There is only one stream.
int32_t aoti_torch_get_current_cuda_stream(int32_t, void** stream) {
  *stream = nullptr;
  return 0;
}

// The tests call these functions by ctypes.
void emulator_set_order(bool reverse, bool eager) {
  emulator::set_reverse(reverse);
  emulator::set_eager_copies(eager);
}
const char* emulator_gpu() { return emulator::gpu().name; }
bool emulator_set_gpu(const char* name) try {
  emulator::set_gpu(name);
  return true;
} catch (const std::exception&) {
  return false;
}
int emulator_last_error() { return emulator::last_error; }
void emulator_set_capturing(bool whether) { emulator::set_capturing(whether); }
float emulator_peek(const void* address) {
  const emulator::OpenDeviceMemory open;
  return *static_cast<const float*>(address);
}
void emulator_set_most_blocks(unsigned int count) { emulator::set_most_blocks(count); }
void emulator_break_kernels(const char* part_of_name) { emulator::break_kernels(part_of_name); }
const char* emulator_take_launched() {
  static std::string names;
  names = emulator::take_launched();
  return names.c_str();
}
void emulator_set_registers(const char* kernel, int count) {
  emulator::set_registers(kernel, count);
}

}  // extern "C"
