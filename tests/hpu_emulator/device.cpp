// A TEST DOUBLE: the device "hpu" on CPU memory. No Gaudi is involved, and nothing it computes is a Gaudi result.
//
// Every operation on an hpu tensor passes one fallback, which relabels its arguments as CPU tensors on the same memory,
// runs the CPU kernel and relabels what comes out. There the strictness lives: tensors of host and device that meet,
// graphs never seen before, operations that make the host wait. Python (hpu_emulator/state.py) hears of them through
// the callbacks at the end of this file.

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/detail/HPUHooksInterface.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <mutex>
#include <set>
#include <unordered_map>
#include <unordered_set>

namespace {

using c10::Device;
using c10::DeviceIndex;
using c10::DeviceType;
using c10::DispatchKey;
using c10::DispatchKeySet;
using c10::IValue;
using torch::jit::Stack;

const Device HPU(DeviceType::HPU, 0);

// What Python is told of, and asked for.
enum Event { ACQUIRE = 0, HOST_SYNC = 1, RECOMPILATION = 2 };
using Callback = int (*)(int event, const char* text);
Callback callback = nullptr;
std::string refusal; // set by the callback of ACQUIRE before it returns a status other than 0

struct Counters {
  uint64_t operations = 0, graphs = 0, recompilations = 0, host_syncs = 0, mark_steps = 0;
  uint64_t bytes = 0, max_bytes = 0, allocations = 0;
} counters;

bool lazy = false; // operations gather until mark_step or a host sync; else each is a graph of its own
bool warm = false; // from now on a new graph is a recompilation
bool tanh_gelu = true; // PT_HPU_FORCE_TANH_FOR_GELU
thread_local int in_compiled_graph = 0; // inside one graph of torch.compile the operations are not counted one by one

pid_t owner = 0; // the process that holds the card

void acquire_card() {
  if (owner == getpid()) return;
  TORCH_CHECK(owner == 0, "hpu: a forked process touched the card of its parent");
  TORCH_CHECK(callback != nullptr && callback(ACQUIRE, "") == 0, "hpu: ", refusal);
  owner = getpid();
}

// ---------------------------------------------------------------------------------------------- memory

struct Block {
  c10::DataPtr memory;
  size_t bytes;
};

void release(void* context) {
  auto* block = static_cast<Block*>(context);
  counters.bytes -= block->bytes;
  delete block;
}

struct HpuAllocator final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    acquire_card();
    counters.bytes += bytes;
    counters.allocations += 1;
    counters.max_bytes = std::max(counters.max_bytes, counters.bytes);
    auto* block = new Block{c10::GetCPUAllocator()->allocate(bytes), bytes};
    return {block->memory.get(), block, &release, HPU};
  }
  void copy_data(void* to, const void* from, size_t count) const override {
    default_copy_data(to, from, count);
  }
};
HpuAllocator allocator;
REGISTER_ALLOCATOR(DeviceType::HPU, &allocator);

// ---------------------------------------------------------------------------------------------- device, generator

struct HpuGuard final : c10::impl::NoOpDeviceGuardImpl<DeviceType::HPU> {
  Device exchangeDevice(Device) const override { return HPU; }
  Device getDevice() const override { return HPU; }
  c10::Stream getStream(Device) const noexcept override { return c10::Stream(c10::Stream::DEFAULT, HPU); }
  c10::Stream getNewStream(Device, int) const override { return c10::Stream(c10::Stream::DEFAULT, HPU); }
  c10::Stream exchangeStream(c10::Stream) const noexcept override { return c10::Stream(c10::Stream::DEFAULT, HPU); }
};
C10_REGISTER_GUARD_IMPL(HPU, HpuGuard);

// The card's own stream of random numbers; CPU kernels take it while it is relabelled.
struct HpuGenerator final : at::CPUGeneratorImpl {
  explicit HpuGenerator(uint64_t seed) : CPUGeneratorImpl(seed) { label(DeviceType::HPU); }
  void label(DeviceType type) {
    device_ = Device(type, type == DeviceType::HPU ? 0 : -1);
    key_set_ = DispatchKeySet(type == DeviceType::HPU ? DispatchKey::HPU : DispatchKey::CPU);
  }
};

at::Generator& default_generator() {
  static at::Generator generator = at::make_generator<HpuGenerator>(c10::detail::getNonDeterministicRandom());
  return generator;
}

// The name is looked up in a registry.
struct HPUHooks final : at::HPUHooksInterface {
  explicit HPUHooks(at::HPUHooksArgs) {}
  void init() const override {}
  bool hasHPU() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return owner == getpid(); }
  DeviceIndex deviceCount() const override { return 1; }
  DeviceIndex getCurrentDevice() const override { return 0; }
  void setCurrentDevice(DeviceIndex) const override {}
  DeviceIndex exchangeDevice(DeviceIndex) const override { return 0; }
  DeviceIndex maybeExchangeDevice(DeviceIndex) const override { return 0; }
  at::Allocator* getPinnedMemoryAllocator() const override { return c10::GetCPUAllocator(); }
  Device getDeviceFromPtr(void*) const override { return HPU; }
  const at::Generator& getDefaultGenerator(DeviceIndex) const override { return default_generator(); }
  at::Generator getNewGenerator(DeviceIndex) const override {
    return at::make_generator<HpuGenerator>(c10::default_rng_seed_val);
  }
};
using at::HPUHooksRegistry;
using at::RegistererHPUHooksRegistry;
REGISTER_HPU_HOOKS(HPUHooks);

// ---------------------------------------------------------------------------------------------- graphs and syncs

std::recursive_mutex gate;
uint64_t pending_operations = 0;
uint64_t pending_hash = 0;
std::unordered_set<uint64_t> graphs;

void mix(uint64_t& hash, uint64_t value) {
  hash ^= value + 0x9e3779b97f4a7c15ULL + (hash << 6) + (hash >> 2);
}

// In lazy mode only what a live tensor needs is ever computed. Results since the last flush, and what became of them.
struct Result {
  std::string operation;
  c10::weak_intrusive_ptr<c10::StorageImpl> storage;
};
std::vector<Result> results;
std::unordered_set<c10::StorageImpl*> used; // by another operation, or read by the host
std::string dropped; // the last operation whose result was gone before it was computed, and used by nothing

void see_graph(uint64_t hash, const std::string& text) {
  if (!graphs.insert(hash).second) return;
  counters.graphs += 1;
  if (warm) {
    counters.recompilations += 1;
    callback(RECOMPILATION, text.c_str());
  }
}

void flush(const std::string& why) {
  if (pending_operations) see_graph(pending_hash, std::to_string(pending_operations) + " operations, up to " + why);
  pending_operations = 0;
  pending_hash = 0;
  for (const auto& result : results)
    if (result.storage.expired() && !used.count(result.storage._unsafe_get_target())) dropped = result.operation;
  results.clear();
  used.clear();
}

// Copies to the host that nobody waited for: until then the host reads garbage.
std::vector<std::pair<at::Tensor, at::Tensor>> late_copies; // to, from; both on the host

void make_late_copies() {
  std::lock_guard<std::recursive_mutex> lock(gate);
  at::AutoDispatchBelowADInplaceOrView below;
  auto copies = std::move(late_copies);
  late_copies.clear();
  for (auto& [to, from] : copies) to.copy_(from);
}

void host_sync(const std::string& operation) {
  std::lock_guard<std::recursive_mutex> lock(gate);
  flush(operation);
  make_late_copies();
  counters.host_syncs += 1;
  callback(HOST_SYNC, operation.c_str());
}

// A graph is its operations, the shapes and types of their tensors, and every number baked into them.
void mix_value(uint64_t& hash, const IValue& value) {
  if (value.isTensor()) {
    const auto& tensor = value.toTensor();
    if (!tensor.defined()) return mix(hash, 1);
    mix(hash, static_cast<uint64_t>(tensor.scalar_type()) + 2);
    for (auto size : tensor.sizes()) mix(hash, size);
    // A number of Python's that became a tensor on its way here.
    if (tensor.unsafeGetTensorImpl()->is_wrapped_number()) mix_value(hash, tensor.item());
  } else if (value.isDouble()) {
    mix(hash, std::hash<double>{}(value.toDouble()));
  } else if (value.isInt()) {
    mix(hash, std::hash<int64_t>{}(value.toInt()));
  } else if (value.isBool()) {
    mix(hash, value.toBool());
  } else if (value.isString()) {
    mix(hash, std::hash<std::string>{}(value.toStringRef()));
  } else if (value.isList()) {
    for (const IValue& element : value.toListRef()) mix_value(hash, element);
    mix(hash, 3);
  } else {
    mix(hash, 4);
  }
}

void record(const std::string& name, const IValue* first, size_t count) {
  std::lock_guard<std::recursive_mutex> lock(gate);
  counters.operations += 1;
  if (in_compiled_graph) return;
  uint64_t hash = std::hash<std::string>{}(name);
  std::string shapes;
  for (size_t i = 0; i < count; ++i) {
    mix_value(hash, first[i]);
    if (!lazy && warm && first[i].isTensor() && first[i].toTensor().defined())
      shapes += " " + c10::str(first[i].toTensor().sizes()) + c10::toString(first[i].toTensor().scalar_type());
  }
  if (lazy) {
    pending_operations += 1;
    mix(pending_hash, hash);
  } else {
    see_graph(hash, name + shapes);
  }
}

// Operations whose result is a number on the host, or has a shape that only their values tell.
const std::set<std::string> SYNCS = {
    "aten::_local_scalar_dense", "aten::equal", "aten::nonzero", "aten::masked_select", "aten::_unique2",
    "aten::unique_dim", "aten::unique_consecutive", "aten::repeat_interleave", "aten::bincount", "aten::is_nonzero"};

bool indexes_by_mask(const std::string& name, const IValue& indices) {
  if (name != "aten::index" && name != "aten::index_put_" && name != "aten::_index_put_impl_") return false;
  for (const IValue& index : indices.toListRef())
    if (index.isTensor() && index.toTensor().defined() && (index.toTensor().scalar_type() == at::kBool || index.toTensor().scalar_type() == at::kByte))
      return true;
  return false;
}

// ---------------------------------------------------------------------------------------------- the fallback

at::Tensor tensor_on(const c10::Storage& storage, DispatchKey key, const at::Tensor& like) {
  auto tensor = at::detail::make_tensor<c10::TensorImpl>(c10::Storage(storage), DispatchKeySet(key), like.dtype());
  tensor.unsafeGetTensorImpl()->set_sizes_and_strides(like.sizes(), like.strides(), like.storage_offset());
  return tensor;
}

c10::DataPtr held_by(const c10::Storage& storage, Device device) {
  auto* holder = new c10::Storage(storage);
  return {storage.mutable_data(), holder, [](void* held) { delete static_cast<c10::Storage*>(held); }, device};
}

// One call: its hpu tensors and what stands for them on the CPU.
class Relabelling {
 public:
  explicit Relabelling(std::string operation) : operation_(std::move(operation)) {}

  at::Tensor to_cpu(const at::Tensor& tensor) {
    if (!tensor.defined() || !tensor.device().is_hpu()) {
      if (tensor.defined() && tensor.device().is_cpu()) hosts_.push_back(tensor);
      return tensor;
    }
    for (auto& [hpu, cpu] : tensors_)
      if (hpu.is_same(tensor)) return cpu;
    auto cpu = tensor_on(cpu_storage(tensor.storage()), DispatchKey::CPU, tensor);
    tensors_.emplace_back(tensor, cpu);
    return cpu;
  }

  IValue to_cpu(const IValue& value) {
    if (value.isTensor()) return to_cpu(value.toTensor());
    if (value.isDevice() && value.toDevice().is_hpu()) return Device(DeviceType::CPU);
    if (value.isGenerator()) return generator(value.toGenerator());
    if (value.isTensorList()) {
      c10::List<at::Tensor> list;
      for (const at::Tensor& tensor : value.toTensorList().vec()) list.push_back(to_cpu(tensor));
      return list;
    }
    if (value.isList() && !value.isIntList() && !value.isDoubleList() && !value.isBoolList()) {
      c10::List<IValue> source = value.toList();
      c10::impl::GenericList list(source.elementType());
      for (const IValue& element : source.vec()) list.push_back(to_cpu(element));
      return list;
    }
    return value;
  }

  at::Generator generator(at::Generator given) {
    if (given.defined() && given.device().is_hpu()) {
      static_cast<HpuGenerator*>(given.unsafeGetGeneratorImpl())->label(DeviceType::CPU);
      generators_.push_back(given);
    }
    return given;
  }

  // Changes of shape and of memory that the CPU kernel made to its arguments, carried over to the hpu tensors.
  void carry_back() {
    for (auto& [hpu, cpu] : storages_) {
      auto found = known_.at(hpu.unsafeGetStorageImpl());
      if (cpu.data() == found) continue;
      hpu.set_data_ptr_noswap(held_by(cpu, HPU));
      hpu.set_nbytes(cpu.nbytes());
    }
    for (auto& [hpu, cpu] : tensors_)
      if (hpu.sizes() != cpu.sizes() || hpu.strides() != cpu.strides() || hpu.storage_offset() != cpu.storage_offset())
        hpu.unsafeGetTensorImpl()->set_sizes_and_strides(cpu.sizes(), cpu.strides(), cpu.storage_offset());
  }

  at::Tensor to_hpu(const at::Tensor& result) {
    if (!result.defined() || !result.device().is_cpu() || !result.has_storage()) return result;
    for (auto& [hpu, cpu] : tensors_)
      if (cpu.is_same(result)) return hpu;
    for (auto& host : hosts_)
      if (host.is_same(result)) return result;
    for (auto& [hpu, cpu] : storages_)
      if (cpu.is_alias_of(result.storage())) return tensor_on(hpu, DispatchKey::HPU, result);
    // hpu makes its results contiguous, and torch.compile reckons with that (torch/_refs: is_noncontiguous_supported).
    if (!result.is_contiguous()) return to_hpu(result.contiguous());
    c10::Storage stolen(c10::Storage::use_byte_size_t(), result.storage().nbytes(), held_by(result.storage(), HPU), &allocator, true);
    storages_.emplace_back(stolen, result.storage());
    known_[stolen.unsafeGetStorageImpl()] = result.storage().data();
    if (lazy) {
      std::lock_guard<std::recursive_mutex> lock(gate);
      used.erase(stolen.unsafeGetStorageImpl()); // of an earlier one at the same address
      results.push_back({operation_, stolen.getWeakStorageImpl()});
    }
    return tensor_on(stolen, DispatchKey::HPU, result);
  }

  IValue to_hpu(const IValue& value) {
    if (value.isTensor()) return to_hpu(value.toTensor());
    if (value.isTensorList()) {
      c10::List<at::Tensor> list;
      for (const at::Tensor& tensor : value.toTensorList().vec()) list.push_back(to_hpu(tensor));
      return list;
    }
    if (value.isList() && !value.isIntList() && !value.isDoubleList() && !value.isBoolList()) {
      c10::List<IValue> source = value.toList();
      c10::impl::GenericList list(source.elementType());
      for (const IValue& element : source.vec()) list.push_back(to_hpu(element));
      return list;
    }
    return value;
  }

  void refuse_mixed(const std::string& name) const {
    if (tensors_.empty()) return;
    for (auto& host : hosts_)
      TORCH_CHECK(host.dim() == 0, "Expected all tensors to be on the same device, but ", name, " found hpu:0 and cpu");
  }

  ~Relabelling() {
    for (auto& given : generators_) static_cast<HpuGenerator*>(given.unsafeGetGeneratorImpl())->label(DeviceType::HPU);
  }

 private:
  c10::Storage cpu_storage(const c10::Storage& storage) {
    for (auto& [hpu, cpu] : storages_)
      if (hpu.is_alias_of(storage)) return cpu;
    auto* data = storage.mutable_data();
    if (lazy) {
      std::lock_guard<std::recursive_mutex> lock(gate);
      used.insert(storage.unsafeGetStorageImpl());
    }
    c10::Storage cpu(c10::Storage::use_byte_size_t(), storage.nbytes(), held_by(storage, DeviceType::CPU), c10::GetCPUAllocator(), true);
    storages_.emplace_back(storage, cpu);
    known_[storage.unsafeGetStorageImpl()] = data;
    return cpu;
  }

  std::string operation_;
  std::vector<std::pair<at::Tensor, at::Tensor>> tensors_;
  std::vector<std::pair<c10::Storage, c10::Storage>> storages_;
  std::unordered_map<c10::StorageImpl*, const void*> known_; // where the memory was before the call
  std::vector<at::Tensor> hosts_;
  std::vector<at::Generator> generators_;
};

bool takes_generator(const c10::Argument& argument) {
  return argument.type()->str() == "Generator?";
}

// The bridge has no kernels for torch's own fused optimizers.
const std::set<std::string> ABSENT = {
    "aten::_fused_adamw_", "aten::_fused_adam_", "aten::_fused_sgd_", "aten::_fused_adagrad_"};

// Another look at the same memory: part of a lazy graph, but nothing to compile on its own.
bool is_view(const c10::FunctionSchema& schema) {
  return !schema.returns().empty() && schema.returns()[0].alias_info() && !schema.returns()[0].alias_info()->isWrite();
}

void fallback(const c10::OperatorHandle& op, Stack* stack) {
  const auto& schema = op.schema();
  const std::string& name = schema.name();
  const size_t count = schema.arguments().size();
  const size_t begin = stack->size() - count;
  TORCH_CHECK(!ABSENT.count(name), "hpu has no kernel for ", name);
  const bool collective = name.rfind("c10d::", 0) == 0;

  const bool compiled = lazy || (!is_view(schema) && name != "aten::_local_scalar_dense");
  if (!collective && compiled) record(name, &(*stack)[begin], count);
  if (!in_compiled_graph && (SYNCS.count(name) || (count > 1 && indexes_by_mask(name, (*stack)[begin + 1])))) host_sync(name);

  Relabelling relabelling(name);
  for (size_t i = 0; i < count; ++i) {
    IValue& value = (*stack)[begin + i];
    if (value.isNone() && takes_generator(schema.arguments()[i]))
      value = relabelling.generator(default_generator());
    else if (value.isString() && tanh_gelu && name.rfind("aten::gelu", 0) == 0)
      value = "tanh";
    else
      value = relabelling.to_cpu(value);
  }
  if (!collective) relabelling.refuse_mixed(name);
  {
    at::AutoDispatchBelowADInplaceOrView below;
    c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
    op.callBoxed(stack);
  }
  relabelling.carry_back();
  const size_t results = schema.returns().size();
  for (size_t i = stack->size() - results; i < stack->size(); ++i) (*stack)[i] = relabelling.to_hpu((*stack)[i]);
}

// ---------------------------------------------------------------------------------------------- kernels of its own

at::Tensor empty(at::IntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>, std::optional<Device>, std::optional<bool>, std::optional<at::MemoryFormat> format) {
  return at::detail::empty_generic(size, &allocator, DispatchKeySet(DispatchKey::HPU), c10::dtype_or_default(dtype), format);
}

at::Tensor empty_strided(at::IntArrayRef size, at::IntArrayRef stride, std::optional<at::ScalarType> dtype, std::optional<at::Layout>, std::optional<Device>, std::optional<bool>) {
  return at::detail::empty_strided_generic(size, stride, &allocator, DispatchKeySet(DispatchKey::HPU), c10::dtype_or_default(dtype));
}

// Between host and card, or on the card. What goes to the host makes it wait, and what comes from it, unless asked not to.
at::Tensor& copy_(at::Tensor& to, const at::Tensor& from, bool non_blocking) {
  if (from.device().is_hpu() && to.device().is_hpu()) {
    std::vector<IValue> both{to, from};
    record("aten::copy_", both.data(), both.size());
  } else if (!non_blocking && (from.device().is_hpu() || from.numel() > 0)) {
    host_sync("copy to " + to.device().str());
  }
  Relabelling relabelling("aten::copy_");
  auto cpu_to = relabelling.to_cpu(to), cpu_from = relabelling.to_cpu(from);
  at::AutoDispatchBelowADInplaceOrView below;
  c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
  if (from.device().is_hpu() && to.device().is_cpu() && non_blocking) {
    late_copies.emplace_back(cpu_to, cpu_from.clone());
    memset(cpu_to.mutable_data_ptr(), 0xFF, cpu_to.nbytes());
    return to;
  }
  cpu_to.copy_(cpu_from);
  return to;
}

at::Tensor copy_from(const at::Tensor& from, const at::Tensor& to, bool non_blocking) {
  at::Tensor target = to;
  return copy_(target, from, non_blocking);
}

const at::Tensor& resize_(const at::Tensor& self, at::IntArrayRef size, std::optional<at::MemoryFormat>) {
  auto* tensor = self.unsafeGetTensorImpl();
  tensor->set_sizes_contiguous(size);
  const size_t bytes = (tensor->numel() + tensor->storage_offset()) * tensor->itemsize();
  auto& storage = tensor->unsafe_storage();
  if (storage.nbytes() < bytes) {
    auto memory = allocator.allocate(bytes);
    if (storage.nbytes()) memcpy(memory.get(), storage.data(), storage.nbytes());
    storage.set_data_ptr_noswap(std::move(memory));
    storage.set_nbytes(bytes);
  }
  return self;
}

at::Tensor& set_storage_part(at::Tensor& self, at::Storage source, int64_t offset, at::IntArrayRef size, at::IntArrayRef stride) {
  auto* tensor = self.unsafeGetTensorImpl();
  tensor->set_storage_keep_dtype(std::move(source));
  if (stride.data() == nullptr || (stride.empty() && !size.empty())) {
    tensor->set_storage_offset(offset);
    tensor->set_sizes_contiguous(size);
  } else {
    tensor->set_sizes_and_strides(size, stride, offset);
  }
  return self;
}

at::Tensor& set_storage(at::Tensor& self, at::Storage source) {
  const int64_t length = source.nbytes() / self.dtype().itemsize();
  return set_storage_part(self, std::move(source), 0, {length}, {1});
}

void record_stream(at::Tensor&, at::Stream) {}

TORCH_LIBRARY_IMPL(_, HPU, m) {
  m.fallback(torch::CppFunction::makeFromBoxedFunction<&fallback>());
}

const std::set<std::string> OWN_KERNELS = {
    "empty.memory_format", "empty_strided", "copy_", "_copy_from", "resize_", "set_.source_Storage",
    "set_.source_Storage_storage_offset", "record_stream"};

// What the CPU has a kernel of its own for goes there, not by way of torch's composite of other operations:
// layer_norm with a bf16 input and fp32 weights gives bf16, as on the card, and values equal the CPU's to the bit.
struct KernelsOfTheCpu {
  torch::Library library{torch::Library::IMPL, "aten", DispatchKey::HPU, __FILE__, __LINE__};

  KernelsOfTheCpu() {
    for (const auto& name : c10::Dispatcher::singleton().getRegistrationsForDispatchKey(DispatchKey::CPU)) {
      if (name.name.rfind("aten::", 0) != 0) continue;
      const std::string bare = name.name.substr(6);
      const std::string full = name.overload_name.empty() ? bare : bare + "." + name.overload_name;
      if (!OWN_KERNELS.count(full)) library.impl(full.c_str(), torch::CppFunction::makeFromBoxedFunction<&fallback>());
    }
  }
};
const KernelsOfTheCpu kernels_of_the_cpu;

TORCH_LIBRARY_IMPL(aten, HPU, m) {
  m.impl("empty.memory_format", &empty);
  m.impl("empty_strided", &empty_strided);
  m.impl("copy_", &copy_);
  m.impl("_copy_from", &copy_from);
  m.impl("resize_", &resize_);
  m.impl("set_.source_Storage", &set_storage);
  m.impl("set_.source_Storage_storage_offset", &set_storage_part);
  m.impl("record_stream", &record_stream);
}

// ---------------------------------------------------------------------------------------------- autocast

// Habana's own lists, which a file named in the environment replaces whole.
const std::set<std::string> DEFAULT_LOWER = {
    "addmm", "addbmm", "batch_norm", "baddbmm", "bmm", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d",
    "conv_transpose3d", "dot", "dropout", "feature_dropout", "group_norm", "instance_norm", "layer_norm", "leaky_relu",
    "linear", "matmul", "mean", "mm", "mul", "mv", "softmax", "log_softmax", "scaled_dot_product_attention"};
const std::set<std::string> DEFAULT_FP32 = {
    "cross_entropy_loss", "nll_loss", "embedding", "div", "divide", "true_divide", "exp", "log", "pow", "rsqrt", "topk",
    "smooth_l1_loss", "mse_loss", "kl_div"};
const std::set<std::string> PROMOTE = {"add", "addcmul", "addcdiv", "cat", "div", "exp", "mul", "pow", "sub", "stack"};
const std::set<std::string> FIRST_ARGUMENT_ONLY = {"batch_norm", "group_norm", "instance_norm", "layer_norm"};

// One name a line, no trimming and no comments; an unreadable file is a warning and the defaults.
std::set<std::string> op_list(const char* variable, const std::set<std::string>& defaults) {
  const char* path = getenv(variable);
  if (!path) return defaults;
  std::ifstream file(path);
  if (!file) {
    TORCH_WARN(variable, ": cannot read ", path, ", the default list is used");
    return defaults;
  }
  std::set<std::string> names;
  for (std::string line; std::getline(file, line);) names.insert(line);
  return names;
}

bool is_castable(const at::Tensor& tensor) {
  return tensor.defined() && tensor.is_hpu() && tensor.is_floating_point() && tensor.scalar_type() != at::kDouble;
}

void cast_tensors(IValue& value, at::ScalarType type) {
  if (value.isTensor()) {
    if (is_castable(value.toTensor())) value = value.toTensor().to(type);
  } else if (value.isTensorList()) {
    c10::List<at::Tensor> list;
    for (const at::Tensor& tensor : value.toTensorList().vec()) list.push_back(is_castable(tensor) ? tensor.to(type) : tensor);
    value = list;
  }
}

void cast_arguments(const c10::OperatorHandle& op, Stack* stack, at::ScalarType type, size_t most) {
  c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
  const size_t count = op.schema().arguments().size();
  for (size_t i = 0; i < std::min(count, most); ++i) cast_tensors((*stack)[stack->size() - count + i], type);
  op.callBoxed(stack);
}

void to_lower(const c10::OperatorHandle& op, Stack* stack) {
  const bool first_only = FIRST_ARGUMENT_ONLY.count(op.schema().name().substr(6));
  cast_arguments(op, stack, at::autocast::get_autocast_dtype(DeviceType::HPU), first_only ? 1 : SIZE_MAX);
}

void to_fp32(const c10::OperatorHandle& op, Stack* stack) {
  cast_arguments(op, stack, at::kFloat, SIZE_MAX);
}

void promote(const c10::OperatorHandle& op, Stack* stack) {
  const size_t count = op.schema().arguments().size();
  bool wide = false;
  auto look = [&](const at::Tensor& tensor) { wide = wide || (is_castable(tensor) && tensor.scalar_type() == at::kFloat); };
  for (size_t i = stack->size() - count; i < stack->size(); ++i) {
    if ((*stack)[i].isTensor()) look((*stack)[i].toTensor());
    if ((*stack)[i].isTensorList()) for (const at::Tensor& tensor : (*stack)[i].toTensorList().vec()) look(tensor);
  }
  cast_arguments(op, stack, at::kFloat, wide ? SIZE_MAX : 0);
}

// The lists are read once, when this library is loaded; in-place and out forms are never registered.
struct AutocastKernels {
  torch::Library library{torch::Library::IMPL, "aten", DispatchKey::AutocastHPU, __FILE__, __LINE__};

  AutocastKernels() {
    const auto lower = op_list("PT_HPU_AUTOCAST_LOWER_PRECISION_OPS_LIST", DEFAULT_LOWER);
    const auto fp32 = op_list("PT_HPU_AUTOCAST_FP32_OPS_LIST", DEFAULT_FP32);
    for (const auto& operator_name : c10::Dispatcher::singleton().getAllOpNames()) {
      if (operator_name.name.rfind("aten::", 0) != 0) continue;
      const std::string name = operator_name.name.substr(6);
      auto op = c10::Dispatcher::singleton().findSchema(operator_name);
      if (!op || writes(op->schema())) continue;
      const std::string full = operator_name.overload_name.empty() ? name : name + "." + operator_name.overload_name;
      if (lower.count(name))
        library.impl(full.c_str(), torch::CppFunction::makeFromBoxedFunction<&to_lower>());
      else if (fp32.count(name))
        library.impl(full.c_str(), torch::CppFunction::makeFromBoxedFunction<&to_fp32>());
      else if (PROMOTE.count(name))
        library.impl(full.c_str(), torch::CppFunction::makeFromBoxedFunction<&promote>());
    }
  }

  static bool writes(const c10::FunctionSchema& schema) {
    return std::any_of(schema.arguments().begin(), schema.arguments().end(), [](const c10::Argument& argument) {
      return argument.alias_info() && argument.alias_info()->isWrite();
    });
  }
};
const AutocastKernels autocast_kernels;

TORCH_LIBRARY_IMPL(_, AutocastHPU, m) {
  m.fallback(torch::CppFunction::makeFallthrough());
}

} // namespace

// ---------------------------------------------------------------------------------------------- for Python

extern "C" {

void hpu_emulator_start(Callback listener, int is_lazy, int force_tanh_gelu) {
  callback = listener;
  lazy = is_lazy;
  tanh_gelu = force_tanh_gelu;
}

void hpu_emulator_refuse(const char* reason) { refusal = reason; }

void hpu_emulator_acquire(char* error, size_t size) {
  try {
    acquire_card();
  } catch (const c10::Error& caught) {
    snprintf(error, size, "%s", caught.what_without_backtrace());
  }
}

void hpu_emulator_mark_step() {
  std::lock_guard<std::recursive_mutex> lock(gate);
  counters.mark_steps += 1;
  flush("mark_step");
}

void hpu_emulator_set_warm(int value) { warm = value; }

void hpu_emulator_host_sync(const char* what) { host_sync(what); }

void hpu_emulator_make_late_copies() { make_late_copies(); }

void hpu_emulator_compiled_graph(int change) { in_compiled_graph += change; }

void hpu_emulator_see_graph(const char* text) {
  std::lock_guard<std::recursive_mutex> lock(gate);
  see_graph(std::hash<std::string>{}(text), text);
}

// The last operation since the call before whose result was never computed; empty if there is none.
void hpu_emulator_dropped(char* out, size_t size) {
  std::lock_guard<std::recursive_mutex> lock(gate);
  snprintf(out, size, "%s", dropped.c_str());
  dropped.clear();
}

uint64_t hpu_emulator_pending() { return pending_operations; }

void hpu_emulator_counters(uint64_t* out) { memcpy(out, &counters, sizeof counters); }

void hpu_emulator_reset_peak() { counters.max_bytes = counters.bytes; }

void hpu_emulator_seed(uint64_t seed) { default_generator().set_current_seed(seed); }

size_t hpu_emulator_rng_state(uint8_t* state, size_t size, int set) {
  auto& generator = default_generator();
  auto current = generator.get_state();
  const size_t bytes = current.numel();
  if (size < bytes) return bytes;
  if (set) {
    memcpy(current.mutable_data_ptr(), state, bytes);
    generator.set_state(current);
  } else {
    memcpy(state, current.const_data_ptr(), bytes);
  }
  return bytes;
}

} // extern "C"
