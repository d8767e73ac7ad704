// A medium changer (SMC-3): a transport, four slots, one to import and export, and a drive. `unit.c` serves it.
// Elements 0, 16 to 19, 32 and 48; three cartridges with bar codes, in the first three slots.
#define ELEMENTS 7
#define CODE 36

enum { TRANSPORT = 1, SLOT, PORT, DRIVE };

static struct element {
    uint16_t address;
    uint8_t type;
    int8_t medium; // -1 for none
    uint16_t source;
} elements[ELEMENTS] = {
    {0, TRANSPORT, -1, 0}, {16, SLOT, 0, 0},  {17, SLOT, 1, 0},   {18, SLOT, 2, 0},
    {19, SLOT, -1, 0},     {32, PORT, -1, 0}, {48, DRIVE, -1, 0},
};
static bool prevented;

static struct element *element(const uint8_t *p) {
    for (int n = 0; n < ELEMENTS; n++)
        if (elements[n].address == (p[0] << 8 | p[1])) return &elements[n];
    return NULL;
}

// One medium goes to `to`; table 6 of SMC-3 for what cannot be.
static int may_move(const struct element *from, const struct element *to) {
    if (!from || !to || from->type == TRANSPORT || to->type == TRANSPORT) return fail(5, 0x2101, 0);
    if (from->medium < 0) return fail(5, 0x3b0e, 0);
    if (prevented && to->type == PORT) return fail(5, 0x5302, 0);
    return GOOD;
}

static void put_medium(struct element *to, int8_t medium, uint16_t source) { to->medium = medium, to->source = source; }

// SMC-3, 6.5.
static int move_medium(const uint8_t *cdb) {
    struct element *from = element(cdb + 4), *to = element(cdb + 6);
    if (element(cdb + 2) != elements || cdb[10] & 1) return fail(5, cdb[10] & 1 ? 0x2400 : 0x2101, 0);
    if (may_move(from, to)) return CHECK;
    if (from == to) return GOOD;
    if (to->medium >= 0) return fail(5, 0x3b0d, 0);
    put_medium(to, from->medium, from->type == SLOT ? from->address : from->source);
    put_medium(from, -1, 0);
    return GOOD;
}

// SMC-3, 6.2: what is in the first destination goes on to the second.
static int exchange_medium(const uint8_t *cdb) {
    struct element *from = element(cdb + 4), *first = element(cdb + 6), *second = element(cdb + 8);
    if (element(cdb + 2) != elements) return fail(5, 0x2101, 0);
    if (may_move(from, first) || may_move(first, second)) return CHECK;
    if (second->medium >= 0 && second != from) return fail(5, 0x3b0d, 0);
    int8_t medium = from->medium;
    uint16_t source = from->type == SLOT ? from->address : from->source;
    put_medium(from, -1, 0);
    put_medium(second, first->medium, first->type == SLOT ? first->address : first->source);
    put_medium(first, medium, source);
    return GOOD;
}

// SMC-3, 6.12: a page for each type.
static int element_status(const uint8_t *cdb) {
    uint8_t reply[8 + 4 * 8 + ELEMENTS * 52] = {0}, wanted = cdb[1] & 15;
    uint32_t len = 8, start = cdb[2] << 8 | cdb[3], left = cdb[4] << 8 | cdb[5], tag = cdb[1] & 0x10 ? CODE : 0;
    if (wanted > DRIVE) return invalid_field();
    uint32_t count = 0;
    for (uint8_t type = TRANSPORT; type <= DRIVE; type++) {
        uint8_t *page = reply + len;
        uint32_t before = count;
        for (int n = 0; n < ELEMENTS; n++) {
            const struct element *it = &elements[n];
            if (it->type != type || (wanted && wanted != type) || it->address < start || !left) continue;
            if (count == before) len += 8;
            uint8_t *p = reply + len;
            p[0] = it->address >> 8, p[1] = it->address;
            p[2] = (it->medium >= 0) | (type == TRANSPORT ? 0 : 8) | (type == PORT ? 0x30 : 0);
            if (it->source && type != SLOT) p[9] = 0x80, p[10] = it->source >> 8, p[11] = it->source;
            if (tag && it->medium >= 0) {
                char code[33];
                snprintf(code, sizeof code, "BED%03dL8%24s", it->medium + 1, "");
                memcpy(p + 12, code, 32);
            }
            if (!count) reply[0] = p[0], reply[1] = p[1];
            len += 16 + tag, count++, left--;
        }
        if (count == before) continue;
        page[0] = type, page[1] = tag ? 0x80 : 0, page[3] = 16 + tag;
        page[6] = (count - before) * (16 + tag) >> 8, page[7] = (count - before) * (16 + tag);
    }
    reply[3] = count, reply[6] = (len - 8) >> 8, reply[7] = len - 8;
    return answer(reply, len, get24(cdb + 7));
}

// SMC-3, 7.3: where elements are, and what can go from where to where.
static int changer_modes(const uint8_t *cdb) {
    uint8_t reply[4 + 20 + 20] = {0}, page = cdb[2] & 63;
    static const uint8_t addresses[20] = {0x1d, 18, 0, 0, 0, 1, 0, 16, 0, 4, 0, 32, 0, 1, 0, 48, 0, 1};
    static const uint8_t able[20] = {0x1f, 18, 0x0e, 0, 0, 0x0e, 0x0e, 0x0e, 0, 0, 0, 0, 0, 0x0e, 0x0e, 0x0e};
    uint32_t len = 4;
    if (page == 0x1d || page == 0x3f) memcpy(reply + len, addresses, 20), len += 20;
    if (page == 0x1f || page == 0x3f) memcpy(reply + len, able, 20), len += 20;
    if (len == 4 || cdb[3]) return invalid_field();
    reply[0] = len - 1;
    return answer(reply, len, cdb[4]);
}

static int changer_command(const uint8_t *cdb) {
    switch (cdb[0]) {
    case 0x07: case 0x37: return GOOD;
    case 0x1a: return changer_modes(cdb);
    case 0x1e: return prevented = cdb[4] & 1, GOOD;
    case 0x2b: return element(cdb + 2) == elements && element(cdb + 4) ? GOOD : fail(5, 0x2101, 0);
    case 0xa5: return move_medium(cdb);
    case 0xa6: return exchange_medium(cdb);
    case 0xb8: return element_status(cdb);
    }
    return fail(5, 0x2000, 0);
}
