/* Sorting and membership of 64-bit numbers. Twin of formats/sets.py. */
#include "kernel.h"

/* Sort by as many rounds of 11 bits as the spread of the values needs; `work` is as long as
 * `values`. Returns how many distinct values now stand first, ascending. */
EXPORT int64_t lk_distinct(int64_t *values, int64_t count, int64_t *work) {
    int64_t place[1 << 11], *from = values, *to = work, kept = 0;
    if (count < 1) return 0;
    int64_t low = values[0], high = values[0];
    for (int64_t i = 1; i < count; i++) {
        if (values[i] < low) low = values[i];
        if (values[i] > high) high = values[i];
    }
    uint64_t base = (uint64_t)low, spread = (uint64_t)high - base;
    for (int shift = 0; shift < 64 && spread >> shift; shift += 11) {
        int64_t sum = 0;
        for (int k = 0; k < 1 << 11; k++) place[k] = 0;
        for (int64_t i = 0; i < count; i++) place[((uint64_t)from[i] - base) >> shift & 0x7FF]++;
        for (int k = 0; k < 1 << 11; k++) {
            int64_t here = place[k];
            place[k] = sum;
            sum += here;
        }
        for (int64_t i = 0; i < count; i++)
            to[place[((uint64_t)from[i] - base) >> shift & 0x7FF]++] = from[i];
        int64_t *other = from;
        from = to;
        to = other;
    }
    for (int64_t i = 0; i < count; i++)
        if (!i || from[i] != from[i - 1]) work[kept++] = from[i];
    for (int64_t i = 0; i < kept; i++) values[i] = work[i];
    return kept;
}

/* Whether each value is among `set`, ascending and distinct. `first` has bucket_count + 1 entries
 * and is for work; (largest - smallest) >> shift is below bucket_count. */
EXPORT int64_t lk_is_in(const int64_t *values, int64_t count, const int64_t *set,
                        int64_t set_count, int64_t shift, uint32_t *first, int64_t bucket_count,
                        uint8_t *out) {
    int64_t bucket = 0;
    if (shift < 0 || shift > 63 || set_count < 1 || set_count > UINT32_MAX) return REFUSE;
    uint64_t base = (uint64_t)set[0], spread = (uint64_t)set[set_count - 1] - base;
    if (bucket_count < 0 || spread >> shift >= (uint64_t)bucket_count) return REFUSE;
    for (int64_t i = 0; i < set_count; i++) {
        uint64_t own = ((uint64_t)set[i] - base) >> shift;
        if (own >= (uint64_t)bucket_count || (i && set[i] <= set[i - 1])) return REFUSE;
        while (bucket <= (int64_t)own) first[bucket++] = (uint32_t)i;
    }
    while (bucket <= bucket_count) first[bucket++] = (uint32_t)set_count;
    for (int64_t i = 0; i < count; i++) {
        uint64_t distance = (uint64_t)values[i] - base;
        out[i] = 0;
        if (values[i] < set[0] || distance > spread) continue;
        int64_t low = first[distance >> shift], high = first[(distance >> shift) + 1];
        while (low < high) {
            int64_t middle = low + (high - low) / 2;
            if (set[middle] < values[i]) low = middle + 1;
            else high = middle;
        }
        out[i] = low < set_count && set[low] == values[i];
    }
    return 0;
}
