/* Sites in code: candidates, what they name, and their fields. Twin of formats/sites.py. */
#include "kernel.h"

enum { MARGIN = 12 };

typedef struct {
    int64_t pos, next_pos;
    uint8_t kind, scale;
} Site;

/* Bytes of immediate behind the displacement, from the opcode before the ModRM byte at pos - 1. */
static int immediate_size(const uint8_t *t, int64_t pos) {
    uint8_t modrm = t[pos - 1], op = t[pos - 2], pre = t[pos - 3], pre2 = t[pos - 4];
    if (pre == 0x0F) {
        switch (op) {
        case 0xBA: case 0xA4: case 0xAC: case 0xC2: case 0xC6: case 0x70: return 1;
        default: return 0;
        }
    }
    switch (op) {
    case 0x80: case 0x83: case 0xC6: case 0xC0: case 0xC1: case 0x6B: return 1;
    case 0xF6: return modrm & 0x38 ? 0 : 1;
    case 0xF7: if (modrm & 0x38) return 0; break;
    case 0x81: case 0xC7: case 0x69: break;
    default: return 0;
    }
    return pre == 0x66 || (pre2 == 0x66 && (pre & 0xF0) == 0x40) ? 2 : 4;
}

/* Which pairs of bytes before a field make it a candidate: 1 a branch, 2 an operand. */
static inline int amd64_mark(uint8_t before2, uint8_t before1) {
    if ((before1 & 0xFE) == 0xE8 || (before2 == 0x0F && (before1 & 0xF0) == 0x80)) return 1;
    return (before1 & 0xC7) == 0x05 ? 2 : 0;
}

/* The next candidate at or after field position *at, which moves behind it; 0: no more. */
static int next_amd64(const uint8_t *t, int64_t size, int64_t *at, Site *site) {
    for (int64_t pos = *at; pos <= size - MARGIN; pos++) {
        int mark = amd64_mark(t[pos - 2], t[pos - 1]);
        if (!mark) continue;
        site->pos = pos;
        site->next_pos = pos + 4 + (mark == 1 ? 0 : immediate_size(t, pos));
        site->kind = REL32;
        site->scale = 0;
        *at = pos + 1;
        return 1;
    }
    return 0;
}

static int next_arm64(const uint8_t *t, int64_t size, int64_t *at, Site *site) {
    int64_t words = size / 4;
    if (words < 2) return 0;
    for (int64_t i = *at; i < words; i++) {
        uint32_t w = load32(t + 4 * i);
        site->pos = site->next_pos = 4 * i;
        site->scale = 0;
        if ((w & 0x7C000000) == 0x14000000) {
            site->kind = BRANCH26;
        } else if ((w & 0x9F000000) == 0x90000000 && i + 1 < words) {
            uint32_t second = load32(t + 4 * i + 4);
            int add = (second & 0xFFC00000) == 0x91000000;
            if ((!add && (second & 0x3B000000) != 0x39000000) || (second >> 5 & 31) != (w & 31))
                continue;
            site->kind = PAGE;
            if (!add) {
                site->scale = (uint8_t)(second >> 30);
                if ((second & 0x04800000) == 0x04800000 && !site->scale) site->scale = 4;
            }
        } else {
            continue;
        }
        *at = i + 1;
        return 1;
    }
    return 0;
}

static inline int next_site(const uint8_t *t, int64_t size, int64_t machine, int64_t *at,
                            Site *site) {
    return machine == ARM64 ? next_arm64(t, size, at, site) : next_amd64(t, size, at, site);
}

/* The first place to look at: a field has four bytes before it (amd64), a word none. */
static inline int64_t first_place(int64_t machine) { return machine == ARM64 ? 0 : 4; }

static inline int64_t field_size(uint8_t kind) { return kind == PAGE ? 8 : 4; }

/* The field as an unsigned number. */
static inline uint64_t read_value(const uint8_t *at, uint8_t kind) {
    uint32_t word = load32(at);
    if (kind == REL32) return word;
    if (kind == BRANCH26) return word & 0x3FFFFFF;
    uint64_t page = (word >> 29 & 3) | (word >> 5 & 0x7FFFF) << 2;
    return page << 12 | (load32(at + 4) >> 10 & 0xFFF);
}

static inline void write_value(uint8_t *at, uint8_t kind, uint64_t value) {
    if (kind == REL32) {
        store32(at, (uint32_t)value);
    } else if (kind == BRANCH26) {
        store32(at, (load32(at) & ~0x3FFFFFFU) | (uint32_t)(value & 0x3FFFFFF));
    } else {
        uint32_t high = (uint32_t)(value >> 12);
        store32(at, (load32(at) & ~0x60FFFFE0U) | (high & 3) << 29 | (high >> 2 & 0x7FFFF) << 5);
        store32(at + 4, (load32(at + 4) & ~0x003FFC00U) | (uint32_t)(value & 0xFFF) << 10);
    }
}

/* The field's value that points to `target`; `addr` is the code's. All of it modulo 2^64. */
static inline uint64_t value_of_target(const Site *site, uint64_t addr, uint64_t target) {
    if (site->kind == REL32) return (uint32_t)(target - (uint64_t)site->next_pos - addr);
    uint64_t place = (uint64_t)site->pos + addr;
    if (site->kind == BRANCH26) return (uint64_t)((int64_t)(target - place) >> 2) & 0x3FFFFFF;
    uint64_t high = (uint64_t)(((int64_t)target >> 12) - ((int64_t)place >> 12)) & 0x1FFFFF;
    return high << 12 | (target & 0xFFF) >> (site->scale & 31);
}

static inline uint64_t target_of_value(const Site *site, uint64_t addr, uint64_t value) {
    if (site->kind == REL32)
        return (uint64_t)site->next_pos + addr + (uint64_t)(int64_t)(int32_t)(uint32_t)value;
    uint64_t place = (uint64_t)site->pos + addr;
    if (site->kind == BRANCH26) return place + 4 * ((value ^ 0x2000000) - 0x2000000);
    uint64_t high = ((value >> 12) ^ 0x100000) - 0x100000;
    uint64_t page = (uint64_t)((int64_t)place >> 12) + high;
    return (page << 12) + ((value & 0xFFF) << (site->scale & 31));
}

/* All candidates. Returns how many there are; only the first `capacity` are written. */
EXPORT int64_t lk_find_candidates(const uint8_t *text, int64_t size, int64_t machine, int64_t *pos,
                                  int64_t *next_pos, uint8_t *kind, uint8_t *scale,
                                  int64_t capacity) {
    int64_t found = 0, at = first_place(machine);
    Site site;
    if (size < 0) return REFUSE;
    for (; next_site(text, size, machine, &at, &site); found++) {
        if (found >= capacity) continue;
        pos[found] = site.pos;
        next_pos[found] = site.next_pos;
        kind[found] = site.kind;
        scale[found] = site.scale;
    }
    return found;
}

/* The next candidate whose field holds an id and that is no exception. `skip` are ascending file
 * positions, *passed of them behind us. */
static int next_hit(const uint8_t *body, int64_t offset, int64_t size, int64_t machine,
                    const Lookup *far, const Lookup *near, const int64_t *skip, int64_t skip_count,
                    int64_t *passed, int64_t *at, Site *site, int64_t *label) {
    while (next_site(body + offset, size, machine, at, site)) {
        uint64_t value = read_value(body + offset + site->pos, site->kind);
        *label = value > UINT32_MAX
                     ? -1
                     : find_label(site->kind == BRANCH26 ? near : far, (uint32_t)value);
        if (*label < 0) continue;
        while (*passed < skip_count && skip[*passed] < offset + site->pos) ++*passed;
        if (*passed < skip_count && skip[*passed] == offset + site->pos) continue;
        return 1;
    }
    return 0;
}

/* Sites of the form's code at `offset` and the label that each names. Returns how many there are;
 * only the first `capacity` are written. */
EXPORT int64_t lk_text_hits(const uint8_t *body, int64_t length, int64_t offset, int64_t size,
                            int64_t machine, const Lookup *far, const Lookup *near,
                            const int64_t *skip, int64_t skip_count, int64_t *pos,
                            int64_t *next_pos, uint8_t *kind, uint8_t *scale, int64_t *label,
                            int64_t capacity) {
    int64_t found = 0, at = first_place(machine), passed = 0, named;
    Site site;
    if (!inside(offset, size, length)) return REFUSE;
    for (; next_hit(body, offset, size, machine, far, near, skip, skip_count, &passed, &at, &site,
                    &named);
         found++) {
        if (found >= capacity) continue;
        pos[found] = site.pos;
        next_pos[found] = site.next_pos;
        kind[found] = site.kind;
        scale[found] = site.scale;
        label[found] = named;
    }
    return found;
}

/* Find the sites of the form's code and put the distances into `out`, in one pass. Refuses when
 * fields overlap: what stands there then depends on an order that only the reference has; it writes
 * over all that was written here. */
EXPORT int64_t lk_restore_sites(const uint8_t *body, uint8_t *out, int64_t length, int64_t offset,
                                int64_t size, int64_t machine, const Lookup *far,
                                const Lookup *near, const int64_t *skip, int64_t skip_count,
                                int64_t addr, const int64_t *label_addr, int64_t label_count) {
    int64_t at = first_place(machine), passed = 0, named, end = 0;
    Site site;
    if (!inside(offset, size, length)) return REFUSE;
    while (next_hit(body, offset, size, machine, far, near, skip, skip_count, &passed, &at, &site,
                    &named)) {
        if (site.pos < end || named >= label_count) return REFUSE;
        end = site.pos + field_size(site.kind);
        uint64_t target = (uint64_t)label_addr[named];
        write_value(out + offset + site.pos, site.kind,
                    value_of_target(&site, (uint64_t)addr, target));
    }
    return 0;
}

/* Which candidates of a binary's code leave their function, and where they lead. */
typedef struct {
    const Lookup *starts;
    int64_t origin; /* of the lookup's ids */
    const int64_t *label_addr;
    const int32_t *head; /* the label that begins the object of each */
    int64_t label_count, addr;
    int64_t own; /* the label in which the last candidate stands */
} Leaving;

/* The next candidate that points to a label, and whether that is of another object than its own
 * place; -1 at the end, -2 for a candidate or a label that stands in no object. */
static int next_leaving(const uint8_t *text, int64_t size, int64_t machine, Leaving *state,
                        int64_t *at, Site *site, int64_t *label) {
    while (next_site(text, size, machine, at, site)) {
        uint64_t value = read_value(text + site->pos, site->kind);
        uint64_t place = target_of_value(site, (uint64_t)state->addr, value);
        place -= (uint64_t)state->origin;
        *label = place > UINT32_MAX ? -1 : find_label(state->starts, (uint32_t)place);
        if (*label < 0) continue;
        int64_t here = site->pos + state->addr;
        while (state->own + 1 < state->label_count && state->label_addr[state->own + 1] <= here)
            state->own++;
        if (state->own < 0 || *label >= state->label_count) return -2;
        return state->head[*label] != state->head[state->own];
    }
    return -1;
}

/* File positions of the sites that leave their function. Returns how many there are; only the
 * first `capacity` are written. */
EXPORT int64_t lk_leaving_sites(const uint8_t *data, int64_t length, int64_t offset, int64_t size,
                                int64_t machine, const Lookup *starts, int64_t origin,
                                int64_t addr, const int64_t *label_addr, const int32_t *head,
                                int64_t label_count, int64_t *pos, int64_t capacity) {
    Leaving state = {starts, origin, label_addr, head, label_count, addr, -1};
    int64_t found = 0, at = first_place(machine), label;
    Site site;
    if (!inside(offset, size, length) || starts->shift < 0 || starts->shift > 31) return REFUSE;
    for (;;) {
        int leaves = next_leaving(data + offset, size, machine, &state, &at, &site, &label);
        if (leaves < 0) return leaves == -1 ? found : REFUSE;
        if (!leaves) continue;
        if (found < capacity) pos[found] = offset + site.pos;
        found++;
    }
}

static uint64_t branch_value(uint64_t id) {
    uint64_t value = (id ^ id >> 26) & 0x3FFFFFF;
    int is_near = ((value + (1 << 19)) & 0x3FFFFFF) < 1 << 20;
    return is_near && id ? value ^ 0x1000000 : value;
}

/* Put ids into the sites of `body` that leave their function in `data`; at the `turned` file
 * positions, ascending, into those that do not. Refuses when fields overlap: the reference then
 * writes over all that was written here. */
EXPORT int64_t lk_rewrite_sites(const uint8_t *data, uint8_t *body, int64_t length, int64_t offset,
                                int64_t size, int64_t machine, const Lookup *starts, int64_t origin,
                                int64_t addr, const int64_t *label_addr, const int32_t *head,
                                int64_t label_count, const int64_t *ids, const int64_t *turned,
                                int64_t turned_count) {
    Leaving state = {starts, origin, label_addr, head, label_count, addr, -1};
    int64_t at = first_place(machine), label, passed = 0, end = 0;
    Site site;
    if (!inside(offset, size, length) || starts->shift < 0 || starts->shift > 31) return REFUSE;
    for (;;) {
        int leaves = next_leaving(data + offset, size, machine, &state, &at, &site, &label);
        if (leaves < 0) return leaves == -1 ? 0 : REFUSE;
        while (passed < turned_count && turned[passed] < offset + site.pos) passed++;
        if (passed < turned_count && turned[passed] == offset + site.pos) leaves = !leaves;
        if (!leaves) continue;
        if (site.pos < end || ids[label] < 0) return REFUSE;
        end = site.pos + field_size(site.kind);
        uint64_t id = (uint64_t)ids[label];
        write_value(body + offset + site.pos, site.kind,
                    site.kind == BRANCH26 ? branch_value(id) : id);
    }
}

/* Whether every field lies inside and, if asked for, none overlaps the one before it. */
static int are_sound(int64_t length, int64_t offset, const int64_t *pos, const uint8_t *kind,
                     int64_t count, int apart) {
    int64_t end = 0;
    if (offset < 0 || offset > length) return 0;
    for (int64_t i = 0; i < count; i++) {
        if (kind[i] > PAGE || !inside(pos[i], field_size(kind[i]), length - offset)) return 0;
        if (apart && pos[i] < end) return 0;
        end = pos[i] + field_size(kind[i]);
    }
    return 1;
}

EXPORT int64_t lk_read_values(const uint8_t *data, int64_t length, int64_t offset,
                              const int64_t *pos, const uint8_t *kind, int64_t count,
                              int64_t *value) {
    if (!are_sound(length, offset, pos, kind, count, 0)) return REFUSE;
    for (int64_t i = 0; i < count; i++)
        value[i] = (int64_t)read_value(data + offset + pos[i], kind[i]);
    return 0;
}

EXPORT int64_t lk_read_targets(const uint8_t *data, int64_t length, int64_t offset,
                               const int64_t *pos, const int64_t *next_pos, const uint8_t *kind,
                               const uint8_t *scale, int64_t count, int64_t addr, int64_t *target) {
    if (!are_sound(length, offset, pos, kind, count, 0)) return REFUSE;
    for (int64_t i = 0; i < count; i++) {
        Site site = {pos[i], next_pos[i], kind[i], scale[i]};
        uint64_t value = read_value(data + offset + pos[i], kind[i]);
        target[i] = (int64_t)target_of_value(&site, (uint64_t)addr, value);
    }
    return 0;
}

EXPORT int64_t lk_write_values(uint8_t *data, int64_t length, int64_t offset, const int64_t *pos,
                               const uint8_t *kind, int64_t count, const int64_t *value) {
    if (!are_sound(length, offset, pos, kind, count, 1)) return REFUSE;
    for (int64_t i = 0; i < count; i++)
        write_value(data + offset + pos[i], kind[i], (uint64_t)value[i]);
    return 0;
}

EXPORT int64_t lk_write_targets(uint8_t *data, int64_t length, int64_t offset, const int64_t *pos,
                                const int64_t *next_pos, const uint8_t *kind, const uint8_t *scale,
                                int64_t count, int64_t addr, const int64_t *target) {
    if (!are_sound(length, offset, pos, kind, count, 1)) return REFUSE;
    for (int64_t i = 0; i < count; i++) {
        Site site = {pos[i], next_pos[i], kind[i], scale[i]};
        write_value(data + offset + pos[i], kind[i],
                    value_of_target(&site, (uint64_t)addr, (uint64_t)target[i]));
    }
    return 0;
}
