/* CUDA's runtime library for tests: the GPU's memory is the host's, and events are moments. */
#include <stdlib.h>
#include <string.h>
#include <time.h>

int cudaMalloc(void **out, size_t size) { *out = calloc(1, size); return *out == NULL ? 2 : 0; }
int cudaMemcpy(void *to, const void *from, size_t size, int kind) { (void)kind; memcpy(to, from, size); return 0; }
int cudaStreamCreate(void **out) { *out = malloc(1); return 0; }
int cudaStreamSynchronize(void *stream) { (void)stream; return 0; }
int cudaEventCreate(struct timespec **out) { *out = malloc(sizeof(struct timespec)); return 0; }
int cudaEventRecord(struct timespec *event, void *stream) { (void)stream; return clock_gettime(CLOCK_MONOTONIC, event); }
int cudaEventSynchronize(void *event) { (void)event; return 0; }
int cudaEventElapsedTime(float *ms, struct timespec *a, struct timespec *b) {
  *ms = 1e3f * (float)(b->tv_sec - a->tv_sec) + 1e-6f * (float)(b->tv_nsec - a->tv_nsec);
  return 0;
}
