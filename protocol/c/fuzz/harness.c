/* One run of the client against a server that sends what the input says; the system calls below the client are played here.
 *
 * Input: a byte with the number of calls (1 to 4, less one, in its low two bits) and the server's manner in the others, that
 * many bytes that name calls, 2 bytes that seed the sizes of pieces, then for each connection 2 bytes of length (with bit 15:
 * the server sends zeros behind it without end) and what the server sends on it, HELLO's answer left out unless the manner
 * says otherwise. After the last connection nobody listens.
 *
 * Anything wrong ends the process: a sanitizer's finding, or one of the rules under FAIL below.
 */
#define _POSIX_C_SOURCE 200809L

#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "poison.h"

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t size);

#define socket(domain, type, protocol) play_socket()
#define connect(fd, address, size) play_connect(fd)
#define sendmsg(fd, message, flags) play_sendmsg(fd, message, flags)
#define recv(fd, buffer, size, flags) play_recv(fd, buffer, size)
#define poll(entries, count, timeout) play_poll(entries, count, timeout)
#define close(fd) play_close(fd)
#define clock_gettime(clock, now) play_clock(now)
#define clock_nanosleep(clock, flags, until, left) play_sleep(until)

static int play_socket(void);
static int play_connect(int fd);
static ssize_t play_sendmsg(int fd, const struct msghdr *message, int flags);
static ssize_t play_recv(int fd, void *buffer, size_t size);
static int play_poll(struct pollfd *entries, nfds_t count, int timeout);
static int play_close(int fd);
static int play_clock(struct timespec *now);
static int play_sleep(const struct timespec *until);

#include "../varstore_companion.c"

#undef socket
#undef connect
#undef sendmsg
#undef recv
#undef poll
#undef close
#undef clock_gettime
#undef clock_nanosleep

#define FAIL(what) fail(what, __LINE__)
#define FD 1000
#define CALL_MS 3000
#define MOST_STEPS 20000 /* system calls of one input: time is linear in it */

enum manner { RAW_HELLO = 4, SLOW = 8, INTERRUPTS = 16, STAYS_OPEN = 32, BREAKS_SEND = 64, SMALL_PIECES = 128 };

static struct {
    const uint8_t *input;
    size_t left;
    uint8_t manner;
    uint32_t dice;
    int64_t now_ms;
    unsigned int steps;
    bool is_open, is_ended; /* the connection; whether the client was told of its end */
    const uint8_t *stream;  /* what the server has still to send on it */
    size_t stream_left;
    bool is_endless;
    uint8_t hello[80]; /* before that */
    size_t hello_at, hello_size;
    uint8_t head[24]; /* of the frame that the client is sending */
    size_t frame_sent, frame_size;
    bool is_put_sent, is_put_dropped; /* on this connection, whole; and the client ended it */
} play;

static struct vsc_client client;

static void fail(const char *what, int line)
{
    (void)fprintf(stderr, "harness.c:%d: %s\n", line, what);
    abort();
}

static uint32_t roll(void)
{
    play.dice = play.dice * 1664525u + 1013904223u;
    return play.dice >> 8;
}

static void step(void)
{
    if (++play.steps > MOST_STEPS)
        FAIL("more system calls than the input can be worth");
}

static bool is_interrupted(void)
{
    return (play.manner & INTERRUPTS) != 0 && roll() % 4 == 0;
}

static uint8_t take_byte(void)
{
    if (play.left == 0)
        return 0;
    play.left--;
    return *play.input++;
}

static int play_socket(void)
{
    step();
    if (play.is_open)
        FAIL("a second connection");
    play.is_open = true;
    play.is_ended = false;
    play.is_put_sent = play.is_put_dropped = false;
    play.stream_left = play.hello_at = play.hello_size = play.frame_sent = play.frame_size = 0;
    return FD;
}

static int play_connect(int fd)
{
    step();
    if (fd != FD || !play.is_open)
        FAIL("a descriptor that is not open");
    if (play.left < 2) {
        play.is_ended = true;
        errno = roll() % 2 == 0 ? ECONNREFUSED : EAGAIN;
        return -1;
    }
    play.stream_left = take_byte();
    play.stream_left |= (size_t)take_byte() << 8;
    play.is_endless = (play.stream_left & 0x8000) != 0;
    play.stream_left &= 0x7fff;
    if (play.stream_left > play.left)
        play.stream_left = play.left;
    play.stream = play.input;
    play.input += play.stream_left;
    play.left -= play.stream_left;
    return 0;
}

/* A whole frame has come: keep HELLO's answer ready. */
static void frame_sent(void)
{
    static const uint8_t answer[] = {'V', 'S', 'C', 'P', 1, 0, 1, 0x80, 0, 0, 0, 0, 50, 0, 0, 0,      /* header */
                                     1,   0,   0,   0,   2, 0, 0, 0,    1, 0,                          /* version */
                                     2,   0,   0,   0,   8, 0, 0, 0,    0, 0, 0, 0, 0,  0, 0, 0,      /* features */
                                     3,   0,   0,   0,   4, 0, 0, 0,    0, 0, 4, 0,                    /* max_payload */
                                     4,   0,   0,   0,   4, 0, 0, 0,    16, 0, 0, 0};                  /* max_requests */
    const uint64_t type = load(play.head + 6, 2);

    if (type == HELLO && (play.manner & RAW_HELLO) == 0) {
        memcpy(play.hello, answer, sizeof(answer));
        memcpy(play.hello + 8, play.head + 8, 4);
        play.hello[12] = (uint8_t)(sizeof(answer) - 16);
        play.hello_size = sizeof(answer);
    }
    if (client.pending_id != 0)
        FAIL("a request was sent before the one before it had its answer");
    play.is_put_sent = type == PUT_STORE;
}

static ssize_t play_sendmsg(int fd, const struct msghdr *message, int flags)
{
    size_t room = (play.manner & SMALL_PIECES) != 0 ? roll() % 40 + 1 : SIZE_MAX, taken = 0;

    step();
    if (fd != FD || !play.is_open || flags != MSG_NOSIGNAL)
        FAIL("a descriptor that is not open, or a signal");
    if (is_interrupted()) {
        errno = EINTR;
        return -1;
    }
    if ((play.manner & SLOW) != 0 && roll() % 3 == 0) {
        errno = EAGAIN;
        return -1;
    }
    if ((play.manner & BREAKS_SEND) != 0 && roll() % 4 == 0) {
        play.is_ended = true;
        errno = roll() % 3 == 0 ? ENOBUFS : roll() % 2 == 0 ? EPIPE : ECONNRESET;
        return -1;
    }
    for (size_t piece = 0; piece < (size_t)message->msg_iovlen; piece++) {
        const uint8_t *bytes = message->msg_iov[piece].iov_base;

        for (size_t at = 0; at < message->msg_iov[piece].iov_len && taken < room; at++, taken++) {
            if (play.frame_sent < sizeof(play.head))
                play.head[play.frame_sent] = bytes[at];
            if (++play.frame_sent == HEADER_BYTES) {
                play.frame_size = HEADER_BYTES + (size_t)load(play.head + 12, 4);
                if (memcmp(play.head, "VSCP\1", 6) != 0 || load(play.head + 8, 4) == 0 ||
                    play.frame_size > 135168 + HEADER_BYTES)
                    FAIL("a frame that is not one was sent");
            }
            if (play.frame_sent == play.frame_size) {
                frame_sent();
                play.frame_sent = play.frame_size = 0;
            }
        }
    }
    return (ssize_t)taken;
}

static ssize_t play_recv(int fd, void *buffer, size_t size)
{
    size_t most = (play.manner & SMALL_PIECES) != 0 ? roll() % 24 + 1 : SIZE_MAX;

    step();
    if (fd != FD || !play.is_open || size == 0)
        FAIL("a descriptor that is not open, or no room");
    /* Whoever reads beyond what was received is seen. */
    ASAN_POISON_MEMORY_REGION(buffer, size);
    if (is_interrupted()) {
        errno = roll() % 2 == 0 ? EINTR : EAGAIN;
        return -1;
    }
    if (most > size)
        most = size;
    if (play.hello_at < play.hello_size) {
        if (most > play.hello_size - play.hello_at)
            most = play.hello_size - play.hello_at;
        ASAN_UNPOISON_MEMORY_REGION(buffer, most);
        memcpy(buffer, play.hello + play.hello_at, most);
        play.hello_at += most;
    } else if (play.stream_left == 0 && play.is_endless) {
        most = size;
        ASAN_UNPOISON_MEMORY_REGION(buffer, most);
        memset(buffer, 0, most);
    } else {
        if (most > play.stream_left)
            most = play.stream_left;
        ASAN_UNPOISON_MEMORY_REGION(buffer, most);
        memcpy(buffer, play.stream, most);
        play.stream += most;
        play.stream_left -= most;
    }
    if (most == 0) {
        play.is_ended = true;
        if (roll() % 2 == 0) {
            errno = ECONNRESET;
            return -1;
        }
    }
    return (ssize_t)most;
}

static int play_poll(struct pollfd *entries, nfds_t count, int timeout)
{
    const bool is_quiet = play.hello_at == play.hello_size && play.stream_left == 0 && !play.is_endless &&
                          (play.manner & STAYS_OPEN) != 0;

    step();
    if (timeout < 0 || timeout > CALL_MS)
        FAIL("a wait without end");
    if (is_interrupted()) {
        errno = EINTR;
        return -1;
    }
    if ((entries->events == POLLIN && is_quiet) || ((play.manner & SLOW) != 0 && roll() % 64 == 0)) {
        play.now_ms += timeout;
        return 0;
    }
    if (count != 1 || entries->fd != FD || !play.is_open)
        FAIL("a descriptor that is not open");
    entries->revents = entries->events;
    return 1;
}

static int play_close(int fd)
{
    step();
    if (fd != FD || !play.is_open)
        FAIL("closed twice");
    play.is_open = false;
    play.is_put_dropped = play.is_put_sent && !play.is_ended;
    return 0;
}

static int play_clock(struct timespec *now)
{
    now->tv_sec = (time_t)(play.now_ms / 1000);
    now->tv_nsec = (long)(play.now_ms % 1000) * 1000000;
    return 0;
}

static int play_sleep(const struct timespec *until)
{
    const int64_t until_ms = (int64_t)until->tv_sec * 1000 + until->tv_nsec / 1000000;

    step();
    if (until_ms <= play.now_ms || until_ms - play.now_ms > LONGEST_PAUSE_MS)
        FAIL("a pause that is none, or without end");
    if (is_interrupted())
        return EINTR;
    play.now_ms = until_ms;
    return 0;
}

static void check_text(const char *text)
{
    size_t length = strnlen(text, VSC_MAX_TEXT + 1u);

    if (length > VSC_MAX_TEXT || !is_text((const uint8_t *)text, length))
        FAIL("a text without an end, or not UTF-8");
    for (size_t at = 0; at < length; at++)
        if ((uint8_t)text[at] < 0x20 || text[at] == 0x7f || ((uint8_t)text[at] == 0xc2 && (uint8_t)text[at + 1] < 0xa0))
            FAIL("a control character for the log");
}

/* Whether the server said why: it may have said code 0. */
static bool is_told(void)
{
    return client.error.code != 0 || load(client.buffer + 6, 2) == ERROR;
}

static void check(enum vsc_result result, uint16_t type, int64_t began)
{
    static const struct vsc_error none;

    if (play.now_ms > began + CALL_MS)
        FAIL("longer than the time that was given");
    if ((client.fd >= 0) != play.is_open)
        FAIL("a connection that nobody knows of");
    if (result == VSC_INVALID)
        FAIL("good arguments were refused");
    if (result == VSC_OK && memcmp(&client.error, &none, sizeof(none)) != 0)
        FAIL("an error of a call that did not fail");
    if (result == VSC_UNAVAILABLE && play.is_put_dropped && !is_told())
        FAIL("a store was given up by closing: a newer one may overtake it");
    if (result == VSC_OK && type != HELLO &&
        (load(client.buffer + 6, 2) != (type | ANSWER) || load(client.buffer + 8, 4) != client.last_id))
        FAIL("success without an answer");
    if (result == VSC_BROKEN && client.fd >= 0)
        FAIL("a broken connection stays");
    if (result != VSC_OK && client.error.system_error == 0 && !is_told())
        FAIL("a failure without a reason");
    if (result == VSC_REFUSED && client.error.try_again)
        FAIL("given up though it may be tried again");
    check_text(client.error.text);
}

/* Reads every byte of an answer, for the sanitizer. */
static void check_store(const struct vsc_store *answer)
{
    volatile uint8_t sum = 0;

    if (answer->present != (answer->store != NULL) || answer->size > VSC_MAX_STORE)
        FAIL("a store that is not there, or too long");
    if (answer->present &&
        (answer->store < client.buffer || answer->store + answer->size > client.buffer + VSC_BUFFER_BYTES))
        FAIL("a store outside of the buffer");
    for (size_t at = 0; at < answer->size; at++)
        sum = (uint8_t)(sum + answer->store[at]);
    if (answer->outcome != VSC_FAILED && answer->detail[0] != '\0')
        FAIL("the reason of a failure that was none");
    check_text(answer->detail);
}

static enum vsc_result one_call(uint8_t which, uint16_t *type)
{
    static const uint8_t store[600] = {'V', 'A', 'R', 'S'};
    struct vsc_written written;
    struct vsc_store answer;
    enum vsc_result result;

    switch (which % 6) {
    case 0:
        *type = GET_STORE;
        result = vsc_get_store(&client, (enum vsc_reason)(which / 6 % 3 + 1), CALL_MS, &answer);
        if (result == VSC_OK)
            check_store(&answer);
        return result;
    case 1:
    case 2:
        *type = PUT_STORE;
        result = vsc_put_store(&client, store, which / 6 * 14u, CALL_MS, &written);
        if (result == VSC_OK && (written.verdict > VSC_VERDICT_NO || written.durable < VSC_DURABLE_TOOLSTACK ||
                                 written.durable > VSC_DURABLE_JOURNAL))
            FAIL("a value that does not exist");
        return result;
    case 3:
        *type = PING;
        return vsc_ping(&client, which >= 128 ? store : NULL, which >= 128 ? which % 64u : 0, CALL_MS);
    case 4:
        *type = SB_FAILURE;
        return vsc_sb_failure(&client, which >= 128 ? "it did not start" : NULL, CALL_MS);
    default:
        *type = HELLO;
        return vsc_connect(&client, CALL_MS);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t size)
{
    static const uint8_t vm[VSC_UUID_BYTES] = {0x6a, 0x1f};
    static uint8_t *buffer;
    uint8_t calls[4];
    size_t count;

    if (size < 4)
        return 0;
    /* On the heap, so that a byte beyond it is seen. */
    if (buffer == NULL && (buffer = malloc(VSC_BUFFER_BYTES)) == NULL)
        return 0;
    ASAN_UNPOISON_MEMORY_REGION(buffer, VSC_BUFFER_BYTES);
    memset(&play, 0, sizeof(play));
    play.input = input;
    play.left = size;
    play.manner = take_byte();
    count = (size_t)(play.manner & 3) + 1;
    for (size_t at = 0; at < count; at++)
        calls[at] = take_byte();
    play.dice = take_byte();
    play.dice |= (uint32_t)take_byte() << 8;
    if (vsc_init(&client, "/socket", vm, VSC_KIND_VARSTORED, "fuzz/1", buffer, VSC_BUFFER_BYTES) != VSC_OK)
        FAIL("the client could not be made");
    for (size_t at = 0; at < count; at++) {
        const int64_t began = play.now_ms;
        uint16_t type;
        const enum vsc_result result = one_call(calls[at], &type);

        check(result, type, began);
        if (client.pending_id != 0 && (client.pending_type != PUT_STORE || !play.is_open))
            FAIL("something else than a store is waited for");
    }
    vsc_close(&client);
    if (play.is_open)
        FAIL("a connection was left open");
    return 0;
}
