/* Fields of a form: where patterns put them, and reading and writing many at once. Twin of
 * addressfree/model.py. */
#include "kernel.h"

/* A pattern's numbers; `fixed` and `repeated` fields are runs of one table of (offset, kind). */
typedef struct {
    int64_t start, stride, fixed_low, fixed_high, repeated_low, repeated_high;
} PatternRow;

/* How many steps of a repeated field fit. Sums of numbers below 2^62 cannot overflow. */
static int64_t steps(const PatternRow *row, int64_t offset, int64_t size) {
    int64_t room = size - row->start - offset - 4;
    if (room < 0 || row->stride <= 0) return 0;
    return room / row->stride + 1;
}

enum { NO_ORDER = -3, NO_ROOM = -4 };
#define SMALL ((int64_t)1 << 61)

static int is_small(const PatternRow *row, const int64_t *offset, int64_t field_count) {
    if (row->start < 0 || row->start >= SMALL || row->stride < 0 || row->stride >= SMALL) return 0;
    if (row->fixed_low < 0 || row->fixed_low > row->fixed_high) return 0;
    if (row->repeated_low < 0 || row->repeated_low > row->repeated_high) return 0;
    if (row->fixed_high > field_count || row->repeated_high > field_count) return 0;
    for (int64_t f = row->fixed_low; f < row->fixed_high; f++)
        if (offset[f] < 0 || offset[f] >= SMALL) return 0;
    for (int64_t f = row->repeated_low; f < row->repeated_high; f++)
        if (offset[f] < 0 || offset[f] >= SMALL) return 0;
    return 1;
}

/* How many fields there are; NO_ROOM when that is over `room`, which is counted as the reference
 * counts it: fixed fields count even where they do not fit. */
EXPORT int64_t lk_count_fields(const int64_t *at, const int64_t *size, const int32_t *pattern,
                               int64_t label_count, const PatternRow *rows, int64_t row_count,
                               const int64_t *offset, int64_t field_count, int64_t room) {
    int64_t total = 0;
    for (int64_t r = 0; r < row_count; r++)
        if (!is_small(&rows[r], offset, field_count)) return REFUSE;
    for (int64_t i = 0; i < label_count; i++) {
        if (at[i] < 0) continue;
        if (pattern[i] < 0 || pattern[i] >= row_count || size[i] < 0 || size[i] >= SMALL)
            return REFUSE;
        const PatternRow *row = &rows[pattern[i]];
        room -= row->fixed_high - row->fixed_low;
        for (int64_t f = row->fixed_low; f < row->fixed_high; f++) total += offset[f] + 4 <= size[i];
        for (int64_t f = row->repeated_low; f < row->repeated_high; f++) {
            int64_t count = steps(row, offset[f], size[i]);
            if (count > room) return NO_ROOM;
            room -= count;
            total += count;
        }
        if (room < 0) return NO_ROOM;
    }
    return total;
}

/* The fields label by label, in each the fixed ones as listed and then the repeated ones, at most
 * `capacity`. NO_ORDER when the labels are not in file order by themselves, or lie behind 2 GiB.
 * The rows are those that lk_count_fields took. */
EXPORT int64_t lk_expand_fields(const int64_t *at, const int64_t *size, const int32_t *pattern,
                                int64_t label_count, const PatternRow *rows, int64_t row_count,
                                const int64_t *offset, const uint16_t *kind, int64_t field_count,
                                int32_t *pos, uint16_t *pos_kind, int64_t capacity) {
    int64_t made = 0, end = 0;
    for (int64_t r = 0; r < row_count; r++)
        if (!is_small(&rows[r], offset, field_count)) return REFUSE;
    for (int64_t i = 0; i < label_count; i++) {
        if (at[i] < 0) continue;
        if (at[i] >= SMALL || pattern[i] < 0 || pattern[i] >= row_count) return REFUSE;
        if (size[i] < 0 || size[i] >= SMALL) return REFUSE;
        const PatternRow *row = &rows[pattern[i]];
        if (at[i] < end) return NO_ORDER;
        end = at[i] + size[i];
        if (end > (int64_t)1 << 31) return NO_ORDER;
        for (int64_t f = row->fixed_low; f < row->fixed_high; f++) {
            if (offset[f] + 4 > size[i]) continue;
            if (made == capacity) return NO_ORDER;
            pos[made] = (int32_t)(at[i] + offset[f]);
            pos_kind[made++] = kind[f];
        }
        if (row->stride <= 0) continue;
        for (int64_t base = row->start, any = 1; any && base < size[i]; base += row->stride) {
            any = 0;
            for (int64_t f = row->repeated_low; f < row->repeated_high; f++) {
                if (base + offset[f] + 4 > size[i]) continue;
                if (made == capacity) return NO_ORDER;
                pos[made] = (int32_t)(at[i] + base + offset[f]);
                pos_kind[made++] = kind[f];
                any = 1;
            }
        }
    }
    return made;
}

/* The 4-byte fields at `pos`. */
EXPORT int64_t lk_read_fields(const uint8_t *data, int64_t length, const int32_t *pos,
                              int64_t count, uint32_t *value) {
    for (int64_t i = 0; i < count; i++) {
        if (!inside(pos[i], 4, length)) return REFUSE;
        value[i] = load32(data + pos[i]);
    }
    return 0;
}

EXPORT int64_t lk_clear_fields(uint8_t *data, int64_t length, const int32_t *pos, int64_t count) {
    for (int64_t i = 0; i < count; i++)
        if (!inside(pos[i], 4, length)) return REFUSE;
    for (int64_t i = 0; i < count; i++) store32(data + pos[i], 0);
    return 0;
}

/* Copy the fields that name nothing. */
EXPORT int64_t lk_copy_numbers(const uint8_t *from, uint8_t *to, int64_t length,
                               const int32_t *pos, const int32_t *target, int64_t count) {
    for (int64_t i = 0; i < count; i++) {
        if (target[i] >= 0) continue;
        if (!inside(pos[i], 4, length)) return REFUSE;
        store32(to + pos[i], load32(from + pos[i]));
    }
    return 0;
}

/* What a field gets: the place of the label that it names, or its value where it names none. */
static inline uint32_t placed(uint32_t value, int32_t target, const int64_t *start, int64_t base,
                              int64_t shift) {
    if (target < 0) return value;
    uint64_t distance = (uint64_t)start[target] - (uint64_t)base;
    return (uint32_t)((int64_t)distance >> shift);
}

/* Put into each field what it gets. Refuses when fields overlap and differ there: what stands there
 * then depends on an order that only the reference has; it writes over all that was written here. */
EXPORT int64_t lk_place_fields(uint8_t *data, int64_t length, const int32_t *pos,
                               const uint16_t *kind, const uint32_t *value, const int32_t *target,
                               int64_t count, const int64_t *start, int64_t label_count,
                               const int64_t *base, const int64_t *shift, int64_t kind_count) {
    for (int64_t k = 0; k < kind_count; k++)
        if (shift[k] < 0 || shift[k] > 31) return REFUSE;
    for (int64_t i = 0; i < count; i++) {
        if (!inside(pos[i], 4, length)) return REFUSE;
        if (kind[i] >= kind_count || target[i] >= label_count) return REFUSE;
    }
    for (int64_t i = 0; i < count; i++)
        store32(data + pos[i], placed(value[i], target[i], start, base[kind[i]], shift[kind[i]]));
    for (int64_t i = 0; i < count; i++)
        if (load32(data + pos[i]) !=
            placed(value[i], target[i], start, base[kind[i]], shift[kind[i]]))
            return REFUSE;
    return 0;
}

/* Put into each field the id of the label that it names, if that label is `ready`. Refuses as
 * lk_place_fields does. */
EXPORT int64_t lk_write_ids(uint8_t *data, int64_t length, const int32_t *pos,
                            const int32_t *target, int64_t count, const int64_t *ids,
                            const uint8_t *ready, int64_t label_count) {
    for (int64_t i = 0; i < count; i++)
        if (!inside(pos[i], 4, length) || target[i] < 0 || target[i] >= label_count) return REFUSE;
    for (int64_t i = 0; i < count; i++)
        if (ready[target[i]]) store32(data + pos[i], (uint32_t)ids[target[i]]);
    for (int64_t i = 0; i < count; i++)
        if (ready[target[i]] && load32(data + pos[i]) != (uint32_t)ids[target[i]]) return REFUSE;
    return 0;
}

static int all_inside(const int64_t *pos, int64_t count, int64_t width, int64_t length) {
    for (int64_t i = 0; i < count; i++)
        if (!inside(pos[i], width, length)) return 0;
    return 1;
}

EXPORT int64_t lk_read_u32(const uint8_t *data, int64_t length, const int64_t *pos, int64_t count,
                           int64_t *out) {
    for (int64_t i = 0; i < count; i++) {
        if (!inside(pos[i], 4, length)) return REFUSE;
        out[i] = load32(data + pos[i]);
    }
    return 0;
}

EXPORT int64_t lk_read_u64(const uint8_t *data, int64_t length, const int64_t *pos, int64_t count,
                           int64_t *out) {
    for (int64_t i = 0; i < count; i++) {
        if (!inside(pos[i], 8, length)) return REFUSE;
        out[i] = (int64_t)load64(data + pos[i]);
    }
    return 0;
}

/* Byte by byte over all fields, as the reference does: fields may overlap in a form that somebody
 * made up. */
EXPORT int64_t lk_write(uint8_t *data, int64_t length, const int64_t *pos, int64_t count,
                        const int64_t *value, int64_t width) {
    if (width < 0 || width > 8 || !all_inside(pos, count, width, length)) return REFUSE;
    for (int64_t k = 0; k < width; k++)
        for (int64_t i = 0; i < count; i++)
            data[pos[i] + k] = (uint8_t)((uint64_t)value[i] >> (8 * k));
    return 0;
}

EXPORT int64_t lk_clear(uint8_t *data, int64_t length, const int64_t *pos, int64_t count,
                        int64_t width) {
    if (!all_inside(pos, count, width, length)) return REFUSE;
    for (int64_t i = 0; i < count; i++)
        for (int64_t k = 0; k < width; k++) data[pos[i] + k] = 0;
    return 0;
}

/* How many bytes of each run are not zero. */
EXPORT int64_t lk_count_nonzero(const uint8_t *data, int64_t length, const int64_t *start,
                                const int64_t *size, int64_t count, int64_t *out) {
    for (int64_t i = 0; i < count; i++) {
        if (!inside(start[i], size[i], length)) return REFUSE;
        int64_t found = 0;
        for (int64_t k = 0; k < size[i]; k++) found += data[start[i] + k] != 0;
        out[i] = found;
    }
    return 0;
}

/* The values of `count` LEB128 varints, which are all of `data`. Refuses what is not the shortest
 * form, over nine bytes, or of another count. */
EXPORT int64_t lk_read_varints(const uint8_t *data, int64_t length, int64_t count, int64_t *out) {
    int64_t at = 0;
    for (int64_t i = 0; i < count; i++) {
        uint64_t value = 0;
        int shift = 0;
        for (;; shift += 7) {
            if (at == length || shift == 63) return REFUSE;
            uint8_t byte = data[at++];
            value |= (uint64_t)(byte & 0x7F) << shift;
            if (byte >= 0x80) continue;
            if (!byte && shift) return REFUSE;
            break;
        }
        out[i] = (int64_t)value;
    }
    return at == length ? 0 : REFUSE;
}

/* LEB128 of values from 0 on; returns the bytes written, REFUSE if they are over `capacity`. */
EXPORT int64_t lk_write_varints(const int64_t *value, int64_t count, uint8_t *out,
                                int64_t capacity) {
    int64_t at = 0;
    for (int64_t i = 0; i < count; i++) {
        if (value[i] < 0) return REFUSE;
        uint64_t left = (uint64_t)value[i];
        do {
            if (at == capacity) return REFUSE;
            out[at++] = (uint8_t)((left & 0x7F) | (left > 0x7F ? 0x80 : 0));
            left >>= 7;
        } while (left);
    }
    return at;
}

/* Positions of the 8-byte words of one run whose high half is `tag`. Returns how many there are;
 * only the first `capacity` are written. */
EXPORT int64_t lk_find_tagged(const uint8_t *data, int64_t length, int64_t first, int64_t word_count,
                              int64_t tag, int64_t *out, int64_t capacity) {
    int64_t found = 0;
    if (word_count < 0 || word_count > length / 8 || !inside(first, 8 * word_count, length))
        return REFUSE;
    for (int64_t i = 0; i < word_count; i++) {
        if (load32(data + first + 8 * i + 4) != (uint32_t)tag) continue;
        if (found < capacity) out[found] = first + 8 * i;
        found++;
    }
    return found;
}

/* Where each pc-value table ends; see discover.table_ends. */
EXPORT int64_t lk_table_ends(const uint8_t *data, int64_t length, const int64_t *start,
                             int64_t count, int64_t *end) {
    for (int64_t i = 0; i < count; i++) {
        int64_t pos = start[i];
        int is_value = 1, fresh = 1, first = 1;
        if (pos < 0) return REFUSE;
        for (; pos < length; pos++) {
            uint8_t byte = data[pos];
            if (!byte && is_value && fresh && !first) break;
            fresh = byte < 0x80;
            if (fresh && !is_value) first = 0;
            if (fresh) is_value = !is_value;
        }
        end[i] = pos < length ? pos + 1 : length;
    }
    return 0;
}
