/* Where amd64 instructions hold 4-byte rel32 and RIP-relative fields, by linear sweep. Twin of
 * sites.disassemble; knows lengths only, from a table that iced-x86 filled. What the table does not
 * know, and the last bytes of a text, are left to iced-x86. */
#include "kernel.h"

typedef struct {
    uint8_t has_modrm;
    uint64_t sizes;
} Form;

#include "amd64_table.h"

enum { LONGEST = 15, BRANCH = 14, UNKNOWN = 15 };
enum { P_NONE, P_66, P_F3, P_F2, P_F0 };

/* Bytes of displacement; *extra is 1 where a SIB byte stands before it. */
static int displacement_size(uint8_t modrm, uint8_t sib, int *extra) {
    int mod = modrm >> 6, rm = modrm & 7;
    *extra = mod != 3 && rm == 4;
    if (mod == 1) return 1;
    if (mod == 2) return 4;
    if (mod == 0 && (rm == 5 || (rm == 4 && (sib & 7) == 5))) return 4;
    return 0;
}

/* Length of the instruction at `p`, 0 where it is not known; *field is the place of its field, 0
 * for none. At least LONGEST + 1 bytes may be read. */
static int instruction(const uint8_t *p, int *field) {
    int at = 0, prefix = P_NONE, wide = 0, map = 0;
    for (;; at++) {
        int own;
        if (at > 4) return 0;
        switch (p[at]) {
        case 0x2E: case 0x64: case 0x65: continue;
        case 0x66: own = P_66; break;
        case 0xF3: own = P_F3; break;
        case 0xF2: own = P_F2; break;
        case 0xF0: own = P_F0; break;
        default: own = P_NONE;
        }
        if (own == P_NONE) break;
        if (prefix != P_NONE && prefix != own) return 0;
        prefix = own;
    }
    if ((p[at] & 0xF0) == 0x40) wide = p[at++] >> 3 & 1;
    if (p[at] == 0x0F) {
        map = 1, at++;
        if (p[at] == 0x38) map = 2, at++;
        else if (p[at] == 0x3A) map = 3, at++;
    }
    const Form *form = &FORM[FORM_OF[((prefix * 2 + wide) * 4 + map) * 256 + p[at++]]];
    *field = 0;
    if (!form->has_modrm) {
        int size = (int)(form->sizes & 15);
        if (size == UNKNOWN) return 0;
        if (size == BRANCH) *field = at, size = 4;
        return at + size <= LONGEST ? at + size : 0;
    }
    uint8_t modrm = p[at++];
    int member = (modrm >= 0xC0 ? 8 : 0) + (modrm >> 3 & 7), extra;
    int size = (int)(form->sizes >> 4 * member & 15);
    if (size == UNKNOWN) return 0;
    int displacement = displacement_size(modrm, p[at], &extra);
    if ((modrm & 0xC7) == 5) *field = at;
    at += extra + displacement + size;
    return at <= LONGEST ? at : 0;
}

/* Fields from `from` on, at most `capacity`, their count in *count. Returns where it stopped: at an
 * instruction that it does not know, near the end, or where there was no more room. */
EXPORT int64_t lk_amd64_fields(const uint8_t *text, int64_t size, int64_t from, int64_t *field,
                               int64_t capacity, int64_t *count) {
    int64_t at = from, made = 0;
    if (from < 0) return REFUSE;
    while (made < capacity && at <= size - LONGEST - 1) {
        int place, length = instruction(text + at, &place);
        if (!length) break;
        if (place) field[made++] = at + place;
        at += length;
    }
    *count = made;
    return at;
}
