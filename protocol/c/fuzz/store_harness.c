/* The example's variable list on bytes from anywhere: what loads has to come out again as it went in, and takes a change only
 * into a list that loads, too. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../examples/store.h"
#include "poison.h"

#define FAIL(what) fail(what, __LINE__)

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t size);

static void fail(const char *what, int line)
{
    (void)fprintf(stderr, "store_harness.c:%d: %s\n", line, what);
    abort();
}

static bool is_of_one_key(const struct variable *one, const struct variable *other)
{
    return one->name_size == other->name_size && memcmp(one->name, other->name, one->name_size) == 0 &&
           memcmp(one->guid, other->guid, 16) == 0;
}

static bool is_same(const struct variable *one, const struct variable *other)
{
    return is_of_one_key(one, other) && one->data_size == other->data_size &&
           memcmp(one->data, other->data, one->data_size) == 0 && one->attributes == other->attributes &&
           memcmp(one->rest, other->rest, 48) == 0;
}

/* Whether no variable before it has its name and GUID. */
static bool is_first(const struct store *store, const struct variable *variable)
{
    struct variable each;

    for (size_t at = 0; store_next(store, &at, &each) && each.name != variable->name;)
        if (is_of_one_key(&each, variable))
            return false;
    return true;
}

/* Deletes every variable, and sets each again in a list that began empty. */
static void take_apart(const struct store *from)
{
    static struct store lists[2], again;
    size_t count = 0, left = 0;
    struct store *list = &lists[0], *next = &lists[1], *swap;
    struct variable each, found;
    size_t at = 0;

    store_clear(list);
    while (store_next(from, &at, &each)) {
        if (!store_find(from, &each, &found) || (store_find(list, &each, &found) && found.data == each.data))
            FAIL("a variable that is there is not found");
        if (store_with(next, list, &each) != STORE_OK)
            return; /* the empty list of version 2 may have less room than the one that was loaded */
        swap = list, list = next, next = swap;
        count += is_first(from, &each);
        if (!store_find(list, &each, &found) || !is_same(&found, &each))
            FAIL("a variable was set, and is another one");
    }
    if (!store_load(&again, list->bytes, list->size) || again.size != list->size)
        FAIL("a list that was made does not load");
    for (at = 0; store_next(&again, &at, &found); left++) {
    }
    if (left != count)
        FAIL("more or fewer variables than were set");
    for (at = 0; store_next(&again, &at, &each); at = 0, left--) {
        struct variable deleted = each;

        deleted.data_size = 0;
        if (store_with(next, &again, &deleted) != STORE_OK)
            FAIL("a variable cannot be deleted");
        if (store_find(next, &each, &found) || !store_load(&again, next->bytes, next->size))
            FAIL("a variable was deleted, and is there or broke the list");
    }
    if (left != 0)
        FAIL("more than one was deleted");
}

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t size)
{
    static struct store store;

    if (size > STORE_BYTES)
        return 0;
    /* Whoever reads beyond what was given is seen. */
    ASAN_POISON_MEMORY_REGION(store.bytes + size, STORE_BYTES - size);
    if (!store_load(&store, input, size)) {
        ASAN_UNPOISON_MEMORY_REGION(store.bytes, STORE_BYTES);
        return 0;
    }
    if (store.size != size || memcmp(store.bytes, input, size) != 0)
        FAIL("what was loaded is something else");
    take_apart(&store);
    ASAN_UNPOISON_MEMORY_REGION(store.bytes, STORE_BYTES);
    return 0;
}
