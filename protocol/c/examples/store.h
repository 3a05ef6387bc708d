/* A variable list kept as the bytes of a store ("VARS"), as varstored saves it: what the stand-in in backend.c works on. */
#ifndef STORE_H
#define STORE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define STORE_BYTES 131072u /* at most, and also the limit of name + data + 128 over all variables */
#define STORE_NAME_BYTES 4096u
#define STORE_DATA_BYTES 57344u
#define STORE_VARIABLES 1024u
#define STORE_NON_VOLATILE 1u /* EFI_VARIABLE_NON_VOLATILE (UEFI 2.10, 8.2) */

struct store {
    uint8_t bytes[STORE_BYTES];
    size_t size;
};

/* One variable. `name` is UTF-16LE without terminator, `guid` 16 bytes in EFI's order; the rest is kept by the list. */
struct variable {
    const uint8_t *name;
    size_t name_size;
    const uint8_t *data;
    size_t data_size;
    const uint8_t *guid;
    uint32_t attributes;
    const uint8_t *rest; /* EFI_TIME and digest, 48 bytes; NULL: all zero */
};

enum store_result { STORE_OK, STORE_NO_ROOM, STORE_NOT_FOUND };

/* A store of version 2 without variables. */
void store_clear(struct store *store);

/* Take in bytes after checking each length against what encloses it, and varstored's limits. False: not a store. */
bool store_load(struct store *store, const uint8_t *bytes, size_t size);

/* The variable at `*at` (0: the first); moves `*at` behind it. False: there is none. */
bool store_next(const struct store *store, size_t *at, struct variable *variable);

/* The variable of that name and GUID. */
bool store_find(const struct store *store, const struct variable *wanted, struct variable *found);

/* Make `to` from `from` with one variable set, or deleted where it has no data. `from` stays as it is. */
enum store_result store_with(struct store *to, const struct store *from, const struct variable *variable);

#endif
