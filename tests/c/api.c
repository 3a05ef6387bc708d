/* What tests/c/test_client.py cannot see through the call example. The path of a socket that is not there is its argument. */
#define _POSIX_C_SOURCE 200809L

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "varstore_companion.h"

#define CHECK(what) (checked((what), #what, __LINE__))

static int failures;
static struct vsc_client client;
static uint8_t buffer[VSC_BUFFER_BYTES], store[VSC_MAX_STORE + 1u], vm[VSC_UUID_BYTES];

static void checked(bool good, const char *what, int line)
{
    if (!good) {
        (void)fprintf(stderr, "line %d: %s does not hold\n", line, what);
        failures++;
    }
}

static enum vsc_result prepare(const char *path, const char *name)
{
    return vsc_init(&client, path, vm, VSC_KIND_VARSTORED, name, buffer, sizeof(buffer));
}

static void uuids(void)
{
    static const char *const wrong[] = {"",
                                        "6a1f3c52-94b0-4c7e-8d21-0f5e7a9b3c1",
                                        "6a1f3c52-94b0-4c7e-8d21-0f5e7a9b3c100",
                                        "6a1f3c5g-94b0-4c7e-8d21-0f5e7a9b3c10",
                                        "6a1f3c52094b0-4c7e-8d21-0f5e7a9b3c10",
                                        "6a1f3c5294b04c7e8d210f5e7a9b3c10"};
    static const uint8_t right[] = {0x6a, 0x1f, 0x3c, 0x52, 0x94, 0xb0, 0x4c, 0x7e, 0x8d, 0x21, 0x0f, 0x5e, 0x7a, 0x9b, 0x3c, 0x10};

    CHECK(vsc_uuid("6a1f3c52-94b0-4c7e-8d21-0f5e7a9b3c10", vm) && memcmp(vm, right, sizeof(right)) == 0);
    CHECK(vsc_uuid("6A1F3C52-94B0-4C7E-8D21-0F5E7A9B3C10", vm) && memcmp(vm, right, sizeof(right)) == 0);
    for (size_t at = 0; at < sizeof(wrong) / sizeof(wrong[0]); at++)
        CHECK(!vsc_uuid(wrong[at], vm));
}

static void preparing(const char *path)
{
    char long_path[VSC_MAX_PATH + 2u], long_name[VSC_MAX_NAME + 2u];

    memset(long_path, 'p', sizeof(long_path) - 1);
    long_path[sizeof(long_path) - 1] = '\0';
    memset(long_name, 'n', sizeof(long_name) - 1);
    long_name[sizeof(long_name) - 1] = '\0';
    CHECK(prepare(long_path, NULL) == VSC_INVALID && client.error.text[0] != '\0');
    CHECK(prepare(long_path + 1, NULL) == VSC_OK);
    CHECK(prepare("", NULL) == VSC_INVALID);
    CHECK(prepare(NULL, NULL) == VSC_INVALID);
    CHECK(prepare(path, long_name) == VSC_INVALID);
    CHECK(prepare(path, long_name + 1) == VSC_OK);
    CHECK(prepare(path, "\xed\xa0\x80") == VSC_INVALID);
    CHECK(prepare(path, "\xc0\xaf") == VSC_INVALID);
    CHECK(prepare(path, "\xf4\x90\x80\x80") == VSC_INVALID);
    CHECK(prepare(path, "\xe2\x82") == VSC_INVALID);
    CHECK(prepare(path, "\xf0\x9f\x98\x80\xe2\x82\xac\xc3\xa9") == VSC_OK);
    CHECK(vsc_init(&client, path, vm, VSC_KIND_TOOL, NULL, buffer, sizeof(buffer) - 1) == VSC_INVALID);
    CHECK(vsc_init(&client, path, NULL, VSC_KIND_TOOL, NULL, buffer, sizeof(buffer)) == VSC_INVALID);
    CHECK(vsc_init(&client, path, vm, (enum vsc_kind)3, NULL, buffer, sizeof(buffer)) == VSC_INVALID);
    /* A client that was not made does nothing. */
    CHECK(vsc_connect(&client, 100) == VSC_INVALID);
    CHECK(vsc_put_store(&client, store, 24, 100, NULL) == VSC_INVALID);
}

static void arguments(const char *path)
{
    static char text[VSC_MAX_TEXT + 2u];
    struct vsc_store answer;

    CHECK(prepare(path, NULL) == VSC_OK);
    memset(text, 'x', sizeof(text) - 1);
    CHECK(vsc_put_store(&client, store, sizeof(store), 0, NULL) == VSC_INVALID);
    CHECK(vsc_put_store(&client, NULL, 1, 0, NULL) == VSC_INVALID);
    CHECK(vsc_put_store(&client, buffer, 24, 0, NULL) == VSC_INVALID);
    CHECK(vsc_put_store(&client, buffer + sizeof(buffer) - 1, 24, 0, NULL) == VSC_INVALID);
    CHECK(vsc_get_store(&client, (enum vsc_reason)0, 0, &answer) == VSC_INVALID);
    CHECK(vsc_get_store(&client, VSC_BOOT, 0, NULL) == VSC_INVALID);
    CHECK(vsc_sb_failure(&client, text, 0) == VSC_INVALID);
    CHECK(vsc_sb_failure(&client, "\x80", 0) == VSC_INVALID);
    CHECK(vsc_ping(&client, store, VSC_MAX_PING + 1u, 0) == VSC_INVALID);
    CHECK(vsc_ping(&client, NULL, 1, 0) == VSC_INVALID);
    /* In bounds, and nobody there. */
    CHECK(vsc_put_store(&client, store, VSC_MAX_STORE, 0, NULL) == VSC_UNAVAILABLE);
    CHECK(!client.error.maybe_done && client.error.code == 0 && client.error.system_error != 0);
    CHECK(vsc_guest_status(&client, VSC_UNAVAILABLE) == UINT64_C(0x8000000000000007));
    CHECK(client.fd == -1);
}

static void statuses(void)
{
    CHECK(vsc_guest_status(&client, VSC_OK) == 0);
    client.error.code = VSC_STORE_OVER_LIMIT;
    CHECK(vsc_guest_status(&client, VSC_REFUSED) == UINT64_C(0x8000000000000009));
    CHECK(vsc_guest_status(&client, VSC_BROKEN) == UINT64_C(0x8000000000000007));
    CHECK(vsc_guest_status(&client, VSC_INVALID) == UINT64_C(0x8000000000000007));
    client.error.code = VSC_TOOLSTACK_REFUSED;
    CHECK(vsc_guest_status(&client, VSC_REFUSED) == UINT64_C(0x8000000000000007));
    CHECK(strcmp(vsc_code_name(VSC_TIMED_OUT), "TIMED_OUT") == 0 && vsc_code_name(22)[0] != '\0');
    CHECK(strcmp(vsc_code_name(VSC_UNCLEAR), "UNCLEAR") == 0);
    CHECK(strcmp(vsc_result_name(VSC_INVALID), "invalid") == 0 && vsc_result_name((enum vsc_result)9)[0] != '\0');
}

/* The descriptor is not handed to programs that varstored starts, and no call blocks in it. */
static void descriptor(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    const int listener = socket(AF_UNIX, SOCK_STREAM, 0);

    memcpy(address.sun_path, path, strlen(path) + 1);
    CHECK(bind(listener, (const struct sockaddr *)&address, sizeof(address)) == 0 && listen(listener, 1) == 0);
    CHECK(prepare(path, NULL) == VSC_OK);
    CHECK(vsc_put_store(&client, store, 24, 50, NULL) == VSC_UNAVAILABLE);
    CHECK(client.fd == -1 && client.error.system_error != 0 && !client.error.maybe_done);
    client.fd = socket(AF_UNIX, SOCK_STREAM, 0);
    vsc_close(&client);
    vsc_close(&client);
    CHECK(client.fd == -1);
    (void)close(listener);
}

/* A client that vsc_init never saw: 0 is not its descriptor. */
static void unknown(void)
{
    static struct vsc_client zero;

    CHECK(fcntl(0, F_GETFD) >= 0);
    vsc_close(&zero);
    CHECK(fcntl(0, F_GETFD) >= 0);
    CHECK(vsc_connect(&zero, 100) == VSC_INVALID);
    vsc_close(&zero);
    CHECK(fcntl(0, F_GETFD) >= 0);
}

int main(int count, char **values)
{
    if (count != 2)
        return 2;
    uuids();
    preparing(values[1]);
    arguments(values[1]);
    statuses();
    descriptor(values[1]);
    unknown();
    return failures == 0 ? 0 : 1;
}
