// The key-value store for the rendezvous of the processes, and their process group.
#include "group.h"

#include <c10/util/Logging.h>
#include <dlfcn.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netdb.h>
#include <netinet/in.h>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>
#include <torch/csrc/distributed/c10d/comm.hpp>
#include <torch/headeronly/version.h>

#include <cstdlib>
#include <set>
#include <sstream>

namespace {

// This file constructs these classes with stand-ins for the headers of Gloo (gloo_headers/). The
// sizes below are those with the real headers, for torch 2.13.0. A program that is built with
// another version refuses to create a process group.
constexpr bool GLOO_LAYOUT_IS_KNOWN =
    TORCH_VERSION_MAJOR == 2 && TORCH_VERSION_MINOR == 13 && TORCH_VERSION_PATCH == 0;
static_assert(!GLOO_LAYOUT_IS_KNOWN ||
                  (sizeof(c10d::ProcessGroupGloo) == 488 && sizeof(c10d::ProcessGroupGloo::Options) == 184),
              "the stand-ins for the headers of Gloo give ProcessGroupGloo a wrong layout");

using Millis = std::chrono::milliseconds;

// How much longer than NCCL Gloo waits in a group with both. After a timeout, the watchdog of NCCL
// signals the other ranks (which poll every second), dumps the flight recorder (for at most 15 s)
// and ends the process. An earlier error of Gloo would end the process before the dump.
constexpr Millis DUMP_TIME{30'000};

std::string member(int64_t rank) { return "member/" + std::to_string(rank); }

std::vector<std::string> members(int64_t size) {
  std::vector<std::string> keys;
  for (int64_t rank = 0; rank < size; rank++) keys.push_back(member(rank));
  return keys;
}

// Returns a function of the plug-in, which stays loaded.
template <typename F>
F* of_plugin(const char* path, const char* name) {
  void* plugin = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  TORCH_CHECK(plugin, dlerror());
  auto* function = reinterpret_cast<F*>(dlsym(plugin, name));
  TORCH_CHECK(function, path, " has no function ", name);
  return function;
}

}  // namespace

extern "C" {

// Lists the interfaces of this machine that are up, each with its first address, which Gloo uses.
char* bpx_interfaces(char** out) {
  BPX_GUARD({
    ifaddrs* list = nullptr;
    TORCH_CHECK(getifaddrs(&list) == 0, strerror(errno));
    std::ostringstream text;
    std::set<std::string> seen;
    for (const ifaddrs* i = list; i; i = i->ifa_next) {
      if (!i->ifa_addr || !(i->ifa_flags & IFF_UP)) continue;
      const int family = i->ifa_addr->sa_family;
      if (family != AF_INET && family != AF_INET6) continue;
      char address[NI_MAXHOST];
      const socklen_t length = family == AF_INET ? sizeof(sockaddr_in) : sizeof(sockaddr_in6);
      if (getnameinfo(i->ifa_addr, length, address, sizeof address, nullptr, 0, NI_NUMERICHOST) == 0 &&
          seen.insert(i->ifa_name).second)
        text << i->ifa_name << ' ' << address << '\n';
    }
    freeifaddrs(list);
    *out = strdup(text.str().c_str());
  })
}

// Disables the log of libtorch on stderr, unless TORCH_CPP_LOG_LEVEL is set. Its lines contain
// backtraces, and failures are reported to the user as errors anyway.
void bpx_quiet(int errors_too) {
  if (std::getenv("TORCH_CPP_LOG_LEVEL")) {
    c10::initLogging();
  } else {
    FLAGS_caffe2_log_level = errors_too ? c10::GLOG_FATAL : c10::GLOG_ERROR;
  }
}

// Opens the store. Rank 0 runs the server on the listening socket `listener`; other ranks pass -1.
char* bpx_store_open(const char* host, uint16_t port, int listener, int64_t timeout_ms, const char* name,
                     BpxStore** out) {
  BPX_GUARD({
    c10d::TCPStoreOptions options;
    options.port = port;
    options.isServer = listener >= 0;
    options.waitWorkers = false;  // bpx_store_missing lists the missing ranks
    options.timeout = Millis(timeout_ms);
    if (listener >= 0) options.masterListenFd = listener;
    auto tcp = c10::make_intrusive<c10d::TCPStore>(host, options);
    *out = new BpxStore{c10::make_intrusive<c10d::PrefixStore>(name, std::move(tcp))};
  })
}

// Registers this rank with a text.
char* bpx_store_enter(BpxStore* store, int64_t rank, const char* text) {
  BPX_GUARD(store->store->set(member(rank), std::vector<uint8_t>(text, text + strlen(text))))
}

// Waits until every rank is registered; returns their texts, one per line.
char* bpx_store_members(BpxStore* store, int64_t size, int64_t timeout_ms, char** out) {
  BPX_GUARD({
    store->store->wait(members(size), Millis(timeout_ms));
    std::ostringstream texts;
    for (const auto& text : store->store->multiGet(members(size))) {
      texts.write(reinterpret_cast<const char*>(text.data()), text.size());
      texts << '\n';
    }
    *out = strdup(texts.str().c_str());
  })
}

// Returns the ranks that are not registered, separated by spaces.
char* bpx_store_missing(BpxStore* store, int64_t size, char** out) {
  BPX_GUARD({
    std::ostringstream ranks;
    for (int64_t rank = 0; rank < size; rank++)
      if (!store->store->check({member(rank)})) ranks << rank << ' ';
    *out = strdup(ranks.str().c_str());
  })
}

void bpx_store_free(BpxStore* store) { delete store; }

// Fails if this program is built with a version of torch that process groups do not support.
char* bpx_group_check_version() {
  BPX_GUARD(TORCH_CHECK(GLOO_LAYOUT_IS_KNOWN,
                        "cannot create a process group: this program is built with torch " TORCH_VERSION
                        ", and process groups need torch 2.13.0; run one process, or build with torch 2.13.0"))
}

// Connects every rank with every other rank. `interfaces` are names separated by commas. If there
// are none, `address` selects the interface of this process.
char* bpx_group_new(BpxStore* store, int rank, int size, int64_t timeout_ms, const char* interfaces,
                    const char* address, BpxGroup** out) {
  BPX_GUARD({
    auto group = std::make_unique<BpxGroup>();
    group->store = store->store;
    group->group = c10::make_intrusive<c10d::ProcessGroup>(group->store, rank, size);
    auto options = c10d::ProcessGroupGloo::Options::create(Millis(timeout_ms));
    std::istringstream names(interfaces);
    for (std::string name; std::getline(names, name, ',');)
      options->devices.push_back(c10d::ProcessGroupGloo::createDeviceForInterface(name));
    if (options->devices.empty())
      options->devices.push_back(c10d::ProcessGroupGloo::createDeviceForHostname(address));
    // Each device has its own I/O thread. These threads start collectives and compute sums.
    options->threads = 2 * static_cast<int>(options->devices.size());
    group->gloo = c10::make_intrusive<c10d::ProcessGroupGloo>(
        c10::make_intrusive<c10d::PrefixStore>("cpu", group->store), rank, size, options);
    group->group->setDefaultBackend(c10d::ProcessGroup::GLOO);
    group->group->setBackend(c10::kCPU, c10d::ProcessGroup::GLOO, group->gloo);
    group->group->setGroupName("backpack");
    *out = group.release();
  })
}

// Adds NCCL for tensors on the GPU `index`, from the plug-in at `path` (nccl_plugin.cpp). Connects
// the ranks at once, so that an error of NCCL is reported here and not by the first collective.
char* bpx_group_add_nccl(BpxGroup* group, const char* path, int64_t index, int64_t timeout_ms) {
  BPX_GUARD({
    const auto make = of_plugin<char*(const void*, int, int, int64_t, void*)>(path, "bpx_plugin_nccl_backend");
    const c10::intrusive_ptr<c10d::Store> store = c10::make_intrusive<c10d::PrefixStore>("cuda", group->store);
    auto& pg = group->group;
    if (char* error = make(&store, pg->getRank(), pg->getSize(), timeout_ms, &group->nccl)) return error;
    pg->setDefaultBackend(c10d::ProcessGroup::NCCL);
    pg->setBackend(c10::kCUDA, c10d::ProcessGroup::NCCL, group->nccl);
    group->gloo->setTimeout(Millis(timeout_ms) + DUMP_TIME);
    group->nccl->eagerConnectSingleDevice(c10::Device(c10::kCUDA, static_cast<c10::DeviceIndex>(index)));
  })
}

// Returns the version of NCCL that the plug-in at `path` uses.
char* bpx_nccl_version(const char* path, char** out) {
  BPX_GUARD({
    if (char* error = of_plugin<char*(char**)>(path, "bpx_plugin_nccl_version")(out)) return error;
  })
}

// Shuts down NCCL. Waits for queued work and for the other ranks to shut down as well.
char* bpx_group_shutdown(BpxGroup* group) { BPX_GUARD(if (group->nccl) group->nccl->shutdown()) }

char* bpx_group_free(BpxGroup* group) { BPX_GUARD(delete group) }

char* bpx_group_set_timeout(BpxGroup* group, int64_t timeout_ms) {
  BPX_GUARD({
    group->group->setTimeout(Millis(timeout_ms));
    if (group->nccl) group->gloo->setTimeout(Millis(timeout_ms) + DUMP_TIME);
  })
}

// Reduces in place. `op` is a value of c10d::ReduceOp.
char* bpx_group_all_reduce(BpxGroup* group, TensorPtr tensor, uint8_t op) {
  BPX_GUARD({
    at::NoGradGuard no_grad;
    std::vector<at::Tensor> tensors{tensor->detach()};
    c10d::AllreduceOptions options;
    options.reduceOp = static_cast<c10d::ReduceOp::RedOpType>(op);
    group->group->allreduce(tensors, options)->wait();
  })
}

char* bpx_group_broadcast(BpxGroup* group, TensorPtr const* tensors, size_t n, size_t buffer_bytes, int root) {
  BPX_GUARD({
    at::NoGradGuard no_grad;
    std::vector<at::Tensor> list;
    for (size_t i = 0; i < n; i++) list.push_back(tensors[i]->detach());
    c10d::broadcast_coalesced(group->group, list, buffer_bytes, root);
  })
}

// A barrier of the processes; it does not wait for GPU work.
char* bpx_group_barrier(BpxGroup* group) { BPX_GUARD(group->gloo->barrier()->wait()) }

// Fills `outputs`, one per rank, with the CPU tensors of all ranks, which have the same shape.
char* bpx_group_all_gather(BpxGroup* group, TensorPtr input, TensorPtr const* outputs) {
  BPX_GUARD({
    std::vector<at::Tensor> inputs{*input};
    std::vector<std::vector<at::Tensor>> lists(1);
    for (int rank = 0; rank < group->group->getSize(); rank++) lists[0].push_back(*outputs[rank]);
    group->gloo->allgather(lists, inputs)->wait();
  })
}
}
