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

/* --- fields that count through the labels of a zone -------------------------------------------- */

enum { MAX_COUNTERS = 64 };

/* A counter goes through the labels of a region, all (pattern -1) or those of one pattern. `first`
 * and `count` are a run of labels, or of `eligible`; `next` is the ordinal that NEW names. */
typedef struct {
    int64_t zone, pattern, first, count, next;
} Counter;

typedef struct {
    const int32_t *region_of, *pattern_of;
    int64_t label_count;
    int32_t *ordinal, *eligible; /* of labels that count by their pattern */
    Counter counter[MAX_COUNTERS];
} Zones;

/* The first label of region `zone` or behind it. */
static int64_t first_label(const Zones *zones, int64_t zone) {
    int64_t low = 0, high = zones->label_count;
    while (low < high) {
        int64_t middle = low + (high - low) / 2;
        if (zones->region_of[middle] < zone) low = middle + 1;
        else high = middle;
    }
    return low;
}

/* `rows` are zone and pattern of each counter; `ordinal` and `eligible` have label_count entries
 * and are for work: zones by pattern are distinct, so all of them fit. */
static int find_zones(Zones *zones, const int64_t *rows, int64_t counter_count) {
    int64_t used = 0;
    if (counter_count < 0 || counter_count > MAX_COUNTERS || zones->label_count > INT32_MAX)
        return 0;
    for (int64_t i = 1; i < zones->label_count; i++)
        if (zones->region_of[i] < zones->region_of[i - 1]) return 0;
    for (int64_t c = 0; c < counter_count; c++) {
        Counter *own = &zones->counter[c];
        own->zone = rows[2 * c];
        own->pattern = rows[2 * c + 1];
        own->next = 0;
        own->first = first_label(zones, own->zone);
        own->count = first_label(zones, own->zone + 1) - own->first;
        if (own->pattern < 0) continue;
        int64_t known = 0;
        while (known < c && (zones->counter[known].zone != own->zone ||
                             zones->counter[known].pattern != own->pattern))
            known++;
        if (known < c) {
            own->first = zones->counter[known].first;
            own->count = zones->counter[known].count;
            continue;
        }
        int64_t low = own->first, high = own->first + own->count;
        own->first = used;
        for (int64_t i = low; i < high; i++) {
            if (zones->pattern_of[i] != own->pattern) continue;
            zones->ordinal[i] = (int32_t)(used - own->first);
            zones->eligible[used++] = (int32_t)i;
        }
        own->count = used - own->first;
    }
    return 1;
}

/* The label's place in the counter's zone, -1 if it has none there. */
static int64_t ordinal_of(const Zones *zones, const Counter *counter, int64_t label) {
    if (label < 0 || zones->region_of[label] != counter->zone) return -1;
    if (counter->pattern < 0) return label - counter->first;
    return zones->pattern_of[label] == counter->pattern ? zones->ordinal[label] : -1;
}

/* What the fields of a form name; -1: nothing. `counter_of` says of each kind which counter it
 * shares, -1: none. PAST_ZONE where one counts past the end of its zone. */
EXPORT int64_t lk_name_fields(const int32_t *region_of, const int32_t *pattern_of,
                              int64_t label_count, int32_t *ordinal, int32_t *eligible,
                              const int64_t *rows, int64_t counter_count,
                              const int64_t *counter_of, int64_t kind_count, const uint16_t *kind,
                              const uint32_t *value, int64_t count, int64_t new_value,
                              const Lookup *lookup, int32_t *target) {
    Zones zones = {region_of, pattern_of, label_count, ordinal, eligible, {{0, 0, 0, 0, 0}}};
    if (!is_sound(lookup) || !find_zones(&zones, rows, counter_count)) return REFUSE;
    for (int64_t i = 0; i < count; i++) {
        if (kind[i] >= kind_count || counter_of[kind[i]] >= counter_count) return REFUSE;
        int64_t named = find_label(lookup, value[i]);
        if (named >= label_count) return REFUSE;
        if (counter_of[kind[i]] >= 0) {
            Counter *counter = &zones.counter[counter_of[kind[i]]];
            if (value[i] == new_value) {
                if (counter->next >= counter->count) return PAST_ZONE;
                named = counter->first + counter->next++;
                if (counter->pattern >= 0) named = eligible[named];
            } else {
                int64_t place = ordinal_of(&zones, counter, named);
                if (place >= counter->next) counter->next = place + 1;
            }
        }
        target[i] = (int32_t)named;
    }
    return 0;
}

/* What the fields of a binary name, -1: they are numbers; and which name the next label of their
 * zone. Field i points to base + (value << shift) of its kind; `origin` is that of the lookup's
 * ids. A kind that is not `zoned` says "none" by 0. */
EXPORT int64_t lk_find_targets(const int32_t *region_of, const int32_t *pattern_of,
                               int64_t label_count, int32_t *ordinal, int32_t *eligible,
                               const int64_t *rows, int64_t counter_count,
                               const int64_t *counter_of, int64_t kind_count, const uint16_t *kind,
                               const uint32_t *value, int64_t count, const int64_t *base,
                               const int64_t *shift, const uint8_t *zoned, const Lookup *lookup,
                               int64_t origin, int32_t *target, uint8_t *is_new) {
    Zones zones = {region_of, pattern_of, label_count, ordinal, eligible, {{0, 0, 0, 0, 0}}};
    if (!is_sound(lookup) || !find_zones(&zones, rows, counter_count)) return REFUSE;
    for (int64_t i = 0; i < count; i++) {
        int64_t own = kind[i], named = -1;
        if (own >= kind_count || counter_of[own] >= counter_count) return REFUSE;
        if (shift[own] < 0 || shift[own] > 31) return REFUSE;
        if (value[i] != UINT32_MAX && (value[i] || zoned[own])) {
            uint64_t place = (uint64_t)base[own] + ((uint64_t)value[i] << shift[own]);
            place -= (uint64_t)origin;
            if (place <= UINT32_MAX) named = find_label(lookup, (uint32_t)place);
            if (named >= label_count) return REFUSE;
        }
        target[i] = (int32_t)named;
        is_new[i] = 0;
        if (counter_of[own] < 0) continue;
        Counter *counter = &zones.counter[counter_of[own]];
        int64_t place = ordinal_of(&zones, counter, named);
        is_new[i] = place == counter->next;
        if (place >= counter->next) counter->next = place + 1;
    }
    return 0;
}

/* Positions of the words of one run that hold the address of a label, and the labels. Returns how
 * many there are; only the first `capacity` are written. */
EXPORT int64_t lk_find_words(const uint8_t *data, int64_t length, int64_t first, int64_t word_count,
                             const Lookup *lookup, int64_t origin, int64_t *pos, int32_t *label,
                             int64_t capacity) {
    int64_t found = 0;
    if (word_count < 0 || word_count > length / 8 || !inside(first, 8 * word_count, length))
        return REFUSE;
    if (!is_sound(lookup)) return REFUSE;
    for (int64_t i = 0; i < word_count; i++) {
        uint64_t place = load64(data + first + 8 * i) - (uint64_t)origin;
        int64_t named = place > UINT32_MAX ? -1 : find_label(lookup, (uint32_t)place);
        if (named < 0) continue;
        if (found < capacity) {
            pos[found] = first + 8 * i;
            label[found] = (int32_t)named;
        }
        found++;
    }
    return found;
}
