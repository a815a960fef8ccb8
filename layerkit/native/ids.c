/* Tables of ids, and what the fields of a form name. Twin of addressfree/decoder.py and model.py. */
#include "kernel.h"

/* One pass of a counting sort by 11 bits. */
static void sort_pass(const uint64_t *from, uint64_t *to, int64_t count, int shift) {
    int64_t place[1 << 11], sum = 0;
    for (int k = 0; k < 1 << 11; k++) place[k] = 0;
    for (int64_t i = 0; i < count; i++) place[from[i] >> shift & 0x7FF]++;
    for (int k = 0; k < 1 << 11; k++) {
        int64_t here = place[k];
        place[k] = sum;
        sum += here;
    }
    for (int64_t i = 0; i < count; i++) to[place[from[i] >> shift & 0x7FF]++] = from[i];
}

/* Distinct ids that are not 0, ascending, and the lowest label of each. `work` has 2 * count
 * entries. Returns how many. */
EXPORT int64_t lk_sort_ids(const int64_t *ids, int64_t count, uint64_t *work, uint32_t *sorted,
                           int32_t *label) {
    uint64_t *a = work, *b = work + count;
    int64_t used = 0, kept = 0;
    if (count > INT32_MAX) return REFUSE;
    for (int64_t i = 0; i < count; i++) {
        if (!ids[i]) continue;
        if (ids[i] < 0 || ids[i] > UINT32_MAX) return REFUSE;
        a[used++] = (uint64_t)ids[i] << 32 | (uint64_t)i;
    }
    sort_pass(a, b, used, 32);
    sort_pass(b, a, used, 43);
    sort_pass(a, b, used, 54);
    for (int64_t i = 0; i < used; i++) {
        uint32_t id = (uint32_t)(b[i] >> 32);
        if (kept && sorted[kept - 1] == id) continue;
        sorted[kept] = id;
        label[kept++] = (int32_t)(uint32_t)b[i];
    }
    return kept;
}

/* The table `first` of a Lookup, see kernel.h. */
EXPORT int64_t lk_index_ids(const uint32_t *ids, int64_t count, int64_t shift, uint32_t *first,
                            int64_t bucket_count) {
    int64_t bucket = 0;
    if (shift < 0 || shift > 31 || count > UINT32_MAX) return REFUSE;
    for (int64_t i = 0; i < count; i++) {
        int64_t own = (int64_t)(ids[i] >> shift);
        if (own >= bucket_count) return REFUSE;
        while (bucket <= own) first[bucket++] = (uint32_t)i;
    }
    while (bucket <= bucket_count) first[bucket++] = (uint32_t)count;
    return 0;
}

static int is_sound(const Lookup *lookup) {
    return lookup->shift >= 0 && lookup->shift <= 31 && lookup->count >= 0 &&
           lookup->bucket_count >= 0;
}

/* The label that each value names; -1: none. */
EXPORT int64_t lk_find_labels(const Lookup *lookup, const int64_t *value, int64_t count,
                              int64_t *label) {
    if (!is_sound(lookup)) return REFUSE;
    for (int64_t i = 0; i < count; i++)
        label[i] = value[i] < 0 || value[i] > UINT32_MAX
                       ? -1
                       : find_label(lookup, (uint32_t)value[i]);
    return 0;
}

/* What the NEW fields of one counter name. `member` says of each kind whether it counts here;
 * `ordinal` and `eligible` have label_count entries and are for work. */
EXPORT int64_t lk_resolve_new(const int64_t *region_of, const int64_t *pattern_of,
                              int64_t label_count, int64_t zone, int64_t zone_pattern,
                              const uint16_t *kind, const int64_t *value, int64_t *target,
                              int64_t count, const uint8_t *member, int64_t kind_count,
                              int64_t new_value, int32_t *ordinal, int32_t *eligible) {
    int64_t eligible_count = 0, news = 0, furthest = 0;
    if (label_count > INT32_MAX) return REFUSE;
    for (int64_t i = 0; i < count; i++)
        if (kind[i] >= kind_count || target[i] >= label_count) return REFUSE;
    for (int64_t i = 0; i < label_count; i++) {
        int counts = region_of[i] == zone && (zone_pattern < 0 || pattern_of[i] == zone_pattern);
        ordinal[i] = counts ? (int32_t)eligible_count : -1;
        if (counts) eligible[eligible_count++] = (int32_t)i;
    }
    for (int64_t i = 0; i < count; i++) {
        if (!member[kind[i]]) continue;
        if (value[i] == new_value) {
            if (news + furthest >= eligible_count) return PAST_ZONE;
            target[i] = eligible[news + furthest];
            news++;
        } else if (target[i] >= 0 && ordinal[target[i]] >= 0) {
            int64_t reach = ordinal[target[i]] + 1 - news;
            if (reach > furthest) furthest = reach;
        }
    }
    return 0;
}
