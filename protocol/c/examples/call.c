/* Makes the calls that it reads, one a line, and prints what became of each: the client that ../../conformance drives.
 *
 *     call SOCKET UUID [MILLISECONDS]
 *
 * The lines are those of "Conformance" in the specification.
 */
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../varstore_companion.h"

#define LINE_BYTES (2u * VSC_MAX_STORE + 64u)

static struct vsc_client client;
static uint8_t answers[VSC_BUFFER_BYTES], octets[VSC_MAX_STORE + 1u];
static char line[LINE_BYTES];

static bool read_hex(const char *text, size_t *size)
{
    const size_t digits = strlen(text);

    if (digits % 2 != 0 || digits / 2 >= sizeof(octets))
        return false;
    for (size_t at = 0; at < digits / 2; at++) {
        const char pair[3] = {text[2 * at], text[2 * at + 1], '\0'};

        if (!isxdigit((unsigned char)pair[0]) || !isxdigit((unsigned char)pair[1]))
            return false;
        octets[at] = (uint8_t)strtoul(pair, NULL, 16);
    }
    octets[digits / 2] = '\0';
    *size = digits / 2;
    return true;
}

static void print_hex(const char *name, const void *bytes, size_t size)
{
    (void)printf(" %s=", name);
    for (size_t at = 0; at < size; at++)
        (void)printf("%02x", ((const uint8_t *)bytes)[at]);
}

/* 0: none of that name. What is not understood must not be taken for a boot, which may update the store. */
static enum vsc_reason reason_of(const char *name)
{
    static const char *const reasons[] = {"", "boot", "resume", "tool"};
    enum vsc_reason reason = VSC_TOOL;

    while (reason > 0 && strcmp(reasons[reason], name) != 0)
        reason--;
    return reason;
}

static enum vsc_result get(enum vsc_reason reason, uint32_t limit_ms)
{
    static const char *const outcomes[] = {"not_asked", "updated", "nothing_to_do", "failed"};
    struct vsc_store answer;
    const enum vsc_result result = vsc_get_store(&client, reason, limit_ms, &answer);

    if (result == VSC_OK) {
        (void)printf("answer presence=%s generation=%llu outcome=%s", answer.present ? "present" : "absent",
                     (unsigned long long)answer.generation, outcomes[answer.outcome]);
        if (answer.present)
            print_hex("store", answer.store, answer.size);
        if (answer.detail[0] != '\0')
            print_hex("detail", answer.detail, strlen(answer.detail));
    }
    return result;
}

static enum vsc_result put(size_t size, uint32_t limit_ms)
{
    static const char *const verdicts[] = {"unspecified", "yes", "no"};
    struct vsc_written answer;
    const enum vsc_result result = vsc_put_store(&client, octets, size, limit_ms, &answer);

    if (result == VSC_OK)
        (void)printf("answer verdict=%s durable=%s generation=%llu", verdicts[answer.verdict],
                     answer.durable == VSC_DURABLE_TOOLSTACK ? "toolstack" : "journal", (unsigned long long)answer.generation);
    return result;
}

static bool carry_out(char *command, uint32_t limit_ms)
{
    char *argument = strchr(command, ' ');
    enum vsc_result result;
    size_t size = 0;

    if (argument != NULL)
        *argument++ = '\0';
    if (strcmp(command, "get") != 0 && argument != NULL && !read_hex(argument, &size))
        return false;
    if (strcmp(command, "hello") == 0)
        result = vsc_connect(&client, limit_ms);
    else if (strcmp(command, "ping") == 0)
        result = vsc_ping(&client, argument == NULL ? NULL : octets, size, limit_ms);
    else if (strcmp(command, "get") == 0 && argument != NULL && reason_of(argument) != 0)
        result = get(reason_of(argument), limit_ms);
    else if (strcmp(command, "put") == 0)
        result = put(size, limit_ms);
    else if (strcmp(command, "sb-failure") == 0)
        result = vsc_sb_failure(&client, argument == NULL ? NULL : (const char *)octets, limit_ms);
    else
        return false;

    if (result == VSC_OK && strcmp(command, "get") != 0 && strcmp(command, "put") != 0)
        (void)printf("answer");
    else if (result == VSC_REFUSED || (result == VSC_UNAVAILABLE && client.error.code != 0))
        (void)printf("error %u %d", client.error.code, client.error.try_again ? 1 : 0);
    else if (result != VSC_OK)
        (void)printf("%s", vsc_result_name(result));
    if (result != VSC_OK)
        (void)fprintf(stderr, "%s: %s%s\n", vsc_result_name(result), client.error.text,
                      client.error.maybe_done ? " (it may have been carried out)" : "");
    (void)printf("\n");
    return fflush(stdout) == 0;
}

int main(int count, char **arguments)
{
    uint8_t vm[VSC_UUID_BYTES];
    bool good = true;

    if (count < 3 || count > 4 || !vsc_uuid(arguments[2], vm) ||
        vsc_init(&client, arguments[1], vm, VSC_KIND_TOOL, "call-example/1", answers, sizeof(answers)) != VSC_OK) {
        (void)fprintf(stderr, "usage: call SOCKET UUID [MILLISECONDS]\n");
        return 2;
    }
    while (good && fgets(line, sizeof(line), stdin) != NULL) {
        line[strcspn(line, "\n")] = '\0';
        good = carry_out(line, count == 4 ? (uint32_t)strtoul(arguments[3], NULL, 10) : 30000u);
    }
    vsc_close(&client);
    return good ? 0 : 2;
}
