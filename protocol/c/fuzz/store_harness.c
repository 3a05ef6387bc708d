/* The example's variable list on bytes from anywhere: what loads has to come out again as it went in, and takes a change only
 * into a list that loads, too. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../examples/store.h"

#define FAIL(what) fail(what, __LINE__)

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t size);

static void fail(const char *what, int line)
{
    (void)fprintf(stderr, "store_harness.c:%d: %s\n", line, what);
    abort();
}

/* Deletes every variable, and sets each again in a list that began empty. */
static void take_apart(const struct store *from)
{
    static struct store lists[2], again;
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
        if (!store_find(list, &each, &found) || found.data_size != each.data_size ||
            memcmp(found.data, each.data, each.data_size) != 0)
            FAIL("a variable was set, and is another one");
    }
    if (!store_load(&again, list->bytes, list->size) || again.size != list->size)
        FAIL("a list that was made does not load");
    for (at = 0; store_next(&again, &at, &each); at = 0) {
        struct variable deleted = each;

        deleted.data_size = 0;
        if (store_with(next, &again, &deleted) != STORE_OK)
            FAIL("a variable cannot be deleted");
        if (store_find(next, &each, &found) || !store_load(&again, next->bytes, next->size))
            FAIL("a variable was deleted, and is there or broke the list");
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t size)
{
    static struct store store;

    if (!store_load(&store, input, size))
        return 0;
    if (store.size != size || memcmp(store.bytes, input, size) != 0)
        FAIL("what was loaded is something else");
    take_apart(&store);
    return 0;
}
