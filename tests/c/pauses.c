/* When the client tries again, whatever signals come: its connect() is this program's, linked with --wrap=connect. */
#define _POSIX_C_SOURCE 200809L
#define _XOPEN_SOURCE 700

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "varstore_companion.h"

#define CHECK(what) (checked((what), #what, __LINE__))
#define CALL_MS 500
#define MOST_TRIES 64

int __real_connect(int fd, const struct sockaddr *address, socklen_t size);
int __wrap_connect(int fd, const struct sockaddr *address, socklen_t size);

static int failures, signals;
static bool is_listening;
static int64_t begun, tries[MOST_TRIES];
static size_t count;
static struct vsc_client client;
static uint8_t buffer[VSC_BUFFER_BYTES], vm[VSC_UUID_BYTES];

static void checked(bool good, const char *what, int line)
{
    if (!good) {
        (void)fprintf(stderr, "line %d: %s does not hold, with a signal each %d us\n", line, what, signals);
        failures++;
    }
}

static int64_t now_ms(void)
{
    struct timespec now;

    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

int __wrap_connect(int fd, const struct sockaddr *address, socklen_t size)
{
    if (count < MOST_TRIES)
        tries[count] = now_ms() - begun;
    count++;
    if (is_listening)
        return __real_connect(fd, address, size);
    errno = ECONNREFUSED;
    return -1;
}

static void take_signal(int number)
{
    (void)number;
}

static void signal_each(int microseconds)
{
    const struct timeval each = {0, microseconds};
    const struct itimerval timer = {each, each};
    struct sigaction action;

    memset(&action, 0, sizeof(action));
    action.sa_handler = take_signal;
    CHECK(sigaction(SIGALRM, &action, NULL) == 0);
    CHECK(setitimer(ITIMER_REAL, &timer, NULL) == 0);
    signals = microseconds;
}

static int64_t call(void)
{
    count = 0;
    begun = now_ms();
    CHECK(vsc_put_store(&client, buffer, 0, CALL_MS, NULL) == VSC_UNAVAILABLE);
    return now_ms() - begun;
}

/* Nobody listens: a try at once, after 100 ms and after 200 more; the next pause is cut so that the last try has 100 ms. */
static void nobody(void)
{
    static const int64_t earliest[] = {0, 100, 300, CALL_MS - 100};
    const int64_t took = call();

    CHECK(count == sizeof(earliest) / sizeof(earliest[0]));
    for (size_t at = 0; at < count && at < sizeof(earliest) / sizeof(earliest[0]); at++)
        CHECK(tries[at] >= earliest[at]);
    CHECK(took >= CALL_MS - 100);
}

/* A server that says nothing is waited for to the end. */
static void silent(void)
{
    is_listening = true;
    CHECK(call() >= CALL_MS);
    CHECK(count == 1);
    is_listening = false;
}

int main(int arguments, char **values)
{
    static const int signal_us[] = {0, 10000, 300};
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    const int listener = socket(AF_UNIX, SOCK_STREAM, 0);

    if (arguments != 2)
        return 2;
    memcpy(address.sun_path, values[1], strlen(values[1]) + 1);
    CHECK(bind(listener, (const struct sockaddr *)&address, sizeof(address)) == 0 && listen(listener, 8) == 0);
    CHECK(vsc_init(&client, values[1], vm, VSC_KIND_VARSTORED, NULL, buffer, sizeof(buffer)) == VSC_OK);
    for (size_t at = 0; at < sizeof(signal_us) / sizeof(signal_us[0]); at++) {
        signal_each(signal_us[at]);
        nobody();
        silent();
    }
    signal_each(0);
    (void)close(listener);
    return failures == 0 ? 0 : 1;
}
