/* A small mutating fuzzer for the harnesses, where libFuzzer is not: deterministic for a seed, and guided by coverage where a
 * harness was built with -fsanitize-coverage=trace-pc.
 *
 *     fuzz [-seconds N] [-runs N] [-seed N] [-found FOLDER] FILE ...
 *
 * Without -seconds and -runs each file is run once. Otherwise the files are where it starts from; an input that fails is
 * written to FOLDER (default: here) as found-<seed>, and the process ends. Prints executions, seconds and inputs kept.
 */
#define _POSIX_C_SOURCE 200809L

#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define MOST_INPUTS 4096u
#define LONGEST 8192u
#define MAP_BYTES 8192u

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t size);
void __sanitizer_cov_trace_pc(void);
/* Absent without a sanitizer, as under valgrind. */
void __sanitizer_set_death_callback(void (*callback)(void)) __attribute__((weak));

struct input {
    uint8_t *bytes;
    size_t size;
};

static struct input inputs[MOST_INPUTS];
static size_t count;
static uint8_t current[LONGEST];
static size_t current_size;
static const char *found = ".";
static unsigned long long seed = 1, dice;
static uint8_t map[MAP_BYTES], seen[MAP_BYTES];

/* Called by the instrumented code for each block: what counts is which one came after which. */
void __sanitizer_cov_trace_pc(void)
{
    static uintptr_t before;
    const uintptr_t where = (uintptr_t)__builtin_return_address(0);

    map[(where ^ where >> 13 ^ before) % MAP_BYTES] = 1;
    before = where >> 1;
}

static unsigned int roll(size_t below)
{
    dice ^= dice << 13;
    dice ^= dice >> 7;
    dice ^= dice << 17;
    return (unsigned int)(dice % below);
}

static void keep_current(void)
{
    char path[4096];
    FILE *file;

    (void)snprintf(path, sizeof(path), "%s/found-%llu", found, seed);
    file = fopen(path, "wb");
    if (file != NULL) {
        (void)fwrite(current, 1, current_size, file);
        (void)fclose(file);
        (void)fprintf(stderr, "the input is in %s\n", path);
    }
}

static void on_abort(int number)
{
    keep_current();
    (void)signal(number, SIG_DFL);
    (void)raise(number);
}

static bool add(const uint8_t *bytes, size_t size)
{
    struct input *input = &inputs[count];

    if (count == MOST_INPUTS || (input->bytes = malloc(size + 1)) == NULL)
        return false;
    memcpy(input->bytes, bytes, size);
    input->size = size;
    count++;
    return true;
}

static bool read_input(const char *path)
{
    FILE *file = fopen(path, "rb");

    if (file == NULL)
        return false;
    current_size = fread(current, 1, sizeof(current), file);
    (void)fclose(file);
    return add(current, current_size);
}

static void remove_bytes(size_t at, size_t size)
{
    memmove(current + at, current + at + size, current_size - at - size);
    current_size -= size;
}

static void insert(size_t at, const uint8_t *bytes, size_t size)
{
    if (size > LONGEST - current_size)
        size = LONGEST - current_size;
    memmove(current + at + size, current + at, current_size - at);
    if (bytes == NULL)
        memset(current + at, (int)roll(256), size);
    else
        memcpy(current + at, bytes, size);
    current_size += size;
}

static void mutate(void)
{
    static const uint32_t telling[] = {0,       1,       2,       7,       8,       15,         16,         17,         64,
                                       65,      127,     128,     255,     0x7fff,  0x8000,     0x8001,     0xffff,     0x20000,
                                       0x20001, 0x21000, 0x3fff8, 0x40000, 0x40001, 0x7fffffff, 0x80000000, 0xfffffff8,
                                       0xffffffff};
    const struct input *other = &inputs[roll(count)];
    const size_t at = current_size == 0 ? 0 : roll(current_size);
    const uint32_t number = telling[roll(sizeof(telling) / sizeof(telling[0]))];
    size_t size;

    switch (current_size == 0 ? 5 : roll(8)) {
    case 0:
        current[at] ^= (uint8_t)(1u << roll(8));
        return;
    case 1:
        current[at] = (uint8_t)roll(256);
        return;
    case 2:
        size = (size_t)1 << roll(3);
        for (size_t byte = 0; byte < size && at + byte < current_size; byte++)
            current[at + byte] = (uint8_t)(number >> 8 * byte);
        return;
    case 3:
        remove_bytes(at, roll(current_size - at) % 64 + (current_size > at ? 1u : 0u));
        return;
    case 4:
        current[at] = (uint8_t)(current[at] + roll(9) - 4u);
        return;
    case 5:
        insert(at, NULL, roll(20) + 1);
        return;
    case 6: /* a piece of another input */
        if (other->size > 0) {
            const size_t from = roll(other->size);

            insert(at, other->bytes + from, roll(other->size - from) + 1);
        }
        return;
    default: /* a piece of its own once more */
        if (current_size < LONGEST / 2) {
            uint8_t piece[64];

            size = roll(sizeof(piece)) + 1;
            if (size > current_size - at)
                size = current_size - at;
            memcpy(piece, current + at, size);
            insert(roll(current_size), piece, size);
        }
        return;
    }
}

/* Run the current input; whether it reached something new. */
static bool run(void)
{
    bool is_new = false;

    memset(map, 0, sizeof(map));
    (void)LLVMFuzzerTestOneInput(current, current_size);
    for (size_t at = 0; at < sizeof(map); at += sizeof(uint64_t)) {
        uint64_t now, before;

        memcpy(&now, map + at, sizeof(now));
        memcpy(&before, seen + at, sizeof(before));
        if ((now & ~before) != 0) {
            is_new = true;
            now |= before;
            memcpy(seen + at, &now, sizeof(now));
        }
    }
    return is_new;
}

int main(int arguments, char **values)
{
    unsigned long long seconds = 0, runs = 0, done = 0;
    time_t began;
    int at = 1;

    for (; at + 1 < arguments && values[at][0] == '-'; at += 2) {
        if (strcmp(values[at], "-seconds") == 0)
            seconds = strtoull(values[at + 1], NULL, 10);
        else if (strcmp(values[at], "-runs") == 0)
            runs = strtoull(values[at + 1], NULL, 10);
        else if (strcmp(values[at], "-seed") == 0)
            seed = strtoull(values[at + 1], NULL, 10);
        else if (strcmp(values[at], "-found") == 0)
            found = values[at + 1];
        else
            return 2;
    }
    for (; at < arguments; at++) {
        if (!read_input(values[at])) {
            (void)fprintf(stderr, "%s cannot be read\n", values[at]);
            return 2;
        }
    }
    if (count == 0) {
        (void)fprintf(stderr, "usage: fuzz [-seconds N] [-runs N] [-seed N] [-found FOLDER] FILE ...\n");
        return 2;
    }
    dice = seed * 0x9e3779b97f4a7c15u + 1;
    if (__sanitizer_set_death_callback != NULL)
        __sanitizer_set_death_callback(keep_current);
    (void)signal(SIGABRT, on_abort);
    began = time(NULL);
    for (size_t index = 0; index < count; index++, done++) {
        current_size = inputs[index].size;
        memcpy(current, inputs[index].bytes, current_size);
        (void)run();
    }
    while ((runs != 0 && done < runs) || (seconds != 0 && (unsigned long long)(time(NULL) - began) < seconds)) {
        const struct input *input = &inputs[roll(count)];

        current_size = input->size;
        memcpy(current, input->bytes, current_size);
        for (unsigned int left = roll(6) + 1; left > 0; left--)
            mutate();
        if (run())
            (void)add(current, current_size);
        done++;
    }
    (void)printf("%llu executions in %lld s, %zu inputs kept\n", done, (long long)(time(NULL) - began), count);
    for (size_t index = 0; index < count; index++)
        free(inputs[index].bytes);
    return 0;
}
