/* A libcuda (libcuda.so.1) that finds no device: with it vLLM's CUDA build loads, and every start of
   an engine ends where CUDA itself is initialised.

     PRETEND_CUDA     newest CUDA that the driver supports [13.0]
     PRETEND_TRACE    see trace.h */
#include <stdio.h>
#include <stdlib.h>

#include "trace.h"

enum { SUCCESS = 0, NO_DEVICE = 100 };

int cuInit(unsigned flags) {
    trace();
    return NO_DEVICE;
}

int cuGetProcAddress_v2(const char *name, void **function, int version, unsigned long long flags, int *status) {
    trace();
    *function = 0;
    return NO_DEVICE;
}

/* What torch, Triton and vLLM link against or look up. */
#define NONE(name) int name(void) { return NO_DEVICE; }
NONE(cuCtxGetCurrent)
NONE(cuCtxSetCurrent)
NONE(cuDeviceGet)
NONE(cuDeviceGetAttribute)
NONE(cuDevicePrimaryCtxGetState)
NONE(cuDevicePrimaryCtxRetain)
NONE(cuFuncGetAttribute)
NONE(cuFuncSetAttribute)
NONE(cuFuncSetCacheConfig)
NONE(cuLaunchCooperativeKernel)
NONE(cuLaunchKernel)
NONE(cuLinkAddData_v2)
NONE(cuLinkComplete)
NONE(cuLinkCreate_v2)
NONE(cuMemAddressFree)
NONE(cuMemAddressReserve)
NONE(cuMemCreate)
NONE(cuMemGetAllocationGranularity)
NONE(cuMemMap)
NONE(cuMemRelease)
NONE(cuMemSetAccess)
NONE(cuMemUnmap)
NONE(cuModuleGetFunction)
NONE(cuModuleLoad)
NONE(cuModuleLoadData)
NONE(cuModuleLoadDataEx)
NONE(cuModuleUnload)
NONE(cuOccupancyMaxActiveBlocksPerMultiprocessor)
NONE(cuPointerGetAttribute)
NONE(cuTensorMapEncodeTiled)

int cuDeviceGetCount(int *count) {
    *count = 0;
    return NO_DEVICE;
}

int cuDriverGetVersion(int *version) {
    const char *newest = getenv("PRETEND_CUDA");
    int major = 13, minor = 0;
    if (newest) sscanf(newest, "%d.%d", &major, &minor);
    *version = 1000 * major + 10 * minor;
    return SUCCESS;
}

int cuGetErrorString(int error, const char **text) {
    *text = "no CUDA-capable device is detected";
    return SUCCESS;
}
