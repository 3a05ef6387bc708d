/* See store.h. */
#include "store.h"

#include <string.h>

#define HEADER_BYTES 24u
#define ANCILLARY_BYTES (8u + 0x104u) /* MOR key and PPI data, in version 2 */
#define GUID_BYTES 16u
#define REST_BYTES 48u /* EFI_TIME and digest */
#define TAIL_BYTES (GUID_BYTES + 4u + REST_BYTES)
#define COUNTED_BYTES 128u /* what varstored counts for each variable beside name and data */

static uint64_t load(const uint8_t *data, size_t size)
{
    uint64_t number = 0;

    while (size-- > 0)
        number = number << 8 | data[size];
    return number;
}

static void save(uint8_t *data, uint64_t number, size_t size)
{
    for (size_t at = 0; at < size; at++, number >>= 8)
        data[at] = (uint8_t)number;
}

static size_t first(const struct store *store)
{
    return load(store->bytes + 4, 4) >= 2 ? HEADER_BYTES + ANCILLARY_BYTES : HEADER_BYTES;
}

/* Read a length and what it counts. False: it does not fit what is left. */
static bool take(const struct store *store, size_t *at, uint64_t limit, const uint8_t **data, size_t *size)
{
    uint64_t length;

    if (store->size - *at < 8)
        return false;
    length = load(store->bytes + *at, 8);
    *at += 8;
    if (length == 0 || length > limit || length > store->size - *at)
        return false;
    *data = store->bytes + *at;
    *size = (size_t)length;
    *at += *size;
    return true;
}

void store_clear(struct store *store)
{
    memset(store->bytes, 0, HEADER_BYTES + ANCILLARY_BYTES);
    memcpy(store->bytes, "VARS", 4);
    save(store->bytes + 4, 2, 4);
    store->size = HEADER_BYTES + ANCILLARY_BYTES;
}

bool store_next(const struct store *store, size_t *at, struct variable *variable)
{
    size_t next = *at == 0 ? first(store) : *at;

    if (!take(store, &next, STORE_NAME_BYTES, &variable->name, &variable->name_size) ||
        !take(store, &next, STORE_DATA_BYTES, &variable->data, &variable->data_size) || store->size - next < TAIL_BYTES)
        return false;
    variable->guid = store->bytes + next;
    variable->attributes = (uint32_t)load(variable->guid + GUID_BYTES, 4);
    variable->rest = variable->guid + GUID_BYTES + 4;
    *at = next + TAIL_BYTES;
    return true;
}

bool store_load(struct store *store, const uint8_t *bytes, size_t size)
{
    struct variable variable;
    uint64_t count, found = 0, total = 0;
    size_t at = 0;

    if (size < HEADER_BYTES || size > STORE_BYTES || memcmp(bytes, "VARS", 4) != 0 || load(bytes + 4, 4) > 2)
        return false;
    memmove(store->bytes, bytes, size);
    store->size = size;
    count = load(bytes + 8, 8);
    if (size < first(store) || count > STORE_VARIABLES)
        return false;
    for (; found < count && store_next(store, &at, &variable); found++)
        total += variable.name_size + variable.data_size + COUNTED_BYTES;
    return found == count && total <= STORE_BYTES && (at == 0 ? first(store) : at) == size;
}

static bool is_same(const struct variable *one, const struct variable *other)
{
    return one->name_size == other->name_size && memcmp(one->name, other->name, one->name_size) == 0 &&
           memcmp(one->guid, other->guid, GUID_BYTES) == 0;
}

bool store_find(const struct store *store, const struct variable *wanted, struct variable *found)
{
    for (size_t at = 0; store_next(store, &at, found);)
        if (is_same(found, wanted))
            return true;
    return false;
}

static void append(struct store *store, const void *bytes, size_t size)
{
    memcpy(store->bytes + store->size, bytes, size);
    store->size += size;
}

static void append_variable(struct store *store, const struct variable *variable)
{
    static const uint8_t nothing[REST_BYTES];
    uint8_t number[8];

    save(number, variable->name_size, 8);
    append(store, number, 8);
    append(store, variable->name, variable->name_size);
    save(number, variable->data_size, 8);
    append(store, number, 8);
    append(store, variable->data, variable->data_size);
    append(store, variable->guid, GUID_BYTES);
    save(number, variable->attributes, 4);
    append(store, number, 4);
    append(store, variable->rest == NULL ? nothing : variable->rest, REST_BYTES);
}

enum store_result store_with(struct store *to, const struct store *from, const struct variable *variable)
{
    const size_t whole = 16 + variable->name_size + variable->data_size + TAIL_BYTES;
    const bool deleted = variable->data_size == 0;
    uint64_t count = 0, total = 0;
    struct variable each;
    bool found = false;

    to->size = 0;
    append(to, from->bytes, first(from));
    for (size_t at = 0; store_next(from, &at, &each);) {
        if (is_same(&each, variable)) {
            found = true;
            continue;
        }
        append_variable(to, &each);
        total += each.name_size + each.data_size + COUNTED_BYTES;
        count++;
    }
    if (deleted && !found)
        return STORE_NOT_FOUND;
    if (!deleted) {
        total += variable->name_size + variable->data_size + COUNTED_BYTES;
        if (variable->name_size == 0 || variable->name_size > STORE_NAME_BYTES || variable->data_size > STORE_DATA_BYTES ||
            ++count > STORE_VARIABLES || total > STORE_BYTES || whole > STORE_BYTES - to->size)
            return STORE_NO_ROOM;
        append_variable(to, variable);
    }
    save(to->bytes + 8, count, 8);
    save(to->bytes + 16, to->size - first(to), 8);
    return STORE_OK;
}
