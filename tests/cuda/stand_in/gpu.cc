// A GPU that computes nothing, so that vLLM's CUDA build runs to its end on a machine without one.
//
// It stands in for the CUDA driver, the CUDA runtime and cuBLAS, and is preloaded (LD_PRELOAD) as
// libcuda.so.1. Memory is host memory, zero until something is copied there; copies are real; every
// kernel launch succeeds and does nothing. So all of an engine's Python, C++ and compiler work runs:
// configuration, memory profiling, torch.compile, Triton down to machine code, CUDA graphs as calls,
// the sampling loop, the processes. No kernel does, and no result or speed means anything.
//
// A process sees one H100, its own. The environment, shared with the pretended NVML:
//
//   PRETEND_NAME     [NVIDIA H100 80GB HBM3]
//   PRETEND_GIB      memory in GiB [80]
//   PRETEND_TRACE    see trace.h
#include <cuda.h>
#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <stdint.h>
#include <sys/mman.h>

#include <map>
#include <mutex>
#include <unordered_map>

#include "trace.h"

#define API extern "C" __attribute__((visibility("default")))
typedef cudaError_t Error;
typedef std::lock_guard<std::mutex> Lock;

namespace {

const int CUDA_VERSION_SHOWN = 13000;
const char *NO_TEXT = "error of the stand-in GPU";
std::mutex mutex;

const char *name() {
  const char *value = getenv("PRETEND_NAME");
  return value && *value ? value : "NVIDIA H100 80GB HBM3";
}

size_t total_bytes() {
  const char *value = getenv("PRETEND_GIB");
  return (size_t)(value && *value ? atof(value) : 80) << 30;
}

// An opaque handle that no other call has given.
template <class T>
void make_handle(T *handle) {
  static long next = 0x1000;
  *(long *)handle = __sync_add_and_fetch(&next, 16);
}

// Blocks of memory: start -> size.
typedef std::map<char *, size_t> Blocks;
Blocks device_blocks, host_blocks;
size_t used_bytes = (size_t)600 << 20;  // what a CUDA context takes

Blocks::iterator block_of(Blocks &blocks, const void *pointer) {
  auto block = blocks.upper_bound((char *)pointer);
  if (block == blocks.begin()) return blocks.end();
  --block;
  return (char *)pointer < block->first + block->second ? block : blocks.end();
}

bool holds(Blocks &blocks, const void *pointer) { return block_of(blocks, pointer) != blocks.end(); }

// Aligned to 2 MiB, as CUDA's own; pages that nobody touches take no memory.
char *take(Blocks &blocks, size_t size) {
  const size_t page = 4096, unit = 2 << 20;
  size = size ? (size + page - 1) & ~(page - 1) : page;
  const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
  char *mapped = (char *)mmap(0, size + unit, PROT_READ | PROT_WRITE, flags, -1, 0);
  if (mapped == MAP_FAILED) return 0;
  char *start = (char *)(((long)mapped + unit - 1) & ~(long)(unit - 1));
  if (start > mapped) munmap(mapped, start - mapped);
  munmap(start + size, mapped + unit - start);
  blocks[start] = size;
  return start;
}

size_t give_back(Blocks &blocks, void *pointer) {
  auto block = blocks.find((char *)pointer);
  if (block == blocks.end()) return 0;
  size_t size = block->second;
  munmap(block->first, size);
  blocks.erase(block);
  return size;
}

// Attributes of an H100, by their number in cudaDeviceAttr, which is that of CUdevice_attribute.
int attribute(int number) {
  switch (number) {
    case 1: case 2: case 3: return 1024;  // threads of a block; x and y of a block
    case 4: return 64;                    // z of a block
    case 5: return 2147483647;            // x of a grid
    case 6: case 7: return 65535;         // y and z of a grid
    case 8: return 49152;                 // shared memory of a block
    case 9: return 65536;                 // constant memory
    case 10: return 32;                   // threads of a warp
    case 11: return 2147483647;           // pitch
    case 12: return 65536;                // registers of a block
    case 13: return 1980000;              // clock, kHz
    case 14: return 512;                  // alignment of textures
    case 16: return 132;                  // multiprocessors
    case 19: return 1;                    // maps host memory
    case 31: return 1;                    // concurrent kernels
    case 36: return 2619000;              // clock of the memory, kHz
    case 37: return 5120;                 // width of the memory's bus, bits
    case 38: return 50 << 20;             // L2 cache
    case 39: return 2048;                 // threads of a multiprocessor
    case 41: return 1;                    // unified addresses
    case 75: return 9;                    // compute capability
    case 76: return 0;
    case 78: return 1;                    // priorities of streams
    case 81: return 233472;               // shared memory of a multiprocessor
    case 82: return 65536;                // registers of a multiprocessor
    case 83: return 1;                    // managed memory
    case 89: return 1;                    // concurrent managed access
    case 95: case 96: return 1;           // cooperative launch
    case 97: return 232448;               // shared memory of a block, on request
    case 106: return 32;                  // blocks of a multiprocessor
    case 108: return 134217728;           // persisting L2 cache
    case 111: return 1024;                // reserved shared memory of a block
    case 115: return 1;                   // memory pools
    case 120: return 1;                   // clusters
    default: return 0;
  }
}

}  // namespace

// ---- memory ----

API Error cudaMalloc(void **pointer, size_t size) {
  Lock lock(mutex);
  if (used_bytes + size > total_bytes()) return cudaErrorMemoryAllocation;
  *pointer = take(device_blocks, size);
  if (!*pointer) return cudaErrorMemoryAllocation;
  used_bytes += device_blocks[(char *)*pointer];
  return cudaSuccess;
}
API Error cudaFree(void *pointer) {
  Lock lock(mutex);
  used_bytes -= give_back(device_blocks, pointer);
  return cudaSuccess;
}
API Error cudaMallocAsync(void **pointer, size_t size, cudaStream_t) { return cudaMalloc(pointer, size); }
API Error cudaFreeAsync(void *pointer, cudaStream_t) { return cudaFree(pointer); }
API Error cudaHostAlloc(void **pointer, size_t size, unsigned) {
  Lock lock(mutex);
  *pointer = take(host_blocks, size);
  return *pointer ? cudaSuccess : cudaErrorMemoryAllocation;
}
API Error cudaFreeHost(void *pointer) {
  Lock lock(mutex);
  give_back(host_blocks, pointer);
  return cudaSuccess;
}
API Error cudaHostRegister(void *pointer, size_t size, unsigned) {
  Lock lock(mutex);
  host_blocks[(char *)pointer] = size;
  return cudaSuccess;
}
API Error cudaHostUnregister(void *pointer) {
  Lock lock(mutex);
  host_blocks.erase((char *)pointer);
  return cudaSuccess;
}
API Error cudaHostGetDevicePointer(void **device, void *host, unsigned) {
  *device = host;
  return cudaSuccess;
}
API Error cudaMemGetInfo(size_t *free, size_t *total) {
  *total = total_bytes();
  *free = *total - used_bytes;
  return cudaSuccess;
}
API Error cudaMemcpy(void *to, const void *from, size_t size, cudaMemcpyKind) {
  memmove(to, from, size);
  return cudaSuccess;
}
API Error cudaMemcpyAsync(void *to, const void *from, size_t size, cudaMemcpyKind kind, cudaStream_t) {
  return cudaMemcpy(to, from, size, kind);
}
API Error cudaMemcpyPeerAsync(void *to, int, const void *from, int, size_t size, cudaStream_t) {
  return cudaMemcpy(to, from, size, cudaMemcpyDefault);
}
API Error cudaMemcpyToSymbol(const void *, const void *, size_t, size_t, cudaMemcpyKind) { return cudaSuccess; }
API Error cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width,
                            size_t height, cudaMemcpyKind, cudaStream_t) {
  for (size_t row = 0; row < height; row++)
    memmove((char *)to + row * to_pitch, (const char *)from + row * from_pitch, width);
  return cudaSuccess;
}
API Error cudaMemset(void *to, int value, size_t size) {
  // Large blocks are zero already, as nothing was copied there; to touch them would take memory.
  if (value || size < ((size_t)64 << 20)) memset(to, value, size);
  return cudaSuccess;
}
API Error cudaMemsetAsync(void *to, int value, size_t size, cudaStream_t) { return cudaMemset(to, value, size); }
API Error cudaPointerGetAttributes(cudaPointerAttributes *attributes, const void *pointer) {
  Lock lock(mutex);
  memset(attributes, 0, sizeof *attributes);
  bool device = holds(device_blocks, pointer), host = holds(host_blocks, pointer);
  attributes->type = device ? cudaMemoryTypeDevice : host ? cudaMemoryTypeHost : cudaMemoryTypeUnregistered;
  if (!device && !host) attributes->device = -2;
  if (device || host) attributes->devicePointer = (void *)pointer;
  if (!device) attributes->hostPointer = (void *)pointer;
  return cudaSuccess;
}

// ---- the device ----

API Error cudaGetDeviceCount(int *count) {
  trace();
  *count = 1;
  return cudaSuccess;
}
API Error cudaGetDevice(int *device) {
  *device = 0;
  return cudaSuccess;
}
API Error cudaSetDevice(int device) {
  trace();
  return device ? cudaErrorInvalidDevice : cudaSuccess;
}
API Error cudaDriverGetVersion(int *version) {
  *version = CUDA_VERSION_SHOWN;
  return cudaSuccess;
}
API Error cudaRuntimeGetVersion(int *version) { return cudaDriverGetVersion(version); }
API Error cudaDeviceGetStreamPriorityRange(int *least, int *greatest) {
  *least = 0;
  *greatest = -5;
  return cudaSuccess;
}
API Error cudaDeviceCanAccessPeer(int *can, int, int) {
  *can = 0;
  return cudaSuccess;
}
API Error cudaDeviceGetPCIBusId(char *buffer, int size, int) {
  snprintf(buffer, size, "0000:01:00.0");
  return cudaSuccess;
}
API Error cudaDeviceGetAttribute(int *value, cudaDeviceAttr number, int) {
  *value = attribute(number);
  return cudaSuccess;
}
API Error cudaGetDeviceProperties(cudaDeviceProp *device, int) {
  memset(device, 0, sizeof *device);
  strncpy(device->name, name(), sizeof device->name - 1);
  device->major = attribute(75);
  device->minor = attribute(76);
  device->totalGlobalMem = total_bytes();
  device->multiProcessorCount = attribute(16);
  device->warpSize = attribute(10);
  device->maxThreadsPerBlock = attribute(1);
  device->maxThreadsDim[0] = device->maxThreadsDim[1] = attribute(2);
  device->maxThreadsDim[2] = attribute(4);
  device->maxGridSize[0] = attribute(5);
  device->maxGridSize[1] = device->maxGridSize[2] = attribute(6);
  device->maxThreadsPerMultiProcessor = attribute(39);
  device->maxBlocksPerMultiProcessor = attribute(106);
  device->sharedMemPerBlock = attribute(8);
  device->sharedMemPerBlockOptin = attribute(97);
  device->sharedMemPerMultiprocessor = attribute(81);
  device->reservedSharedMemPerBlock = attribute(111);
  device->regsPerBlock = attribute(12);
  device->regsPerMultiprocessor = attribute(82);
  device->l2CacheSize = attribute(38);
  device->memoryBusWidth = attribute(37);
  device->memPitch = attribute(11);
  device->textureAlignment = attribute(14);
  device->asyncEngineCount = 3;
  device->cooperativeLaunch = device->clusterLaunch = device->unifiedAddressing = 1;
  device->canMapHostMemory = device->concurrentKernels = device->managedMemory = 1;
  device->streamPrioritiesSupported = device->hostRegisterSupported = 1;
  return cudaSuccess;
}
API Error cudaFuncGetAttributes(cudaFuncAttributes *function, const void *) {
  memset(function, 0, sizeof *function);
  function->maxThreadsPerBlock = attribute(1);
  function->maxDynamicSharedSizeBytes = attribute(97);
  function->numRegs = 64;
  function->binaryVersion = function->ptxVersion = 10 * attribute(75) + attribute(76);
  return cudaSuccess;
}
API Error cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks, const void *, int, size_t, unsigned) {
  *blocks = 1;
  return cudaSuccess;
}
API const char *cudaGetErrorName(Error) { return "cudaErrorStandIn"; }
API const char *cudaGetErrorString(Error) { return NO_TEXT; }
API Error cudaGetLastError() { return cudaSuccess; }
API Error cudaPeekAtLastError() { return cudaSuccess; }

// ---- streams, graphs, events ----

static std::unordered_map<void *, unsigned long long> capturing;  // stream -> number of its capture
static unsigned long long num_captures;

API Error cudaStreamCreate(cudaStream_t *stream) {
  make_handle(stream);
  return cudaSuccess;
}
API Error cudaStreamCreateWithPriority(cudaStream_t *stream, unsigned, int) { return cudaStreamCreate(stream); }
API Error cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned) { return cudaStreamCreate(stream); }
API Error cudaStreamGetPriority(cudaStream_t, int *priority) {
  *priority = 0;
  return cudaSuccess;
}
API Error cudaStreamGetCaptureInfo(cudaStream_t stream, cudaStreamCaptureStatus *status, unsigned long long *id,
                                   cudaGraph_t *graph, const cudaGraphNode_t **nodes,
                                   const cudaGraphEdgeData **edges, size_t *num_nodes) {
  Lock lock(mutex);
  auto capture = capturing.find(stream);
  bool active = capture != capturing.end();
  *status = active ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  if (id) *id = active ? capture->second : 0;
  if (graph) *graph = (cudaGraph_t)16;
  if (nodes) *nodes = 0;
  if (edges) *edges = 0;
  if (num_nodes) *num_nodes = 0;
  return cudaSuccess;
}
API Error cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus *status) {
  return cudaStreamGetCaptureInfo(stream, status, 0, 0, 0, 0, 0);
}
API Error cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  Lock lock(mutex);
  capturing[stream] = ++num_captures;
  return cudaSuccess;
}
API Error cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph) {
  Lock lock(mutex);
  capturing.erase(stream);
  make_handle(graph);
  return cudaSuccess;
}
API Error cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode *) { return cudaSuccess; }
API Error cudaGraphGetNodes(cudaGraph_t, cudaGraphNode_t *, size_t *number) {
  *number = 1;
  return cudaSuccess;
}
API Error cudaGraphInstantiateWithFlags(cudaGraphExec_t *graph, cudaGraph_t, unsigned long long) {
  make_handle(graph);
  return cudaSuccess;
}
API Error cudaGraphNodeGetDependencies(cudaGraphNode_t, cudaGraphNode_t *, cudaGraphEdgeData *, size_t *number) {
  *number = 0;
  return cudaSuccess;
}
API Error cudaEventCreate(cudaEvent_t *event) {
  make_handle(event);
  return cudaSuccess;
}
API Error cudaEventCreateWithFlags(cudaEvent_t *event, unsigned) { return cudaEventCreate(event); }
API Error cudaEventElapsedTime(float *milliseconds, cudaEvent_t, cudaEvent_t) {
  *milliseconds = 0.01f;
  return cudaSuccess;
}
API Error cudaLaunchHostFunc(cudaStream_t, cudaHostFn_t call, void *data) {
  call(data);
  return cudaSuccess;
}
API Error cudaStreamAddCallback(cudaStream_t stream, cudaStreamCallback_t call, void *data, unsigned) {
  call(stream, cudaSuccess, data);
  return cudaSuccess;
}

// ---- kernels that a library registers when it is loaded ----

static void *registered[4];
static thread_local struct {
  dim3 grid, block;
  size_t shared;
  void *stream;
} launch;

API void **__cudaRegisterFatBinary(void *) { return registered; }
API unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, void *stream) {
  launch = {grid, block, shared, stream};
  return 0;
}
API Error __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *shared, void *stream) {
  *grid = launch.grid;
  *block = launch.block;
  *shared = launch.shared;
  *(void **)stream = launch.stream;
  return cudaSuccess;
}
API Error __cudaGetKernel(cudaKernel_t *kernel, const void *function) {
  *kernel = (cudaKernel_t)function;
  return cudaSuccess;
}
API Error cudaGetSymbolAddress(void **pointer, const void *symbol) {
  *pointer = (void *)symbol;
  return cudaSuccess;
}

// ---- the driver's interface, which Triton and some libraries use ----

API CUresult cuInit(unsigned) {
  trace();
  return CUDA_SUCCESS;
}
API CUresult cuDriverGetVersion(int *version) {
  *version = CUDA_VERSION_SHOWN;
  return CUDA_SUCCESS;
}
API CUresult cuDeviceGet(CUdevice *device, int) {
  *device = 0;
  return CUDA_SUCCESS;
}
API CUresult cuDeviceGetCount(int *count) {
  *count = 1;
  return CUDA_SUCCESS;
}
API CUresult cuDeviceGetName(char *buffer, int size, CUdevice) {
  snprintf(buffer, size, "%s", name());
  return CUDA_SUCCESS;
}
API CUresult cuDeviceTotalMem_v2(size_t *size, CUdevice) {
  *size = total_bytes();
  return CUDA_SUCCESS;
}
API CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute number, CUdevice) {
  *value = attribute(number);
  return CUDA_SUCCESS;
}
API CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice) {
  *context = (CUcontext)16;
  return CUDA_SUCCESS;
}
API CUresult cuDevicePrimaryCtxGetState(CUdevice, unsigned *flags, int *active) {
  *flags = 0;
  *active = 1;
  return CUDA_SUCCESS;
}
API CUresult cuCtxGetCurrent(CUcontext *context) { return cuDevicePrimaryCtxRetain(context, 0); }
API CUresult cuCtxGetLimit(size_t *value, CUlimit) {
  *value = 1 << 20;
  return CUDA_SUCCESS;
}
API CUresult cuGetErrorString(CUresult, const char **text) {
  *text = NO_TEXT;
  return CUDA_SUCCESS;
}
API CUresult cuGetErrorName(CUresult error, const char **text) { return cuGetErrorString(error, text); }
API CUresult cuModuleLoadData(CUmodule *module, const void *) {
  make_handle(module);
  return CUDA_SUCCESS;
}
API CUresult cuModuleLoadDataEx(CUmodule *module, const void *image, unsigned, CUjit_option *, void **) {
  return cuModuleLoadData(module, image);
}
API CUresult cuModuleLoad(CUmodule *module, const char *path) { return cuModuleLoadData(module, path); }
API CUresult cuModuleGetFunction(CUfunction *function, CUmodule, const char *) {
  make_handle(function);
  return CUDA_SUCCESS;
}
API CUresult cuFuncGetAttribute(int *value, CUfunction_attribute number, CUfunction) {
  bool threads = number == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK;
  *value = number == CU_FUNC_ATTRIBUTE_NUM_REGS ? 64 : threads ? attribute(1) : 0;
  return CUDA_SUCCESS;
}
API CUresult cuOccupancyMaxActiveClusters(int *number, CUfunction, const CUlaunchConfig *) {
  *number = 16;
  return CUDA_SUCCESS;
}
API CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int *number, CUfunction, int, size_t) {
  *number = 1;
  return CUDA_SUCCESS;
}
API CUresult cuPointerGetAttribute(void *value, CUpointer_attribute number, CUdeviceptr address) {
  Lock lock(mutex);
  bool device = holds(device_blocks, (void *)address), host = holds(host_blocks, (void *)address);
  if (!device && !host) return CUDA_ERROR_INVALID_VALUE;
  if (number == CU_POINTER_ATTRIBUTE_DEVICE_POINTER)
    *(CUdeviceptr *)value = address;
  else if (number == CU_POINTER_ATTRIBUTE_MEMORY_TYPE)
    *(unsigned *)value = device ? CU_MEMORYTYPE_DEVICE : CU_MEMORYTYPE_HOST;
  else
    *(unsigned *)value = 0;
  return CUDA_SUCCESS;
}
API CUresult cuGetProcAddress_v2(const char *wanted, void **function, int, cuuint64_t,
                                 CUdriverProcAddressQueryResult *status) {
  char second[128];
  snprintf(second, sizeof second, "%s_v2", wanted);
  *function = dlsym(RTLD_DEFAULT, wanted);
  if (!*function) *function = dlsym(RTLD_DEFAULT, second);
  if (status) *status = *function ? CU_GET_PROC_ADDRESS_SUCCESS : CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;
  return *function ? CUDA_SUCCESS : CUDA_ERROR_NOT_FOUND;
}
API Error cudaGetDriverEntryPointByVersion(const char *wanted, void **function, unsigned, unsigned long long,
                                           cudaDriverEntryPointQueryResult *status) {
  cuGetProcAddress_v2(wanted, function, 0, 0, 0);
  if (status) *status = *function ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
  return cudaSuccess;
}

// ---- cuBLAS ----

API int cublasCreate_v2(void **handle) {
  make_handle(handle);
  return 0;
}
API int cublasGetMathMode(void *, int *mode) { return *mode = 0; }
API int cublasGetPointerMode_v2(void *, int *mode) { return *mode = 0; }
API size_t cublasLtGetVersion() { return 130100; }
API int cublasLtMatmulDescCreate(void **description, int, int) { return cublasCreate_v2(description); }
API int cublasLtMatrixLayoutCreate(void **layout, int, uint64_t, uint64_t, int64_t) { return cublasCreate_v2(layout); }
API int cublasLtMatmulPreferenceCreate(void **preference) { return cublasCreate_v2(preference); }
API int cublasLtMatmulAlgoGetHeuristic(void *, void *, void *, void *, void *, void *, void *, int, void *algorithm,
                                       int *number) {
  memset(algorithm, 0, 96);  // one algorithm without workspace, which succeeds
  *number = 1;
  return 0;
}

// ---- everything else that torch and vLLM link against succeeds and does nothing ----

// clang-format off
#define NOTHING(name) asm(".globl " #name "\n.type " #name ",@function\n" #name ": xor %eax,%eax\nret\n");
NOTHING(__cudaInitModule) NOTHING(__cudaLaunchKernel) NOTHING(__cudaRegisterFatBinaryEnd)
NOTHING(__cudaRegisterFunction) NOTHING(__cudaRegisterVar) NOTHING(__cudaUnregisterFatBinary)
NOTHING(cudaDeviceEnablePeerAccess) NOTHING(cudaDeviceSynchronize) NOTHING(cudaEventDestroy)
NOTHING(cudaEventQuery) NOTHING(cudaEventRecord) NOTHING(cudaEventRecordWithFlags)
NOTHING(cudaEventSynchronize) NOTHING(cudaFuncSetAttribute) NOTHING(cudaGraphDebugDotPrint)
NOTHING(cudaGraphDestroy) NOTHING(cudaGraphExecDestroy) NOTHING(cudaGraphLaunch)
NOTHING(cudaLaunchCooperativeKernel) NOTHING(cudaLaunchKernel) NOTHING(cudaLaunchKernelExC)
NOTHING(cudaMemPoolSetAccess) NOTHING(cudaMemPoolSetAttribute) NOTHING(cudaMemPoolTrimTo)
NOTHING(cudaProfilerStart) NOTHING(cudaProfilerStop) NOTHING(cudaStreamDestroy)
NOTHING(cudaStreamQuery) NOTHING(cudaStreamSynchronize) NOTHING(cudaStreamWaitEvent)
NOTHING(cuCtxPushCurrent_v2) NOTHING(cuCtxSetCurrent) NOTHING(cuCtxSetLimit)
NOTHING(cuFuncSetAttribute) NOTHING(cuFuncSetCacheConfig) NOTHING(cuLaunchCooperativeKernel)
NOTHING(cuLaunchHostFunc) NOTHING(cuLaunchKernel) NOTHING(cuLaunchKernelEx)
NOTHING(cuLinkAddData_v2) NOTHING(cuLinkComplete) NOTHING(cuLinkCreate_v2)
NOTHING(cuMemAddressFree) NOTHING(cuMemAddressReserve) NOTHING(cuMemCreate)
NOTHING(cuMemGetAllocationGranularity) NOTHING(cuMemMap) NOTHING(cuMemRelease)
NOTHING(cuMemSetAccess) NOTHING(cuMemUnmap) NOTHING(cuMemcpyDtoDAsync_v2)
NOTHING(cuMemsetD32Async) NOTHING(cuModuleUnload) NOTHING(cuStreamWriteValue32_v2)
NOTHING(cuTensorMapEncodeTiled)
NOTHING(cublasDestroy_v2) NOTHING(cublasSetMathMode) NOTHING(cublasSetPointerMode_v2)
NOTHING(cublasSetStream_v2) NOTHING(cublasSetWorkspace_v2) NOTHING(cublasGemmEx)
NOTHING(cublasGemmStridedBatchedEx) NOTHING(cublasSgemmEx) NOTHING(cublasSgemm_v2)
NOTHING(cublasSgemmStridedBatched) NOTHING(cublasDgemm_v2) NOTHING(cublasDgemmStridedBatched)
NOTHING(cublasSgemv_v2) NOTHING(cublasDgemv_v2) NOTHING(cublasDotEx)
NOTHING(cublasSdot_v2) NOTHING(cublasDdot_v2) NOTHING(cublasHgemm)
NOTHING(cublasLtMatmul) NOTHING(cublasLtMatmulDescDestroy) NOTHING(cublasLtMatmulDescSetAttribute)
NOTHING(cublasLtMatmulPreferenceDestroy) NOTHING(cublasLtMatmulPreferenceSetAttribute)
NOTHING(cublasLtMatrixLayoutDestroy) NOTHING(cublasLtMatrixLayoutSetAttribute)
