/* XXH3-64, seed 0, default secret, of many runs of one buffer.
 *
 * Source: xxHash, doc/xxhash_spec.md (XXH3), release 0.8; the test compares it with the xxhash
 * package on every length class. */
#include "kernel.h"

#define PRIME32_1 0x9E3779B1U
#define PRIME32_2 0x85EBCA77U
#define PRIME32_3 0xC2B2AE3DU
#define PRIME64_1 0x9E3779B185EBCA87ULL
#define PRIME64_2 0xC2B2AE3D27D4EB4FULL
#define PRIME64_3 0x165667B19E3779F9ULL
#define PRIME64_4 0x85EBCA77C2B2AE63ULL
#define PRIME64_5 0x27D4EB2F165667C5ULL
#define PRIME_MX1 0x165667919E3779F9ULL
#define PRIME_MX2 0x9FB21C651E98DF25ULL

enum { STRIPE = 64, SECRET_SIZE = 192, STRIPES_A_BLOCK = (SECRET_SIZE - STRIPE) / 8 };

static const uint8_t SECRET[SECRET_SIZE] = {
    0xb8, 0xfe, 0x6c, 0x39, 0x23, 0xa4, 0x4b, 0xbe, 0x7c, 0x01, 0x81, 0x2c, 0xf7, 0x21, 0xad, 0x1c,
    0xde, 0xd4, 0x6d, 0xe9, 0x83, 0x90, 0x97, 0xdb, 0x72, 0x40, 0xa4, 0xa4, 0xb7, 0xb3, 0x67, 0x1f,
    0xcb, 0x79, 0xe6, 0x4e, 0xcc, 0xc0, 0xe5, 0x78, 0x82, 0x5a, 0xd0, 0x7d, 0xcc, 0xff, 0x72, 0x21,
    0xb8, 0x08, 0x46, 0x74, 0xf7, 0x43, 0x24, 0x8e, 0xe0, 0x35, 0x90, 0xe6, 0x81, 0x3a, 0x26, 0x4c,
    0x3c, 0x28, 0x52, 0xbb, 0x91, 0xc3, 0x00, 0xcb, 0x88, 0xd0, 0x65, 0x8b, 0x1b, 0x53, 0x2e, 0xa3,
    0x71, 0x64, 0x48, 0x97, 0xa2, 0x0d, 0xf9, 0x4e, 0x38, 0x19, 0xef, 0x46, 0xa9, 0xde, 0xac, 0xd8,
    0xa8, 0xfa, 0x76, 0x3f, 0xe3, 0x9c, 0x34, 0x3f, 0xf9, 0xdc, 0xbb, 0xc7, 0xc7, 0x0b, 0x4f, 0x1d,
    0x8a, 0x51, 0xe0, 0x4b, 0xcd, 0xb4, 0x59, 0x31, 0xc8, 0x9f, 0x7e, 0xc9, 0xd9, 0x78, 0x73, 0x64,
    0xea, 0xc5, 0xac, 0x83, 0x34, 0xd3, 0xeb, 0xc3, 0xc5, 0x81, 0xa0, 0xff, 0xfa, 0x13, 0x63, 0xeb,
    0x17, 0x0d, 0xdd, 0x51, 0xb7, 0xf0, 0xda, 0x49, 0xd3, 0x16, 0x55, 0x26, 0x29, 0xd4, 0x68, 0x9e,
    0x2b, 0x16, 0xbe, 0x58, 0x7d, 0x47, 0xa1, 0xfc, 0x8f, 0xf8, 0xb8, 0xd1, 0x7a, 0xd0, 0x31, 0xce,
    0x45, 0xcb, 0x3a, 0x8f, 0x95, 0x16, 0x04, 0x28, 0xaf, 0xd7, 0xfb, 0xca, 0xbb, 0x4b, 0x40, 0x7e,
};

static uint64_t fold_product(uint64_t a, uint64_t b) {
    unsigned __int128 product = (unsigned __int128)a * b;
    return (uint64_t)product ^ (uint64_t)(product >> 64);
}

static uint64_t avalanche(uint64_t h) {
    h ^= h >> 37;
    h *= PRIME_MX1;
    return h ^ h >> 32;
}

static uint64_t avalanche64(uint64_t h) {
    h ^= h >> 33;
    h *= PRIME64_2;
    h ^= h >> 29;
    h *= PRIME64_3;
    return h ^ h >> 32;
}

static uint64_t rotate(uint64_t value, int by) { return value << by | value >> (64 - by); }

static uint64_t hash_0_to_16(const uint8_t *p, size_t size) {
    if (size > 8) {
        uint64_t low = load64(p) ^ load64(SECRET + 24) ^ load64(SECRET + 32);
        uint64_t high = load64(p + size - 8) ^ load64(SECRET + 40) ^ load64(SECRET + 48);
        return avalanche(size + __builtin_bswap64(low) + high + fold_product(low, high));
    }
    if (size >= 4) {
        uint64_t both = load32(p + size - 4) | (uint64_t)load32(p) << 32;
        uint64_t h = both ^ load64(SECRET + 8) ^ load64(SECRET + 16);
        h ^= rotate(h, 49) ^ rotate(h, 24);
        h *= PRIME_MX2;
        h ^= (h >> 35) + size;
        h *= PRIME_MX2;
        return h ^ h >> 28;
    }
    if (size) {
        uint32_t all = (uint32_t)p[0] << 16 | (uint32_t)p[size >> 1] << 24 | p[size - 1] |
                       (uint32_t)size << 8;
        return avalanche64(all ^ (uint64_t)(load32(SECRET) ^ load32(SECRET + 4)));
    }
    return avalanche64(load64(SECRET + 56) ^ load64(SECRET + 64));
}

static uint64_t mix16(const uint8_t *p, const uint8_t *secret) {
    return fold_product(load64(p) ^ load64(secret), load64(p + 8) ^ load64(secret + 8));
}

static uint64_t hash_17_to_128(const uint8_t *p, size_t size) {
    uint64_t sum = size * PRIME64_1;
    for (size_t k = (size - 1) / 32 + 1; k-- > 0;) {
        sum += mix16(p + 16 * k, SECRET + 32 * k);
        sum += mix16(p + size - 16 * (k + 1), SECRET + 32 * k + 16);
    }
    return avalanche(sum);
}

static uint64_t hash_129_to_240(const uint8_t *p, size_t size) {
    uint64_t sum = size * PRIME64_1;
    for (size_t k = 0; k < 8; k++) sum += mix16(p + 16 * k, SECRET + 16 * k);
    sum = avalanche(sum);
    uint64_t more = mix16(p + size - 16, SECRET + 136 - 17);
    for (size_t k = 8; k < size / 16; k++) more += mix16(p + 16 * k, SECRET + 16 * (k - 8) + 3);
    return avalanche(sum + more);
}

static void accumulate(uint64_t *restrict acc, const uint8_t *p, const uint8_t *secret) {
    for (int k = 0; k < 8; k++) {
        uint64_t data = load64(p + 8 * k), key = data ^ load64(secret + 8 * k);
        acc[k ^ 1] += data;
        acc[k] += (uint64_t)(uint32_t)key * (key >> 32);
    }
}

static uint64_t hash_long(const uint8_t *p, size_t size) {
    uint64_t acc[8] = {PRIME32_3, PRIME64_1, PRIME64_2, PRIME64_3,
                       PRIME64_4, PRIME32_2, PRIME64_5, PRIME32_1};
    size_t block = (size_t)STRIPE * STRIPES_A_BLOCK, blocks = (size - 1) / block;
    for (size_t b = 0; b < blocks; b++) {
        for (size_t s = 0; s < STRIPES_A_BLOCK; s++)
            accumulate(acc, p + b * block + s * STRIPE, SECRET + 8 * s);
        for (int k = 0; k < 8; k++) {
            acc[k] ^= acc[k] >> 47 ^ load64(SECRET + SECRET_SIZE - STRIPE + 8 * k);
            acc[k] *= PRIME32_1;
        }
    }
    size_t stripes = (size - 1 - blocks * block) / STRIPE;
    for (size_t s = 0; s < stripes; s++)
        accumulate(acc, p + blocks * block + s * STRIPE, SECRET + 8 * s);
    accumulate(acc, p + size - STRIPE, SECRET + SECRET_SIZE - STRIPE - 7);
    uint64_t sum = size * PRIME64_1;
    for (int k = 0; k < 4; k++)
        sum += fold_product(acc[2 * k] ^ load64(SECRET + 11 + 16 * k),
                            acc[2 * k + 1] ^ load64(SECRET + 19 + 16 * k));
    return avalanche(sum);
}

static uint64_t hash(const uint8_t *p, size_t size) {
    if (size <= 16) return hash_0_to_16(p, size);
    if (size <= 128) return hash_17_to_128(p, size);
    if (size <= 240) return hash_129_to_240(p, size);
    return hash_long(p, size);
}

static int64_t without_zeros(const uint8_t *p, int64_t size) {
    int64_t left = size;
    while (left >= 8 && !load64(p + left - 8)) left -= 8;
    while (left && !p[left - 1]) left--;
    return left ? left : size;  /* nothing but zeros: all of it */
}

/* Hash of each run, without the zeros at its end. */
EXPORT int64_t lk_hash_runs(const uint8_t *data, int64_t length, const int64_t *start,
                            const int64_t *size, int64_t count, uint64_t *out) {
    for (int64_t i = 0; i < count; i++) {
        if (!inside(start[i], size[i], length)) return REFUSE;
        const uint8_t *p = data + start[i];
        out[i] = hash(p, (size_t)without_zeros(p, size[i]));
    }
    return 0;
}

/* VERSION of layerkit/native/__init__.py. */
EXPORT int64_t lk_version(void) { return 4; }
