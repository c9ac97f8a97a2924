/* A GPU that cannot compute, as a TensorFlow plug-in: its memory is the host's, its streams do nothing.
 *
 * With it TensorFlow decides where operations go as it does beside a real GPU, by the CUDA kernels that it was built with.
 * Running one of them would crash: only make sessions.
 */
#include <stdlib.h>
#include <string.h>

#include "tensorflow/c/experimental/stream_executor/stream_executor.h"

static void* allocated(uint64_t size) { return aligned_alloc(256, (size + 255) / 256 * 256); }

static void allocate(const SP_Device* device, uint64_t size, int64_t space, SP_DeviceMemoryBase* memory) {
  memory->struct_size = SP_DEVICE_MEMORY_BASE_STRUCT_SIZE;
  memory->opaque = allocated(size);
  memory->size = size;
}
static void deallocate(const SP_Device* device, SP_DeviceMemoryBase* memory) { free(memory->opaque); }
static void* host_allocate(const SP_Device* device, uint64_t size) { return allocated(size); }
static void host_deallocate(const SP_Device* device, void* memory) { free(memory); }
static TF_Bool no_statistics(const SP_Device* device, SP_AllocatorStats* statistics) { return 0; }
static TF_Bool memory_usage(const SP_Device* device, int64_t* unused, int64_t* total) {
  *unused = *total = 1 << 30;
  return 1;
}

/* Streams, events and timers are one byte each, so that they have an address. */
static void create_stream(const SP_Device* device, SP_Stream* stream, TF_Status* status) { *stream = malloc(1); }
static void destroy_stream(const SP_Device* device, SP_Stream stream) { free(stream); }
static void depend(const SP_Device* device, SP_Stream one, SP_Stream other, TF_Status* status) {}
static void stream_status(const SP_Device* device, SP_Stream stream, TF_Status* status) {}
static void create_event(const SP_Device* device, SP_Event* event, TF_Status* status) { *event = malloc(1); }
static void destroy_event(const SP_Device* device, SP_Event event) { free(event); }
static SE_EventStatus event_status(const SP_Device* device, SP_Event event) { return SE_EVENT_COMPLETE; }
static void record_event(const SP_Device* device, SP_Stream stream, SP_Event event, TF_Status* status) {}
static void wait_for_event(const SP_Device* device, SP_Stream stream, SP_Event event, TF_Status* status) {}
static void block_for_event(const SP_Device* device, SP_Event event, TF_Status* status) {}
static void create_timer(const SP_Device* device, SP_Timer* timer, TF_Status* status) { *timer = malloc(1); }
static void destroy_timer(const SP_Device* device, SP_Timer timer) { free(timer); }
static void use_timer(const SP_Device* device, SP_Stream stream, SP_Timer timer, TF_Status* status) {}
static uint64_t nanoseconds(SP_Timer timer) { return 1; }
static void block_until_done(const SP_Device* device, SP_Stream stream, TF_Status* status) {}
static void synchronize(const SP_Device* device, TF_Status* status) {}
static TF_Bool call_host(const SP_Device* device, SP_Stream stream, SE_StatusCallbackFn call, void* argument) {
  call(argument, NULL);
  return 1;
}

typedef SP_DeviceMemoryBase Memory;
static void to_host(const SP_Device* device, SP_Stream stream, void* to, const Memory* from, uint64_t size, TF_Status* status) {
  memcpy(to, from->opaque, size);
}
static void to_device(const SP_Device* device, SP_Stream stream, Memory* to, const void* from, uint64_t size, TF_Status* status) {
  memcpy(to->opaque, from, size);
}
static void within(const SP_Device* device, SP_Stream stream, Memory* to, const Memory* from, uint64_t size, TF_Status* status) {
  memcpy(to->opaque, from->opaque, size);
}
static void to_host_now(const SP_Device* device, void* to, const Memory* from, uint64_t size, TF_Status* status) {
  memcpy(to, from->opaque, size);
}
static void to_device_now(const SP_Device* device, Memory* to, const void* from, uint64_t size, TF_Status* status) {
  memcpy(to->opaque, from, size);
}
static void within_now(const SP_Device* device, Memory* to, const Memory* from, uint64_t size, TF_Status* status) {
  memcpy(to->opaque, from->opaque, size);
}
static void zero(const SP_Device* device, SP_Stream stream, Memory* memory, uint64_t size, TF_Status* status) {
  memset(memory->opaque, 0, size);
}
static void set(const SP_Device* device, SP_Stream stream, Memory* memory, uint8_t value, uint64_t size, TF_Status* status) {
  memset(memory->opaque, value, size);
}
static void set_words(const SP_Device* device, SP_Stream stream, Memory* memory, uint32_t value, uint64_t size, TF_Status* status) {
  for (uint64_t index = 0; index < size / 4; ++index) ((uint32_t*)memory->opaque)[index] = value;
}

static void device_count(const SP_Platform* platform, int* count, TF_Status* status) { *count = 1; }
static void create_device(const SP_Platform* platform, SE_CreateDeviceParams* parameters, TF_Status* status) {
  parameters->device->struct_size = SP_DEVICE_STRUCT_SIZE;
  parameters->device->ordinal = parameters->ordinal;
  parameters->device->hardware_name = "cannot compute";
}
static void destroy_device(const SP_Platform* platform, SP_Device* device) {}
static void create_device_functions(const SP_Platform* platform, SE_CreateDeviceFnsParams* parameters, TF_Status* status) {
  parameters->device_fns->struct_size = SP_DEVICE_FNS_STRUCT_SIZE;
}
static void destroy_device_functions(const SP_Platform* platform, SP_DeviceFns* functions) {}
static void create_timer_functions(const SP_Platform* platform, SP_TimerFns* functions, TF_Status* status) {
  functions->struct_size = SP_TIMER_FNS_STRUCT_SIZE;
  functions->nanoseconds = nanoseconds;
}
static void destroy_timer_functions(const SP_Platform* platform, SP_TimerFns* functions) {}
static void create_executor(const SP_Platform* platform, SE_CreateStreamExecutorParams* parameters, TF_Status* status) {
  *parameters->stream_executor = (SP_StreamExecutor){
      .struct_size = SP_STREAMEXECUTOR_STRUCT_SIZE,
      .allocate = allocate,
      .deallocate = deallocate,
      .host_memory_allocate = host_allocate,
      .host_memory_deallocate = host_deallocate,
      .get_allocator_stats = no_statistics,
      .device_memory_usage = memory_usage,
      .create_stream = create_stream,
      .destroy_stream = destroy_stream,
      .create_stream_dependency = depend,
      .get_stream_status = stream_status,
      .create_event = create_event,
      .destroy_event = destroy_event,
      .get_event_status = event_status,
      .record_event = record_event,
      .wait_for_event = wait_for_event,
      .create_timer = create_timer,
      .destroy_timer = destroy_timer,
      .start_timer = use_timer,
      .stop_timer = use_timer,
      .memcpy_dtoh = to_host,
      .memcpy_htod = to_device,
      .memcpy_dtod = within,
      .sync_memcpy_dtoh = to_host_now,
      .sync_memcpy_htod = to_device_now,
      .sync_memcpy_dtod = within_now,
      .block_host_for_event = block_for_event,
      .block_host_until_done = block_until_done,
      .synchronize_all_activity = synchronize,
      .mem_zero = zero,
      .memset = set,
      .memset32 = set_words,
      .host_callback = call_host,
  };
}
static void destroy_executor(const SP_Platform* platform, SP_StreamExecutor* executor) {}
static void destroy_platform(SP_Platform* platform) {}
static void destroy_platform_functions(SP_PlatformFns* functions) {}

void SE_InitPlugin(SE_PlatformRegistrationParams* parameters, TF_Status* status) {
  parameters->major_version = SE_MAJOR;
  parameters->minor_version = SE_MINOR;
  parameters->patch_version = SE_PATCH;
  parameters->platform->struct_size = SP_PLATFORM_STRUCT_SIZE;
  parameters->platform->name = "FAKE";
  parameters->platform->type = "GPU";
  parameters->platform->use_bfc_allocator = 1;
  *parameters->platform_fns = (SP_PlatformFns){
      .struct_size = SP_PLATFORM_FNS_STRUCT_SIZE,
      .get_device_count = device_count,
      .create_device = create_device,
      .destroy_device = destroy_device,
      .create_device_fns = create_device_functions,
      .destroy_device_fns = destroy_device_functions,
      .create_stream_executor = create_executor,
      .destroy_stream_executor = destroy_executor,
      .create_timer_fns = create_timer_functions,
      .destroy_timer_fns = destroy_timer_functions,
  };
  parameters->destroy_platform = destroy_platform;
  parameters->destroy_platform_fns = destroy_platform_functions;
}
