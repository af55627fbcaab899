/* An NVML (libnvidia-ml.so.1) for machines without a GPU: it describes the GPUs that the environment
   names. It answers what vLLM, torch and this project ask through pynvml, and nothing computes.

     PRETEND_GPUS         number of GPUs; unset: no driver is loaded
     PRETEND_NAME         *  [NVIDIA H100 80GB HBM3]
     PRETEND_CAPABILITY   *  compute capability [9.0]
     PRETEND_GIB          *  memory in GiB [80]
     PRETEND_USED_GIB     *  memory that is taken [1]
     PRETEND_MIG          *  number of MIG slices; 0: MIG is off [0]
     PRETEND_UUIDS           separated by commas [GPU-00000000-0000-4000-8000-000000000000, ...]
     PRETEND_PROCESSES       processes that hold memory, each GPU:PID:GIB, separated by commas []
     PRETEND_LOST            numbers of GPUs that have fallen off the bus, separated by commas []
     PRETEND_DRIVER          version of the driver [580.65.06]
     PRETEND_CUDA            newest CUDA that the driver supports [13.0]
     PRETEND_INIT_ERROR      the nvmlReturn_t with which every initialisation fails

   *: one value for all GPUs, or one for each, separated by commas (the last one repeats).

   A handle is the number of the GPU plus one, and the number of the MIG slice plus one in the next
   byte. As with the real library, a UUID must be complete, and a GPU in MIG mode has no utilisation. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef int Result;
typedef void *Handle;
enum {
    SUCCESS = 0,
    INVALID_ARGUMENT = 2,
    NOT_SUPPORTED = 3,
    NOT_FOUND = 6,
    INSUFFICIENT_SIZE = 7,
    DRIVER_NOT_LOADED = 9,
    GPU_IS_LOST = 15
};
enum { MAX_SLICES = 7 };
typedef struct { unsigned long long total, free, used; } Memory;
typedef struct { unsigned version; unsigned long long total, reserved, free, used; } MemoryV2;
typedef struct { unsigned gpu, memory; } Utilization;
typedef struct { unsigned pid; unsigned long long used; unsigned gpu_instance, compute_instance; } Process;
typedef struct {
    char bus_id_legacy[16];
    unsigned domain, bus, device, pci_device_id, pci_subsystem_id;
    char bus_id[32];
} PciInfo;

/* ---- the environment ---- */

static const char *setting(const char *name, const char *otherwise) {
    const char *value = getenv(name);
    return value && *value ? value : otherwise;
}

/* The entry of a list separated by commas; with `repeat`, the last one where the list is shorter. */
static int entry(const char *list, int index, int repeat, char *buffer, unsigned size) {
    const char *end;
    for (; index > 0 && (end = strchr(list, ',')); index--) list = end + 1;
    if (index > 0 && !repeat) return 0;
    end = strchr(list, ',');
    snprintf(buffer, size, "%.*s", (int)(end ? end - list : (long)strlen(list)), list);
    return 1;
}

static double number_of(const char *name, int gpu, const char *otherwise) {
    char text[96];
    entry(setting(name, otherwise), gpu, 1, text, sizeof text);
    return atof(text);
}

static int num_gpus(void) { return atoi(setting("PRETEND_GPUS", "0")); }
static int gpu_of(Handle handle) { return (int)((long)handle & 0xff) - 1; }
static int slice_of(Handle handle) { return (int)((long)handle >> 8) - 1; }
static Handle handle_of(int gpu, int slice) { return (Handle)((long)(gpu + 1) | (long)(slice + 1) << 8); }
static int num_slices(int gpu) {
    int number = (int)number_of("PRETEND_MIG", gpu, "0");
    return number < MAX_SLICES ? number : MAX_SLICES;
}

static int is_lost(Handle handle) {
    char text[16];
    for (int i = 0; entry(setting("PRETEND_LOST", ""), i, 0, text, sizeof text); i++)
        if (*text && atoi(text) == gpu_of(handle)) return 1;
    return 0;
}
#define ALIVE(handle) if (is_lost(handle)) return GPU_IS_LOST

/* ---- the library and the system ---- */

Result nvmlInit_v2(void) {
    const char *error = getenv("PRETEND_INIT_ERROR");
    if (error && *error) return atoi(error);
    return getenv("PRETEND_GPUS") ? SUCCESS : DRIVER_NOT_LOADED;
}
Result nvmlInitWithFlags(unsigned flags) { return nvmlInit_v2(); }
Result nvmlInit(void) { return nvmlInit_v2(); }
Result nvmlShutdown(void) { return SUCCESS; }
const char *nvmlErrorString(Result result) { return result ? "error of the pretended NVML" : "Success"; }

Result nvmlSystemGetDriverVersion(char *buffer, unsigned size) {
    snprintf(buffer, size, "%s", setting("PRETEND_DRIVER", "580.65.06"));
    return SUCCESS;
}
Result nvmlSystemGetNVMLVersion(char *buffer, unsigned size) {
    snprintf(buffer, size, "13.%s", setting("PRETEND_DRIVER", "580.65.06"));
    return SUCCESS;
}
Result nvmlSystemGetCudaDriverVersion_v2(int *version) {
    int major = 0, minor = 0;
    sscanf(setting("PRETEND_CUDA", "13.0"), "%d.%d", &major, &minor);
    *version = 1000 * major + 10 * minor;
    return SUCCESS;
}
Result nvmlSystemGetCudaDriverVersion(int *version) { return nvmlSystemGetCudaDriverVersion_v2(version); }

/* ---- finding GPUs ---- */

Result nvmlDeviceGetCount_v2(unsigned *count) { *count = (unsigned)num_gpus(); return SUCCESS; }
Result nvmlDeviceGetCount(unsigned *count) { return nvmlDeviceGetCount_v2(count); }

Result nvmlDeviceGetHandleByIndex_v2(unsigned index, Handle *handle) {
    if ((int)index >= num_gpus()) return INVALID_ARGUMENT;
    *handle = handle_of((int)index, -1);
    ALIVE(*handle);
    return SUCCESS;
}
Result nvmlDeviceGetHandleByIndex(unsigned index, Handle *handle) { return nvmlDeviceGetHandleByIndex_v2(index, handle); }

Result nvmlDeviceGetUUID(Handle handle, char *buffer, unsigned size) {
    int gpu = gpu_of(handle), slice = slice_of(handle);
    ALIVE(handle);
    if (slice >= 0)
        snprintf(buffer, size, "MIG-%08d-%04d-5000-8000-000000000000", gpu, slice);
    else if (!entry(setting("PRETEND_UUIDS", ""), gpu, 0, buffer, size) || !*buffer)
        snprintf(buffer, size, "GPU-%08d-0000-4000-8000-000000000000", gpu);
    return SUCCESS;
}

Result nvmlDeviceGetHandleByUUID(const char *uuid, Handle *handle) {
    char known[96];
    for (int gpu = 0; gpu < num_gpus(); gpu++)
        for (int slice = -1; slice < num_slices(gpu); slice++) {
            *handle = handle_of(gpu, slice);
            if (nvmlDeviceGetUUID(*handle, known, sizeof known) == SUCCESS && !strcmp(known, uuid)) return SUCCESS;
        }
    return NOT_FOUND;
}

Result nvmlDeviceGetIndex(Handle handle, unsigned *index) {
    *index = (unsigned)(slice_of(handle) >= 0 ? slice_of(handle) : gpu_of(handle));
    return SUCCESS;
}
Result nvmlDeviceGetMinorNumber(Handle handle, unsigned *number) { *number = (unsigned)gpu_of(handle); return SUCCESS; }

Result nvmlDeviceGetPciInfo_v3(Handle handle, PciInfo *info) {
    memset(info, 0, sizeof *info);
    info->bus = (unsigned)gpu_of(handle) + 1;
    info->pci_device_id = 0x233010de;
    snprintf(info->bus_id, sizeof info->bus_id, "00000000:%02X:00.0", info->bus);
    snprintf(info->bus_id_legacy, sizeof info->bus_id_legacy, "0000:%02X:00.0", info->bus);
    return SUCCESS;
}

/* ---- MIG ---- */

Result nvmlDeviceGetMigMode(Handle handle, unsigned *current, unsigned *pending) {
    *current = *pending = num_slices(gpu_of(handle)) > 0;
    return SUCCESS;
}
Result nvmlDeviceGetMaxMigDeviceCount(Handle handle, unsigned *count) {
    *count = num_slices(gpu_of(handle)) ? MAX_SLICES : 0;
    return SUCCESS;
}
Result nvmlDeviceGetMigDeviceHandleByIndex(Handle handle, unsigned index, Handle *slice) {
    if ((int)index >= num_slices(gpu_of(handle))) return NOT_FOUND;
    *slice = handle_of(gpu_of(handle), (int)index);
    return SUCCESS;
}
Result nvmlDeviceIsMigDeviceHandle(Handle handle, unsigned *is) { *is = slice_of(handle) >= 0; return SUCCESS; }
Result nvmlDeviceGetDeviceHandleFromMigDeviceHandle(Handle slice, Handle *handle) {
    *handle = handle_of(gpu_of(slice), -1);
    return SUCCESS;
}
Result nvmlDeviceGetGpuInstanceId(Handle handle, unsigned *id) { *id = (unsigned)slice_of(handle) + 7; return SUCCESS; }
Result nvmlDeviceGetComputeInstanceId(Handle handle, unsigned *id) { *id = 0; return SUCCESS; }

/* ---- what a GPU is ---- */

Result nvmlDeviceGetName(Handle handle, char *buffer, unsigned size) {
    char name[96];
    ALIVE(handle);
    entry(setting("PRETEND_NAME", "NVIDIA H100 80GB HBM3"), gpu_of(handle), 1, name, sizeof name);
    snprintf(buffer, size, slice_of(handle) >= 0 ? "%s MIG slice" : "%s", name);
    return SUCCESS;
}
Result nvmlDeviceGetCudaComputeCapability(Handle handle, int *major, int *minor) {
    char text[96];
    ALIVE(handle);
    entry(setting("PRETEND_CAPABILITY", "9.0"), gpu_of(handle), 1, text, sizeof text);
    *major = *minor = 0;
    sscanf(text, "%d.%d", major, minor);
    return SUCCESS;
}
Result nvmlDeviceGetNumGpuCores(Handle handle, unsigned *cores) { *cores = 16896; return SUCCESS; }
Result nvmlDeviceGetNumaNodeId(Handle handle, unsigned *node) { *node = 0; return SUCCESS; }
Result nvmlDeviceGetP2PStatus(Handle one, Handle other, int kind, int *status) { *status = 0; return SUCCESS; }

/* ---- what a GPU does ---- */

Result nvmlDeviceGetMemoryInfo(Handle handle, Memory *memory) {
    int gpu = gpu_of(handle), parts = slice_of(handle) >= 0 ? num_slices(gpu) : 1;
    double gib = 1 << 30;
    ALIVE(handle);
    memory->total = (unsigned long long)(number_of("PRETEND_GIB", gpu, "80") * gib / parts);
    memory->used = (unsigned long long)(number_of("PRETEND_USED_GIB", gpu, "1") * gib / parts);
    memory->free = memory->total - memory->used;
    return SUCCESS;
}
Result nvmlDeviceGetMemoryInfo_v2(Handle handle, MemoryV2 *memory) {
    Memory one;
    Result result = nvmlDeviceGetMemoryInfo(handle, &one);
    if (result) return result;
    memory->total = one.total;
    memory->free = one.free;
    memory->used = one.used;
    memory->reserved = 0;
    return SUCCESS;
}
Result nvmlDeviceGetUtilizationRates(Handle handle, Utilization *utilization) {
    ALIVE(handle);
    if (num_slices(gpu_of(handle))) return NOT_SUPPORTED;
    utilization->gpu = 50;
    utilization->memory = 20;
    return SUCCESS;
}
Result nvmlDeviceGetTemperature(Handle handle, int sensor, unsigned *degrees) {
    ALIVE(handle);
    *degrees = 45;
    return SUCCESS;
}

Result nvmlDeviceGetComputeRunningProcesses_v3(Handle handle, unsigned *count, Process *processes) {
    char text[64];
    unsigned room = *count;
    ALIVE(handle);
    *count = 0;
    for (int i = 0; entry(setting("PRETEND_PROCESSES", ""), i, 0, text, sizeof text); i++) {
        int gpu, pid;
        double gib;
        if (sscanf(text, "%d:%d:%lf", &gpu, &pid, &gib) != 3 || gpu != gpu_of(handle)) continue;
        if (processes && *count < room) {
            Process one = {(unsigned)pid, (unsigned long long)(gib * (1 << 30)), 0xffffffff, 0xffffffff};
            processes[*count] = one;
        }
        ++*count;
    }
    return *count > room ? INSUFFICIENT_SIZE : SUCCESS;
}
Result nvmlDeviceGetComputeRunningProcesses_v2(Handle handle, unsigned *count, Process *processes) {
    return nvmlDeviceGetComputeRunningProcesses_v3(handle, count, processes);
}
Result nvmlDeviceGetGraphicsRunningProcesses_v3(Handle handle, unsigned *count, Process *processes) {
    *count = 0;
    return SUCCESS;
}
