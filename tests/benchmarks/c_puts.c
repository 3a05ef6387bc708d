/* The C client measured, and its yardstick: see c_puts.py.
 *
 *     c_puts echo SOCKET                              send back what comes, from one connection at a time
 *     c_puts put SOCKET UUID ECHO_SOCKET BATCHES ROUNDS
 *
 * The last takes two stores of one size on standard input, and writes them by turns: in each batch so many rounds to the daemon,
 * then as many to the echo. It prints a line of two times a round.
 */
#define _POSIX_C_SOURCE 200809L

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "varstore_companion.h"

#define CALL_MS 30000u
#define MAX_ROUNDS 1000

static long long puts_ns[MAX_ROUNDS], echoes_ns[MAX_ROUNDS];
static uint8_t stores[2u * VSC_MAX_STORE], answers[VSC_BUFFER_BYTES];

static void fail(const char *what)
{
    (void)fprintf(stderr, "%s: %s\n", what, strerror(errno));
    exit(1);
}

static struct sockaddr_un address_of(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};

    if (strlen(path) >= sizeof(address.sun_path))
        exit(2);
    memcpy(address.sun_path, path, strlen(path) + 1);
    return address;
}

static void send_all(int fd, const uint8_t *bytes, size_t size)
{
    for (size_t at = 0; at < size;) {
        const ssize_t sent = send(fd, bytes + at, size - at, MSG_NOSIGNAL);

        if (sent < 0)
            fail("send");
        at += (size_t)sent;
    }
}

static int echo(const char *path)
{
    const struct sockaddr_un address = address_of(path);
    const int listener = socket(AF_UNIX, SOCK_STREAM, 0);

    if (listener < 0 || bind(listener, (const struct sockaddr *)&address, sizeof(address)) != 0 || listen(listener, 1) != 0)
        fail(path);
    (void)fprintf(stderr, "ready\n");
    for (int peer; (peer = accept(listener, NULL, NULL)) >= 0; (void)close(peer)) {
        ssize_t count;

        while ((count = recv(peer, answers, 65536, 0)) > 0)
            send_all(peer, answers, (size_t)count);
    }
    return 1;
}

static long long now_ns(void)
{
    struct timespec now;

    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return (long long)now.tv_sec * 1000000000 + now.tv_nsec;
}

static void exchange(int fd, const uint8_t *bytes, size_t size)
{
    static uint8_t back[VSC_MAX_STORE];

    send_all(fd, bytes, size);
    for (size_t at = 0; at < size;) {
        const ssize_t count = recv(fd, back + at, size - at, 0);

        if (count <= 0)
            fail("recv");
        at += (size_t)count;
    }
}

static int put(const char *path, const char *uuid, const char *echo_path, long batches, long rounds)
{
    static struct vsc_client client;
    const struct sockaddr_un address = address_of(echo_path);
    const int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    const size_t size = fread(stores, 1, sizeof(stores), stdin) / 2;
    uint8_t vm[VSC_UUID_BYTES];
    struct vsc_written written;

    if (rounds < 1 || rounds > MAX_ROUNDS)
        return 2;
    if (fd < 0 || connect(fd, (const struct sockaddr *)&address, sizeof(address)) != 0)
        fail(echo_path);
    if (!vsc_uuid(uuid, vm) || vsc_init(&client, path, vm, VSC_KIND_VARSTORED, "benchmark", answers, sizeof(answers)) != VSC_OK)
        return 2;
    for (long batch = 0; batch < batches; batch++) {
        /* The first of each is one that nobody counts: what the other server still had to do is in it. */
        for (long round = -1; round < rounds; round++) {
            const long long began = now_ns();
            const enum vsc_result result = vsc_put_store(&client, stores + (round & 1 ? size : 0), size, CALL_MS, &written);

            if (result != VSC_OK || written.verdict != VSC_VERDICT_NO) {
                (void)fprintf(stderr, "a store was not written: %s\n", client.error.text);
                return 1;
            }
            if (round >= 0)
                puts_ns[round] = now_ns() - began;
        }
        for (long round = -1; round < rounds; round++) {
            const long long began = now_ns();

            exchange(fd, stores + (round & 1 ? size : 0), size);
            if (round >= 0)
                echoes_ns[round] = now_ns() - began;
        }
        for (long round = 0; round < rounds; round++)
            (void)printf("%lld %lld\n", puts_ns[round], echoes_ns[round]);
    }
    vsc_close(&client);
    return 0;
}

int main(int count, char **values)
{
    if (count == 3 && strcmp(values[1], "echo") == 0)
        return echo(values[2]);
    if (count == 7 && strcmp(values[1], "put") == 0)
        return put(values[2], values[3], values[4], strtol(values[5], NULL, 10), strtol(values[6], NULL, 10));
    return 2;
}
