/* What all parts of the kernel share. Spec: docs/decisions/0008-native-kernel.md.
 *
 * Rules of this folder: every array comes with its length; an index is checked before it is used,
 * whatever the caller promised; nothing allocates, nothing keeps state. A function that meets
 * anything it does not handle returns REFUSE before it has written what the caller keeps, and the
 * caller then takes the plain Python way, which is the reference. */
#ifndef LAYERKIT_KERNEL_H
#define LAYERKIT_KERNEL_H

#include <stddef.h>
#include <stdint.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the kernel reads little-endian fields as they lie"
#endif

#define EXPORT __attribute__((visibility("default")))
#define REFUSE (-1)
#define PAST_ZONE (-2)

/* Machines and kinds of site: the numbers of layerkit/formats/sites.py. */
enum { AMD64 = 0, ARM64 = 1 };
enum { REL32 = 0, BRANCH26 = 1, PAGE = 2 };

static inline uint32_t load32(const uint8_t *at) {
    uint32_t value;
    __builtin_memcpy(&value, at, 4);
    return value;
}

static inline uint64_t load64(const uint8_t *at) {
    uint64_t value;
    __builtin_memcpy(&value, at, 8);
    return value;
}

static inline void store32(uint8_t *at, uint32_t value) { __builtin_memcpy(at, &value, 4); }

static inline void store64(uint8_t *at, uint64_t value) { __builtin_memcpy(at, &value, 8); }

/* Whether `size` bytes at `pos` lie inside `length` bytes; no sum can overflow. */
static inline int inside(int64_t pos, int64_t size, int64_t length) {
    return pos >= 0 && size >= 0 && size <= length && pos <= length - size;
}

/* Ids in ascending order with the label of each. `first[b]` is the first id whose value shifted
 * right by `shift` is b or more; it has `bucket_count` + 1 entries. */
typedef struct {
    const uint32_t *ids;
    const int32_t *label;
    int64_t count;
    const uint32_t *first;
    int64_t bucket_count;
    int64_t shift;
} Lookup;

/* The label that a value names, -1 if none. Bisects inside a bucket, so that ids made to collide
 * cost a logarithm and no more. */
static inline int64_t find_label(const Lookup *lookup, uint32_t value) {
    int64_t bucket = (int64_t)(value >> lookup->shift);
    if (bucket >= lookup->bucket_count) return -1;
    int64_t low = lookup->first[bucket], high = lookup->first[bucket + 1];
    if (high > lookup->count) high = lookup->count;
    while (low < high) {
        int64_t middle = low + (high - low) / 2;
        uint32_t here = lookup->ids[middle];
        if (here == value) return lookup->label[middle];
        if (here < value) low = middle + 1;
        else high = middle;
    }
    return -1;
}

#endif
