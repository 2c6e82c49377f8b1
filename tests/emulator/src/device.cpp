// A PyTorch device, PrivateUse1, whose memory and kernels belong to the host executor. It
// allocates, copies and makes views. All other operators of PyTorch run on the CPU, and their
// results are copied back.
#include <ATen/EmptyTensor.h>
#include <ATen/autocast_mode.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/Resize.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/alias_native.h>
#include <ATen/ops/as_strided_cpu_dispatch.h>
#include <ATen/ops/set_native.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include "memory.h"

namespace {

using at::Tensor;
constexpr auto kDevice = c10::DeviceType::PrivateUse1;

struct DeviceAllocator final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    if (bytes == 0) return {nullptr, nullptr, &release, c10::Device(kDevice, 0)};
    void* memory = emulator::allocate_device_memory(bytes);
    return {memory, memory, &release, c10::Device(kDevice, 0)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, size_t bytes) const override {
    const emulator::OpenDeviceMemory open;
    std::memcpy(to, from, bytes);
  }
  static void release(void* memory) {
    if (memory != nullptr) emulator::free_device_memory(memory);
  }
};

DeviceAllocator& allocator() {
  static DeviceAllocator only;
  return only;
}

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  void setCurrentDevice(c10::DeviceIndex) const override {}
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex) const override { return 0; }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex) const override { return 0; }
  bool isPinnedPtr(const void*) const override { return false; }
  at::Device getDeviceFromPtr(void*) const override { return {kDevice, 0}; }
  void resizePrivateUse1Bytes(const c10::Storage& storage, size_t bytes) const override {
    auto memory = allocator().allocate(bytes);
    allocator().copy_data(memory.get(), storage.data(), std::min(bytes, storage.nbytes()));
    storage.unsafeGetStorageImpl()->set_data_ptr_noswap(std::move(memory));
    storage.unsafeGetStorageImpl()->set_nbytes(bytes);
  }
};

Tensor empty(c10::SymIntArrayRef size, std::optional<c10::ScalarType> dtype,
             std::optional<c10::Layout>, std::optional<c10::Device>, std::optional<bool>,
             std::optional<c10::MemoryFormat> format) {
  return at::detail::empty_generic(C10_AS_INTARRAYREF_SLOW(size), &allocator(),
                                   c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
                                   c10::dtype_or_default(dtype), format);
}

Tensor empty_strided(c10::SymIntArrayRef size, c10::SymIntArrayRef stride,
                     std::optional<c10::ScalarType> dtype, std::optional<c10::Layout>,
                     std::optional<c10::Device>, std::optional<bool>) {
  return at::detail::empty_strided_generic(
      C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride), &allocator(),
      c10::DispatchKeySet(c10::DispatchKey::PrivateUse1), c10::dtype_or_default(dtype));
}

// The same elements as a CPU tensor. It is valid while device memory is open.
Tensor on_host(const Tensor& t) {
  if (!t.defined() || t.is_cpu()) return t;
  const auto options = t.options().device(c10::kCPU);
  if (t.numel() == 0) return at::empty_strided(t.sizes(), t.strides(), options);
  return at::from_blob(const_cast<void*>(t.const_data_ptr()), t.sizes(), t.strides(), options);
}

Tensor copy_from(const Tensor& self, const Tensor& to, bool) {
  const emulator::OpenDeviceMemory open;
  on_host(to).copy_(on_host(self));
  return to;
}

Tensor copy_from_and_resize(const Tensor& self, const Tensor& to) {
  to.resize_(self.sizes());
  return copy_from(self, to, false);
}

const Tensor& resize(const Tensor& self, c10::SymIntArrayRef size,
                     std::optional<c10::MemoryFormat> format) {
  auto* impl = self.unsafeGetTensorImpl();
  const auto sizes = C10_AS_INTARRAYREF_SLOW(size);
  const int64_t bytes = c10::multiply_integers(sizes) * self.itemsize();
  const auto needed = static_cast<size_t>(bytes + self.storage_offset() * self.itemsize());
  if (self.storage().nbytes() < needed)
    at::detail::getPrivateUse1Hooks().resizePrivateUse1Bytes(self.storage(), needed);
  impl->set_sizes_contiguous(sizes);
  if (format.has_value()) impl->empty_tensor_restride(*format);
  return self;
}

Tensor as_strided(const Tensor& self, c10::SymIntArrayRef size, c10::SymIntArrayRef stride,
                  std::optional<c10::SymInt> offset) {
  std::optional<int64_t> first;
  if (offset.has_value()) first = offset->expect_int();
  return at::cpu::as_strided(self, C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride),
                             first);
}

Tensor view(const Tensor& self, c10::SymIntArrayRef size) {
  return at::native::view(self, C10_AS_INTARRAYREF_SLOW(size));
}

Tensor reshape_alias(const Tensor& self, c10::SymIntArrayRef size, c10::SymIntArrayRef stride) {
  return at::native::_reshape_alias(self, C10_AS_INTARRAYREF_SLOW(size),
                                    C10_AS_INTARRAYREF_SLOW(stride));
}

at::Scalar local_scalar_dense(const Tensor& self) {
  const emulator::OpenDeviceMemory open;
  return on_host(self).item();
}

Tensor& set_storage(Tensor& self, at::Storage source, c10::SymInt offset, c10::SymIntArrayRef size,
                    c10::SymIntArrayRef stride) {
  auto* impl = self.unsafeGetTensorImpl();
  impl->set_storage_keep_dtype(std::move(source));
  const auto sizes = C10_AS_INTARRAYREF_SLOW(size);
  if (stride.empty()) {  // a contiguous tensor
    impl->set_storage_offset(offset.expect_int());
    impl->set_sizes_contiguous(sizes);
  } else {
    impl->set_sizes_and_strides(sizes, C10_AS_INTARRAYREF_SLOW(stride), offset.expect_int());
  }
  return self;
}

Tensor& set_whole_storage(Tensor& self, at::Storage source) {
  return at::native::set_(self, std::move(source));
}

// F.conv2d calls these on devices that PyTorch does not know.
Tensor convolution(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
                   c10::SymIntArrayRef stride, c10::SymIntArrayRef padding,
                   c10::SymIntArrayRef dilation, bool transposed,
                   c10::SymIntArrayRef output_padding, c10::SymInt groups) {
  const auto cpu = [](const Tensor& t) { return t.cpu(); };
  const bool biased = bias.has_value() && bias->defined();
  const auto result = at::convolution_symint(
      cpu(input), cpu(weight), biased ? std::optional(cpu(*bias)) : std::nullopt, stride, padding,
      dilation, transposed, output_padding, groups);
  return result.to(input.device());
}

std::tuple<Tensor, Tensor, Tensor> convolution_backward(
    const Tensor& grad, const Tensor& input, const Tensor& weight, c10::SymIntArrayRef stride,
    c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation, bool transposed,
    c10::SymIntArrayRef output_padding, c10::SymInt groups, std::array<bool, 3> mask) {
  const auto [a, b, c] = at::convolution_backward_symint(
      grad.cpu(), input.cpu(), weight.cpu(), c10::SymIntArrayRef{weight.sym_size(0)}, stride,
      padding, dilation, transposed, output_padding, groups, mask);
  const auto back = [&](const Tensor& t) { return t.defined() ? t.to(input.device()) : t; };
  return {back(a), back(b), back(c)};
}

// Converts an argument or result of a PyTorch operator to the CPU.
c10::IValue on_host(const c10::IValue& value) {
  if (value.isTensor()) return on_host(value.toTensor());
  if (value.isDevice()) return c10::Device(c10::kCPU);
  if (value.isTensorList()) {
    std::vector<Tensor> list;
    for (const Tensor& t : value.toTensorVector()) list.push_back(on_host(t));
    return list;
  }
  if (value.isOptionalTensorList()) {
    c10::List<std::optional<Tensor>> list;
    for (const std::optional<Tensor>& t : value.toOptionalTensorVector())
      list.push_back(t.has_value() ? std::optional(on_host(*t)) : std::nullopt);
    return list;
  }
  return value;
}

Tensor on_device(const Tensor& t) {
  if (!t.defined()) return t;
  const Tensor copy = at::empty_strided(t.sizes(), t.strides(), t.options().device(kDevice));
  on_host(copy).copy_(t);
  return copy;
}

c10::IValue on_device(const c10::IValue& value) {
  if (value.isTensor()) return on_device(value.toTensor());
  if (!value.isTensorList()) return value;
  std::vector<Tensor> list;
  for (const Tensor& t : value.toTensorVector()) list.push_back(on_device(t));
  return list;
}

bool is_changed(const c10::Argument& argument) {
  return argument.alias_info() != nullptr && argument.alias_info()->isWrite();
}

// Memory for the result of an operator with an `out` argument. The operator may resize it.
c10::IValue for_output(const c10::IValue& out) {
  const Tensor& t = out.toTensor();
  return at::empty_strided(t.sizes(), t.strides(), t.options().device(c10::kCPU));
}

void store_output(const c10::IValue& computed, const c10::IValue& out) {
  const Tensor &from = computed.toTensor(), to = out.toTensor();
  if (to.sizes() != from.sizes()) to.resize_(from.sizes(), from.suggest_memory_format());
  on_host(to).copy_(from);
}

// Finds the argument that a result aliases, according to the schema.
size_t changed_argument(const c10::FunctionSchema& schema, const c10::AliasInfo& result) {
  for (size_t i = 0; i < schema.arguments().size(); ++i)
    if (is_changed(schema.arguments()[i]) && *schema.arguments()[i].alias_info() == result)
      return i;
  TORCH_CHECK(false, schema.name(), " makes a view, and the device has no kernel of it");
}

// Results keep the strides that PyTorch gives them on the CPU. A result that is an argument changed
// in place is returned as that argument.
void compute_on_cpu(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const emulator::OpenDeviceMemory open;
  const auto& schema = op.schema();
  const size_t count = schema.arguments().size();
  const std::vector<c10::IValue> given(stack->end() - static_cast<int64_t>(count), stack->end());
  torch::jit::drop(*stack, count);
  std::vector<c10::IValue> taken;
  const auto is_output = [&](size_t i) {
    const c10::Argument& argument = schema.arguments()[i];
    return argument.kwarg_only() && is_changed(argument) && given[i].isTensor();
  };
  for (size_t i = 0; i < count; ++i)
    taken.push_back(is_output(i) ? for_output(given[i]) : on_host(given[i]));
  stack->insert(stack->end(), taken.begin(), taken.end());
  op.callBoxed(stack);
  for (size_t i = 0; i < count; ++i)
    if (is_output(i)) store_output(taken[i], given[i]);
  auto result = stack->end() - static_cast<int64_t>(schema.returns().size());
  for (const c10::Argument& returned : schema.returns()) {
    const c10::AliasInfo* alias = returned.alias_info();
    *result = alias == nullptr ? on_device(*result) : given[changed_argument(schema, *alias)];
    ++result;
  }
}

// One device and one stream. All work is done immediately.
struct Guard final : c10::impl::NoOpDeviceGuardImpl<kDevice> {
  static c10::Device only() { return {kDevice, 0}; }
  static c10::Stream stream() { return c10::Stream(c10::Stream::DEFAULT, only()); }
  c10::Device exchangeDevice(c10::Device) const noexcept override { return only(); }
  c10::Device getDevice() const noexcept override { return only(); }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  c10::Stream getStream(c10::Device) const noexcept override { return stream(); }
  c10::Stream getNewStream(c10::Device, int) const override { return stream(); }
  c10::Stream getDefaultStream(c10::Device) const override { return stream(); }
  c10::Stream getStreamFromGlobalPool(c10::Device, bool) const override { return stream(); }
  c10::Stream exchangeStream(c10::Stream) const noexcept override { return stream(); }
  void record(void** event, const c10::Stream&, const c10::DeviceIndex,
              const c10::EventFlag) const override {
    *event = const_cast<Guard*>(this);
  }
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void*, const c10::DeviceIndex) const noexcept override {}
  void synchronizeEvent(void*) const override {}
  void synchronizeStream(const c10::Stream&) const override {}
  bool queryStream(const c10::Stream&) const override { return true; }
};

C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", &empty);
  m.impl("empty_strided", &empty_strided);
  m.impl("_copy_from", &copy_from);
  m.impl("_copy_from_and_resize", &copy_from_and_resize);
  m.impl("resize_", &resize);
  m.impl("as_strided", &as_strided);
  m.impl("view", &view);
  m.impl("_reshape_alias", &reshape_alias);
  m.impl("unfold", &at::native::unfold);
  m.impl("alias", &at::native::alias);
  m.impl("_local_scalar_dense", &local_scalar_dense);
  m.impl("set_.source_Storage", &set_whole_storage);
  m.impl("set_.source_Storage_storage_offset", &set_storage);
  m.impl("convolution_overrideable", &convolution);
  m.impl("convolution_backward_overrideable", &convolution_backward);
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) {
  m.fallback(torch::CppFunction::makeFromBoxedFunction<&compute_on_cpu>());
}

// Of PyTorch's operators only the convolution has an autocast rule here. atrousx's operators have
// their own.
TORCH_LIBRARY_IMPL(_, AutocastPrivateUse1, m) { m.fallback(torch::CppFunction::makeFallthrough()); }
TORCH_LIBRARY_IMPL(aten, AutocastPrivateUse1, m) {
  KERNEL_PRIVATEUSEONE(conv2d, lower_precision_fp)
}

// The device is registered when the library is loaded.
const bool registered = [] {
  static Hooks hooks;
  c10::SetAllocator(kDevice, &allocator());
  at::RegisterPrivateUse1HooksInterface(&hooks);
  return true;
}();

}  // namespace
