/* A stand-in for varstored with a storage backend on varstore_companion.h: it keeps a variable list, and every change of a
 * non-volatile variable is written through before the guest hears of it. README.md, one folder up, says what belongs where
 * in varstored itself.
 *
 *     backend SOCKET UUID [MILLISECONDS]
 *
 * It reads a command a line and answers each with one line that begins with "ok" or "error":
 *
 *     init boot | init resume       read the store; any failure ends the program with 1, as it must stop the VM's start
 *     load FILE | save FILE         what varstored does around a suspension or migration: volatile variables too, no store read
 *     set NAME GUID ATTRIBUTES HEX  SetVariable, `-` deletes; an error names the EFI status, and nothing has changed then
 *     get NAME GUID                 the data in hexadecimal digits
 *     dump                          the store in hexadecimal digits
 *     sb-failure [TEXT]             Secure Boot verification failed
 */
#define _POSIX_C_SOURCE 200809L

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../varstore_companion.h"
#include "store.h"

#define BOOT_MS 25000u   /* the server takes 20 s at most, and whoever started varstored gives up at 30 */
#define WRITE_MS 60000u
#define NOTIFY_MS 5000u
#define LINE_BYTES (4u * STORE_DATA_BYTES)

static struct vsc_client client;
static uint8_t answers[VSC_BUFFER_BYTES];

/* Two of the persistent list: one is what the guest sees, the other what it will see once the write is durable. Taking a
 * change back is not swapping them. */
static struct store lists[2], volatiles[2];
static struct store *list = &lists[0], *next_list = &lists[1];
static struct store *volatile_list = &volatiles[0], *next_volatile = &volatiles[1];
static bool is_held_unclear; /* the toolstack may hold a change that the guest was told had failed */
static uint32_t limit_ms;    /* of a call, for tests; 0: the times above */

static char line[LINE_BYTES];
static uint8_t data[STORE_DATA_BYTES + 1u], name[STORE_NAME_BYTES + 2u], guid[VSC_UUID_BYTES];

static uint32_t limited(uint32_t usual_ms)
{
    return limit_ms != 0 ? limit_ms : usual_ms;
}

static const char *status_name(uint64_t status)
{
    return status == 0 ? "EFI_SUCCESS" : (status & 0xff) == 9 ? "EFI_OUT_OF_RESOURCES" : "EFI_DEVICE_ERROR";
}

static void log_failure(const char *what, enum vsc_result result)
{
    (void)fprintf(stderr, "%s: %s, %s%s: %s", what, vsc_result_name(result), vsc_code_name(client.error.code),
                  client.error.maybe_done ? ", may have been carried out" : "", client.error.text);
    /* A daemon that is away, and a socket that this process may not use, are told apart by this alone. */
    if (client.error.system_error != 0)
        (void)fprintf(stderr, " (%s)", strerror(client.error.system_error));
    (void)fprintf(stderr, "\n");
}

static void print_hex(const uint8_t *bytes, size_t size)
{
    for (size_t at = 0; at < size; at++)
        (void)printf("%02x", bytes[at]);
}

static bool read_hex(const char *text, uint8_t *to, size_t room, size_t *size)
{
    const size_t digits = strlen(text);

    if (digits % 2 != 0 || digits / 2 > room)
        return false;
    for (size_t at = 0; at < digits / 2; at++) {
        const char pair[3] = {text[2 * at], text[2 * at + 1], '\0'};

        if (!isxdigit((unsigned char)pair[0]) || !isxdigit((unsigned char)pair[1]))
            return false;
        to[at] = (uint8_t)strtoul(pair, NULL, 16);
    }
    *size = digits / 2;
    return true;
}

/* A variable's name (ASCII here) as UTF-16LE and its GUID in EFI's mixed order. */
static bool read_key(const char *text, const char *guid_text, struct variable *variable)
{
    static const uint8_t order[VSC_UUID_BYTES] = {3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15};
    uint8_t uuid[VSC_UUID_BYTES];

    if (text == NULL || guid_text == NULL || strlen(text) * 2 > STORE_NAME_BYTES || !vsc_uuid(guid_text, uuid))
        return false;
    for (size_t at = 0; text[at] != '\0'; at++) {
        name[2 * at] = (uint8_t)text[at];
        name[2 * at + 1] = 0;
    }
    for (size_t at = 0; at < VSC_UUID_BYTES; at++)
        guid[at] = uuid[order[at]];
    *variable = (struct variable){.name = name, .name_size = 2 * strlen(text), .guid = guid};
    return true;
}

/* Write a list through; the guest's status. */
static uint64_t write_through(const struct store *wanted, struct vsc_written *written)
{
    const enum vsc_result result = vsc_put_store(&client, wanted->bytes, wanted->size, limited(WRITE_MS), written);

    if (result == VSC_OK)
        is_held_unclear = false;
    else
        log_failure("the store was not written", result);
    if (result != VSC_OK && client.error.maybe_done)
        is_held_unclear = true;
    return vsc_guest_status(&client, result);
}

/* Let the toolstack hold what the guest was told, before this process ends or the VM moves away. */
static bool settle(void)
{
    struct vsc_written written;

    return !is_held_unclear || write_through(list, &written) == 0;
}

static bool init(const char *reason)
{
    const bool boot = reason != NULL && strcmp(reason, "boot") == 0;
    struct vsc_store answer;
    enum vsc_result result;

    if (!boot && (reason == NULL || strcmp(reason, "resume") != 0)) {
        (void)printf("error usage\n");
        return false;
    }
    result = vsc_get_store(&client, boot ? VSC_BOOT : VSC_RESUME, limited(BOOT_MS), &answer);
    if (result != VSC_OK) {
        /* Never an empty list instead: it would be written back over the VM's keys. */
        log_failure("the store was not read", result);
        (void)printf("error %s %s\n", vsc_result_name(result), vsc_code_name(client.error.code));
        return false;
    }
    if (answer.outcome == VSC_FAILED)
        (void)fprintf(stderr, "the certificates were not updated: %s\n", answer.detail);
    if (!answer.present) {
        store_clear(list);
    } else if (!store_load(list, answer.store, answer.size)) {
        (void)fprintf(stderr, "what the toolstack holds is not a store\n");
        (void)printf("error unreadable\n");
        return false;
    }
    (void)printf("ok %s %d %llu\n", answer.present ? "present" : "first-boot", (int)answer.outcome,
                 (unsigned long long)answer.generation);
    return true;
}

static void set_variable(char *arguments)
{
    char *rest = NULL, *key = strtok_r(arguments, " ", &rest), *guid_text = strtok_r(NULL, " ", &rest);
    const char *attributes = strtok_r(NULL, " ", &rest), *value = strtok_r(NULL, " ", &rest);
    struct vsc_written written = {0};
    struct variable variable, old;
    enum store_result made;
    struct store *swap;
    uint64_t status;

    if (!read_key(key, guid_text, &variable) || attributes == NULL || value == NULL ||
        !read_hex(strcmp(value, "-") == 0 ? "" : value, data, sizeof(data), &variable.data_size)) {
        (void)printf("error EFI_INVALID_PARAMETER\n");
        return;
    }
    variable.data = data;
    variable.attributes = (uint32_t)strtoul(attributes, NULL, 0);
    if (store_find(list, &variable, &old) || store_find(volatile_list, &variable, &old)) {
        if (variable.data_size == 0) {
            variable.attributes = old.attributes;
        } else if (variable.attributes != old.attributes) {
            (void)printf("error EFI_INVALID_PARAMETER\n");
            return;
        }
    }
    if ((variable.attributes & STORE_NON_VOLATILE) == 0) {
        made = store_with(next_volatile, volatile_list, &variable);
        if (made == STORE_OK) {
            swap = volatile_list, volatile_list = next_volatile, next_volatile = swap;
            (void)printf("ok volatile\n");
            return;
        }
    } else {
        made = store_with(next_list, list, &variable);
    }
    if (made != STORE_OK) {
        (void)printf("error %s\n", made == STORE_NO_ROOM ? "EFI_OUT_OF_RESOURCES" : "EFI_NOT_FOUND");
        return;
    }
    status = write_through(next_list, &written);
    if (status != 0) {
        (void)printf("error %s\n", status_name(status));
        return;
    }
    swap = list, list = next_list, next_list = swap;
    (void)printf("ok %d %d %llu\n", (int)written.verdict, (int)written.durable, (unsigned long long)written.generation);
}

static void get_variable(char *arguments)
{
    char *rest = NULL, *key = strtok_r(arguments, " ", &rest), *guid_text = strtok_r(NULL, " ", &rest);
    struct variable wanted, found;

    if (!read_key(key, guid_text, &wanted) ||
        (!store_find(list, &wanted, &found) && !store_find(volatile_list, &wanted, &found))) {
        (void)printf("error EFI_NOT_FOUND\n");
        return;
    }
    (void)printf("ok ");
    print_hex(found.data, found.data_size);
    (void)printf("\n");
}

/* Both lists, one behind the other, each with its size before it. */
static bool write_file(const char *path)
{
    FILE *file = fopen(path, "wb");
    const struct store *both[] = {list, volatile_list};
    bool good = file != NULL;

    for (size_t at = 0; good && at < 2; at++)
        good = fwrite(&both[at]->size, sizeof(size_t), 1, file) == 1 && fwrite(both[at]->bytes, both[at]->size, 1, file) == 1;
    if (file != NULL && fclose(file) != 0)
        good = false;
    return good;
}

static bool read_file(const char *path)
{
    FILE *file = fopen(path, "rb");
    struct store *both[] = {list, volatile_list}, *raw = next_list;
    bool good = file != NULL;

    for (size_t at = 0; good && at < 2; at++)
        good = fread(&raw->size, sizeof(size_t), 1, file) == 1 && raw->size <= STORE_BYTES &&
               fread(raw->bytes, raw->size, 1, file) == 1 && store_load(both[at], raw->bytes, raw->size);
    if (file != NULL)
        (void)fclose(file);
    return good;
}

/* Carry out one line. False: the program has to end. */
static bool carry_out(char *command)
{
    char *arguments = strchr(command, ' ');

    if (arguments != NULL)
        *arguments++ = '\0';
    if (strcmp(command, "init") == 0)
        return init(arguments);
    if (strcmp(command, "load") == 0 && arguments != NULL) {
        const bool good = read_file(arguments);

        (void)printf(good ? "ok\n" : "error\n");
        return good;
    }
    if (strcmp(command, "save") == 0 && arguments != NULL) {
        (void)printf(settle() && write_file(arguments) ? "ok\n" : "error\n");
    } else if (strcmp(command, "set") == 0 && arguments != NULL) {
        set_variable(arguments);
    } else if (strcmp(command, "get") == 0 && arguments != NULL) {
        get_variable(arguments);
    } else if (strcmp(command, "dump") == 0) {
        (void)printf("ok ");
        print_hex(list->bytes, list->size);
        (void)printf("\n");
    } else if (strcmp(command, "sb-failure") == 0) {
        const enum vsc_result result = vsc_sb_failure(&client, arguments, limited(NOTIFY_MS));

        if (result != VSC_OK)
            log_failure("nobody was told of the Secure Boot failure", result);
        (void)printf(result == VSC_OK ? "ok\n" : "error %s\n", vsc_result_name(result));
    } else {
        (void)printf("error usage\n");
    }
    return true;
}

int main(int count, char **arguments)
{
    uint8_t vm[VSC_UUID_BYTES];
    bool good = true;

    if (count < 3 || count > 4 || !vsc_uuid(arguments[2], vm) ||
        vsc_init(&client, arguments[1], vm, VSC_KIND_VARSTORED, "backend-example/1", answers, sizeof(answers)) != VSC_OK) {
        (void)fprintf(stderr, "usage: backend SOCKET UUID [MILLISECONDS]\n");
        return 2;
    }
    if (count == 4)
        limit_ms = (uint32_t)strtoul(arguments[3], NULL, 10);
    store_clear(list);
    store_clear(volatile_list);
    while (good && fgets(line, sizeof(line), stdin) != NULL) {
        line[strcspn(line, "\n")] = '\0';
        good = carry_out(line);
        if (fflush(stdout) != 0)
            good = false;
    }
    if (good && !settle())
        good = false;
    vsc_close(&client);
    return good ? 0 : 1;
}
