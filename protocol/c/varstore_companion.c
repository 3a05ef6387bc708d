/* See varstore_companion.h. Section names in comments are those of protocol/README.md. */
#ifndef _POSIX_C_SOURCE
#define _POSIX_C_SOURCE 200809L
#endif

#include "varstore_companion.h"

#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define HEADER_BYTES 16u
#define FIELD_HEADER_BYTES 8u
#define HEAD_BYTES 128u /* of a request without its last value; HELLO's is the longest: 93 */
#define MAX_FIELDS 64u
#define MAX_KNOWN_FIELDS 5u
#define VERSION 1u
#define ANSWER 0x8000u
#define MUST_UNDERSTAND 0x8000u
#define FIRST_PAUSE_MS 100
#define LONGEST_PAUSE_MS 2000
#define LAST_TRY_MS 100 /* what the last try has: one at the deadline could send a store and hear nothing of it */

enum type { HELLO = 0x0001, PING = 0x0002, GET_STORE = 0x0010, PUT_STORE = 0x0011, SB_FAILURE = 0x0012, ERROR = 0xFFFF };

/* ---- Answers as tables ("Messages"); the sets of choices have no gaps, so each is a range ------------------------------ */

enum value_kind { NUMBER, OCTETS, TEXT };

struct field {
    uint16_t tag;
    bool required;
    enum value_kind kind;
    uint32_t min, max;  /* bytes of the value */
    uint64_t low, high; /* of a number */
};

struct table {
    const struct field *fields;
    size_t count;
};

struct value {
    const uint8_t *data; /* NULL: absent */
    size_t size;
    uint64_t number;
};

#define TABLE(fields) {fields, sizeof(fields) / sizeof(fields)[0]}

static const struct field HELLO_FIELDS[] = {
    {1, true, NUMBER, 2, 2, 1, UINT16_MAX},
    {2, true, NUMBER, 8, 8, 0, UINT64_MAX},
    {3, true, NUMBER, 4, 4, 135168, VSC_MAX_PAYLOAD},
    {4, true, NUMBER, 4, 4, 1, 1024},
    {5, false, TEXT, 0, VSC_MAX_NAME, 0, 0},
};
static const struct field PING_FIELDS[] = {{1, false, OCTETS, 0, VSC_MAX_PING, 0, 0}};
static const struct field GET_STORE_FIELDS[] = {
    {1, true, NUMBER, 1, 1, 0, 1},
    {2, true, NUMBER, 8, 8, 0, UINT64_MAX},
    {3, true, NUMBER, 1, 1, VSC_NOT_ASKED, VSC_FAILED},
    {4, false, OCTETS, 0, VSC_MAX_STORE, 0, 0},
    {5, false, TEXT, 0, VSC_MAX_TEXT, 0, 0},
};
static const struct field PUT_STORE_FIELDS[] = {
    {1, true, NUMBER, 1, 1, VSC_VERDICT_UNSPECIFIED, VSC_VERDICT_NO},
    {2, true, NUMBER, 1, 1, VSC_DURABLE_TOOLSTACK, VSC_DURABLE_JOURNAL},
    {3, true, NUMBER, 8, 8, 0, UINT64_MAX},
};
static const struct field ERROR_FIELDS[] = {
    {1, true, NUMBER, 2, 2, 0, UINT16_MAX}, {2, true, NUMBER, 1, 1, 0, 1}, {3, true, TEXT, 0, VSC_MAX_TEXT, 0, 0}};

static const struct table HELLO_ANSWER = TABLE(HELLO_FIELDS);
static const struct table PING_ANSWER = TABLE(PING_FIELDS);
static const struct table GET_STORE_ANSWER = TABLE(GET_STORE_FIELDS);
static const struct table PUT_STORE_ANSWER = TABLE(PUT_STORE_FIELDS);
static const struct table SB_FAILURE_ANSWER = {NULL, 0};
static const struct table ERROR_MESSAGE = TABLE(ERROR_FIELDS);

/* ---- Numbers and text -------------------------------------------------------------------------------------------------- */

static uint64_t load(const uint8_t *data, size_t size)
{
    uint64_t number = 0;

    while (size-- > 0)
        number = number << 8 | data[size];
    return number;
}

static void save(uint8_t *data, uint64_t number, size_t size)
{
    for (size_t at = 0; at < size; at++, number >>= 8)
        data[at] = (uint8_t)number;
}

/* The length of the UTF-8 character that begins there (RFC 3629); 0: none does. */
static size_t character(const uint8_t *text, size_t left)
{
    static const uint8_t first[][2] = {{0x80, 0xbf}, {0xa0, 0xbf}, {0x80, 0x9f}, {0x90, 0xbf}, {0x80, 0x8f}};
    const uint8_t lead = text[0];
    const uint8_t *bounds = first[lead == 0xe0 ? 1 : lead == 0xed ? 2 : lead == 0xf0 ? 3 : lead == 0xf4 ? 4 : 0];
    size_t size = lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : 2;

    if (lead < 0x80)
        return 1;
    if (lead < 0xc2 || lead > 0xf4 || size > left || text[1] < bounds[0] || text[1] > bounds[1])
        return 0;
    for (size_t at = 2; at < size; at++)
        if ((text[at] & 0xc0) != 0x80)
            return 0;
    return size;
}

static bool is_text(const uint8_t *text, size_t size)
{
    for (size_t at = 0, step; at < size; at += step) {
        step = character(text + at, size - at);
        if (step == 0 || text[at] == 0)
            return false;
    }
    return true;
}

/* Copy a checked text for the log: a control character, also one of U+0080 to U+009F, cannot forge a line there. */
static void copy_text(char to[VSC_MAX_TEXT + 1u], const struct value *value)
{
    for (size_t at = 0; at < value->size; at++) {
        uint8_t byte = value->data[at];
        bool second = at > 0 && value->data[at - 1] == 0xc2 && byte < 0xa0;

        if (byte < 0x20 || byte == 0x7f || second)
            byte = '?';
        if (second)
            to[at - 1] = '?';
        to[at] = (char)byte;
    }
    to[value->size] = '\0';
}

/* ---- Failures ---------------------------------------------------------------------------------------------------------- */

static void blame(struct vsc_client *client, uint16_t code, bool try_again, int system_error, const char *text)
{
    client->error.code = code;
    client->error.try_again = try_again;
    client->error.system_error = system_error;
    (void)strncpy(client->error.text, text, VSC_MAX_TEXT);
}

static enum vsc_result invalid(struct vsc_client *client, const char *text)
{
    memset(&client->error, 0, sizeof(client->error));
    blame(client, 0, false, EINVAL, text);
    return VSC_INVALID;
}

static enum vsc_result broken(struct vsc_client *client, uint16_t code, const char *text)
{
    vsc_close(client);
    blame(client, code, false, 0, text);
    return VSC_BROKEN;
}

static enum vsc_result lost(struct vsc_client *client, int system_error, const char *text)
{
    vsc_close(client);
    blame(client, 0, true, system_error, text);
    return VSC_UNAVAILABLE;
}

/* The time is over, or it could not be waited for. What the server said before says more, if it did. */
static enum vsc_result late(struct vsc_client *client, int system_error)
{
    if (client->error.code == 0)
        blame(client, 0, true, system_error, "no answer in time");
    return VSC_UNAVAILABLE;
}

/* ---- Time -------------------------------------------------------------------------------------------------------------- */

static int64_t now_ms(void)
{
    struct timespec now = {0, 0};

    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* Wait until the socket can be used; 0, or what poll(2) says, ETIMEDOUT at the deadline. */
static int wait_for(int fd, short events, int64_t deadline)
{
    for (;;) {
        struct pollfd entry = {fd, events, 0};
        int64_t left = deadline - now_ms();
        int ready = poll(&entry, 1, left <= 0 ? 0 : left < INT_MAX ? (int)left : INT_MAX);

        if (ready > 0)
            return 0;
        if (ready < 0 && errno != EINTR)
            return errno;
        if (deadline <= now_ms())
            return ETIMEDOUT;
    }
}

/* Sleep until then, however many signals come. */
static void sleep_until(int64_t moment)
{
    const struct timespec then = {.tv_sec = (time_t)(moment / 1000), .tv_nsec = (long)(moment % 1000) * 1000000};

    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &then, NULL) == EINTR)
        ;
}

/* ---- Frames ("Frames") -------------------------------------------------------------------------------------------------- */

struct request {
    uint16_t type;
    uint8_t head[HEAD_BYTES]; /* the header and the payload up to the last value */
    size_t head_size;
    const void *body; /* the last value, where the caller has it */
    size_t body_size;
    const struct table *answer;
    bool maybe_done;
};

static struct request request_of(enum type type, const struct table *answer)
{
    struct request request = {.type = (uint16_t)type, .head_size = HEADER_BYTES, .answer = answer};

    return request;
}

static void add_field(struct request *request, uint16_t tag, size_t size)
{
    uint8_t *field = request->head + request->head_size;

    save(field, tag, 2);
    save(field + 2, 0, 2);
    save(field + 4, size, 4);
    request->head_size += FIELD_HEADER_BYTES;
}

static void add_number(struct request *request, uint16_t tag, uint64_t number, size_t size)
{
    add_field(request, tag, size);
    save(request->head + request->head_size, number, size);
    request->head_size += size;
}

static void add_body(struct request *request, uint16_t tag, const void *body, size_t size)
{
    add_field(request, tag, size);
    request->body = body;
    request->body_size = size;
}

/* Send a whole frame. 0, or what failed; ETIMEDOUT with `sent` 0 leaves the connection as it was. */
static int send_frame(struct vsc_client *client, struct request *request, int64_t deadline, size_t *sent)
{
    const size_t whole = request->head_size + request->body_size;

    for (*sent = 0; *sent < whole;) {
        const size_t head = *sent < request->head_size ? *sent : request->head_size;
        const size_t body = *sent - head;
        struct iovec pieces[2] = {
            {request->head + head, request->head_size - head},
            {request->body_size == 0 ? NULL : (void *)((uintptr_t)request->body + body), request->body_size - body},
        };
        struct msghdr message = {.msg_iov = pieces, .msg_iovlen = 2};
        ssize_t taken = sendmsg(client->fd, &message, MSG_NOSIGNAL);

        if (taken >= 0) {
            *sent += (size_t)taken;
        } else if (errno == EAGAIN || errno == EWOULDBLOCK) {
            int failed = wait_for(client->fd, POLLOUT, deadline);

            if (failed != 0)
                return failed;
        } else if (errno != EINTR) {
            return errno;
        }
    }
    return 0;
}

/* Receive until the buffer begins with a whole frame. What was received stays there when the time is over. */
static enum vsc_result receive_frame(struct vsc_client *client, int64_t deadline)
{
    size_t wanted = HEADER_BYTES;

    memmove(client->buffer, client->buffer + client->taken, client->filled - client->taken);
    client->filled -= client->taken;
    client->taken = 0;
    for (bool checked = false;;) {
        if (!checked && client->filled >= HEADER_BYTES) {
            uint64_t length = load(client->buffer + 12, 4);

            if (memcmp(client->buffer, "VSCP", 4) != 0)
                return broken(client, VSC_BAD_FRAME, "a frame does not begin with VSCP");
            if (load(client->buffer + 4, 2) != VERSION)
                return broken(client, VSC_UNSUPPORTED_VERSION, "a frame of another version than 1");
            if (length > VSC_MAX_PAYLOAD)
                return broken(client, VSC_BAD_FRAME, "a payload of more than 262,144 bytes");
            wanted += (size_t)length;
            checked = true;
        }
        if (checked && client->filled >= wanted) {
            client->taken = wanted;
            return VSC_OK;
        }

        int failed = wait_for(client->fd, POLLIN, deadline);
        ssize_t count;

        if (failed != 0)
            return late(client, failed);
        count = recv(client->fd, client->buffer + client->filled, VSC_BUFFER_BYTES - client->filled, 0);
        if (count > 0)
            client->filled += (size_t)count;
        else if (count == 0)
            return lost(client, ECONNRESET, "the server closed the connection");
        else if (errno != EINTR && errno != EAGAIN && errno != EWOULDBLOCK)
            return lost(client, errno, "the connection was lost");
    }
}

/* ---- Payloads ("Fields") ------------------------------------------------------------------------------------------------ */

static bool fits(const struct field *field, struct value *value)
{
    if (value->size < field->min || value->size > field->max)
        return false;
    if (field->kind == TEXT)
        return is_text(value->data, value->size);
    if (field->kind == NUMBER) {
        value->number = load(value->data, value->size);
        return value->number >= field->low && value->number <= field->high;
    }
    return true;
}

/* Read a payload into one value a field of the table. 0, or the first rule that it breaks, in the order of "Fields". */
static uint16_t read_payload(const uint8_t *payload, size_t size, const struct table *table, struct value *values)
{
    size_t fields = 0, at, length;
    uint64_t last = 0;
    bool misunderstood = false;

    for (size_t index = 0; index < table->count; index++)
        values[index] = (struct value){NULL, 0, 0};
    for (at = 0; at < size; at += FIELD_HEADER_BYTES + length) {
        uint64_t tag;
        size_t index = 0;

        if (size - at < FIELD_HEADER_BYTES || ++fields > MAX_FIELDS)
            return VSC_BAD_MESSAGE;
        tag = load(payload + at, 2);
        length = (size_t)load(payload + at + 4, 4);
        if (tag <= last || load(payload + at + 2, 2) != 0 || length > size - at - FIELD_HEADER_BYTES)
            return VSC_BAD_MESSAGE;
        last = tag;
        while (index < table->count && table->fields[index].tag != tag)
            index++;
        if (index < table->count)
            values[index] = (struct value){payload + at + FIELD_HEADER_BYTES, length, 0};
        else if ((tag & MUST_UNDERSTAND) != 0)
            misunderstood = true;
    }
    if (misunderstood)
        return VSC_UNSUPPORTED_FIELD;
    for (size_t index = 0; index < table->count; index++)
        if (values[index].data != NULL && !fits(&table->fields[index], &values[index]))
            return VSC_BAD_MESSAGE;
    for (size_t index = 0; index < table->count; index++)
        if (values[index].data == NULL && table->fields[index].required)
            return VSC_BAD_MESSAGE;
    return 0;
}

/* ---- One request and its answer ("States", "Requests and answers") ------------------------------------------------------- */

static bool ends_connection(uint64_t code)
{
    return (code >= VSC_BAD_FRAME && code <= VSC_WRONG_VM) || code == VSC_SHUTTING_DOWN || code == VSC_TIMED_OUT;
}

/* Take in an ERROR. VSC_UNAVAILABLE: the same request may be sent again. */
static enum vsc_result take_error(struct vsc_client *client, uint64_t id, const struct value values[MAX_KNOWN_FIELDS])
{
    const uint16_t code = (uint16_t)values[0].number;
    const bool again = values[1].number != 0 || (code == VSC_UNCLEAR && client->pending_type == PUT_STORE);

    if (id == 0 || ends_connection(code) || client->pending_type == HELLO)
        vsc_close(client);
    client->pending_id = 0;
    blame(client, code, values[1].number != 0, 0, "");
    copy_text(client->error.text, &values[2]);
    return again ? VSC_UNAVAILABLE : VSC_REFUSED;
}

/* Receive what the pending request is answered with. `error_of`: the id that an ERROR carried, 0 also where none came. */
static enum vsc_result receive_answer(struct vsc_client *client, const struct table *table, int64_t deadline,
                                      struct value values[MAX_KNOWN_FIELDS], uint64_t *error_of)
{
    enum vsc_result result = receive_frame(client, deadline);
    const uint8_t *frame = client->buffer;
    uint64_t type, id;
    bool is_error;
    uint16_t rule;

    *error_of = 0;
    if (result != VSC_OK)
        return result;
    type = load(frame + 6, 2);
    id = load(frame + 8, 4);
    is_error = type == ERROR;
    if (is_error ? id != 0 && id != client->pending_id : id != client->pending_id || type != (client->pending_type | ANSWER))
        return broken(client, VSC_BAD_FRAME, "an answer to something that was not asked");
    rule = read_payload(frame + HEADER_BYTES, client->taken - HEADER_BYTES, is_error ? &ERROR_MESSAGE : table, values);
    if (rule != 0)
        return broken(client, rule, "an answer that cannot be read");
    if (is_error) {
        *error_of = id;
        return take_error(client, id, values);
    }
    client->pending_id = 0;
    return VSC_OK;
}

static enum vsc_result exchange(struct vsc_client *client, struct request *request, int64_t deadline,
                                struct value values[MAX_KNOWN_FIELDS])
{
    const bool maybe_before = request->maybe_done;
    enum vsc_result result;
    uint64_t error_of;
    size_t sent;
    int failed;

    if (++client->last_id == 0)
        client->last_id = 1;
    memcpy(request->head, "VSCP", 4);
    save(request->head + 4, VERSION, 2);
    save(request->head + 6, request->type, 2);
    save(request->head + 8, client->last_id, 4);
    save(request->head + 12, request->head_size - HEADER_BYTES + request->body_size, 4);

    failed = send_frame(client, request, deadline, &sent);
    if (failed == ETIMEDOUT) {
        if (sent > 0)
            vsc_close(client);
        return late(client, failed);
    }
    /* A server that closed may have said why before. */
    if (failed != 0 && failed != EPIPE && failed != ECONNRESET)
        return lost(client, failed, "the request could not be sent");
    client->pending_id = client->last_id;
    client->pending_type = request->type;
    if (failed == 0)
        request->maybe_done = true;

    result = receive_answer(client, request->answer, deadline, values, &error_of);
    if (result == VSC_OK && failed != 0)
        return broken(client, VSC_BAD_FRAME, "an answer to a request that was not sent");
    if (error_of != 0 && client->error.code != VSC_UNCLEAR)
        request->maybe_done = maybe_before;
    /* Nothing may follow half a frame; and of what is waited for, only a store must not be overtaken by the next request. */
    if (failed != 0 || (client->pending_id != 0 && client->pending_type != PUT_STORE))
        vsc_close(client);
    return result;
}

/* Wait for the answer to a store that an earlier call gave up; whether it was taken no longer matters. */
static enum vsc_result settle(struct vsc_client *client, int64_t deadline)
{
    struct value values[MAX_KNOWN_FIELDS];
    uint64_t error_of;
    enum vsc_result result = receive_answer(client, &PUT_STORE_ANSWER, deadline, values, &error_of);

    /* An error was the older request's, and says nothing of the next one; it may have ended the connection. */
    if (result == VSC_REFUSED || error_of != 0) {
        memset(&client->error, 0, sizeof(client->error));
        if (client->fd < 0)
            return lost(client, ECONNRESET, "the server closed the connection");
        return VSC_OK;
    }
    return result;
}

static enum vsc_result greet(struct vsc_client *client, int64_t deadline)
{
    struct request hello = request_of(HELLO, &HELLO_ANSWER);
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    struct value values[MAX_KNOWN_FIELDS];
    enum vsc_result result;

    memcpy(address.sun_path, client->path, strlen(client->path) + 1);
    client->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (client->fd < 0)
        return lost(client, errno, "no socket could be made");
    if (connect(client->fd, (const struct sockaddr *)&address, sizeof(address)) != 0)
        return lost(client, errno, "no server answers at the socket");

    add_number(&hello, 1, VERSION, 2);
    add_number(&hello, 2, VERSION, 2);
    add_number(&hello, 3, 0, 8);
    add_number(&hello, 4, client->kind, 1);
    add_field(&hello, 5, VSC_UUID_BYTES);
    memcpy(hello.head + hello.head_size, client->vm, VSC_UUID_BYTES);
    hello.head_size += VSC_UUID_BYTES;
    if (client->name[0] != '\0')
        add_body(&hello, 6, client->name, strlen(client->name));
    result = exchange(client, &hello, deadline, values);
    if (result == VSC_OK && values[0].number != VERSION)
        return broken(client, VSC_UNSUPPORTED_VERSION, "a version that was not offered");
    if (result != VSC_OK)
        vsc_close(client);
    return result;
}

/* One request, tried again while that is allowed and there is time ("Errors", "After a lost connection"). `request` NULL: only
 * greet. */
static enum vsc_result call(struct vsc_client *client, struct request *request, uint32_t timeout_ms,
                            struct value values[MAX_KNOWN_FIELDS])
{
    const int64_t deadline = now_ms() + timeout_ms, last_try = deadline - LAST_TRY_MS;
    int64_t pause = client->fd < 0 ? FIRST_PAUSE_MS : 0; /* an idle connection that turns out to be dead costs none */
    int64_t now;
    enum vsc_result result;

    if (client->buffer == NULL)
        return invalid(client, "the client was not made by vsc_init");
    memset(&client->error, 0, sizeof(client->error));
    for (;;) {
        result = VSC_OK;
        if (client->fd < 0)
            result = greet(client, deadline);
        else if (client->pending_id != 0)
            result = settle(client, deadline);
        if (result == VSC_OK && request != NULL)
            result = exchange(client, request, deadline, values);
        if (client->fd >= 0 && pause == 0)
            pause = FIRST_PAUSE_MS;
        now = now_ms();
        if (result != VSC_UNAVAILABLE || now >= (pause == 0 ? deadline : last_try))
            break;
        if (pause != 0)
            sleep_until(now + pause < last_try ? now + pause : last_try);
        pause = pause == 0 ? FIRST_PAUSE_MS : pause < LONGEST_PAUSE_MS / 2 ? pause * 2 : LONGEST_PAUSE_MS;
    }
    if (result == VSC_OK)
        memset(&client->error, 0, sizeof(client->error));
    else
        client->error.maybe_done = request != NULL && request->maybe_done;
    return result;
}

/* ---- The header's functions --------------------------------------------------------------------------------------------- */

enum vsc_result vsc_init(struct vsc_client *client, const char *path, const uint8_t vm[VSC_UUID_BYTES], enum vsc_kind kind,
                         const char *name, void *buffer, size_t size)
{
    memset(client, 0, sizeof(*client));
    client->fd = -1;
    if (path == NULL || path[0] == '\0' || strlen(path) > VSC_MAX_PATH)
        return invalid(client, "the socket's path has 1 to 107 bytes");
    if (name != NULL && (strlen(name) > VSC_MAX_NAME || !is_text((const uint8_t *)name, strlen(name))))
        return invalid(client, "a name has at most 64 bytes of UTF-8");
    if (vm == NULL || buffer == NULL || size < VSC_BUFFER_BYTES || (kind != VSC_KIND_VARSTORED && kind != VSC_KIND_TOOL))
        return invalid(client, "a VM, a kind and a buffer of 262,160 bytes are needed");
    memcpy(client->path, path, strlen(path));
    if (name != NULL)
        memcpy(client->name, name, strlen(name));
    memcpy(client->vm, vm, VSC_UUID_BYTES);
    client->kind = kind;
    client->buffer = buffer;
    return VSC_OK;
}

void vsc_close(struct vsc_client *client)
{
    /* One that vsc_init never saw may be all zero, and 0 is a descriptor of somebody else's. */
    if (client->buffer == NULL)
        return;
    if (client->fd >= 0)
        (void)close(client->fd);
    client->fd = -1;
    client->pending_id = 0;
    client->filled = client->taken = 0;
}

enum vsc_result vsc_connect(struct vsc_client *client, uint32_t timeout_ms)
{
    return call(client, NULL, timeout_ms, NULL);
}

enum vsc_result vsc_get_store(struct vsc_client *client, enum vsc_reason reason, uint32_t timeout_ms, struct vsc_store *answer)
{
    struct request request = request_of(GET_STORE, &GET_STORE_ANSWER);
    struct value values[MAX_KNOWN_FIELDS];
    enum vsc_result result;

    if (answer == NULL || reason < VSC_BOOT || reason > VSC_TOOL)
        return invalid(client, "a reason and room for the answer are needed");
    add_number(&request, 1, reason, 1);
    result = call(client, &request, timeout_ms, values);
    if (result != VSC_OK)
        return result;
    if ((values[0].number == 1) != (values[3].data != NULL))
        return broken(client, VSC_BAD_MESSAGE, "a store is there exactly when it is present");
    if (values[4].data != NULL && values[2].number != VSC_FAILED)
        return broken(client, VSC_BAD_MESSAGE, "the reason of a failure that was none");
    answer->present = values[3].data != NULL;
    answer->outcome = (enum vsc_outcome)values[2].number;
    answer->generation = values[1].number;
    answer->store = values[3].data;
    answer->size = values[3].size;
    copy_text(answer->detail, &values[4]);
    return VSC_OK;
}

enum vsc_result vsc_put_store(struct vsc_client *client, const void *store, size_t size, uint32_t timeout_ms,
                              struct vsc_written *answer)
{
    struct request request = request_of(PUT_STORE, &PUT_STORE_ANSWER);
    struct value values[MAX_KNOWN_FIELDS];
    const uintptr_t begin = (uintptr_t)store, buffer = (uintptr_t)client->buffer;
    enum vsc_result result;

    if (size > VSC_MAX_STORE || (store == NULL && size > 0))
        return invalid(client, "a store has at most 131,072 bytes");
    if (size > 0 && begin < buffer + VSC_BUFFER_BYTES && buffer < begin + size)
        return invalid(client, "the store is in the client's buffer, where answers are received");
    add_body(&request, 1, store, size);
    result = call(client, &request, timeout_ms, values);
    if (result == VSC_OK && answer != NULL) {
        answer->verdict = (enum vsc_verdict)values[0].number;
        answer->durable = (enum vsc_durable)values[1].number;
        answer->generation = values[2].number;
    }
    return result;
}

enum vsc_result vsc_sb_failure(struct vsc_client *client, const char *detail, uint32_t timeout_ms)
{
    struct request request = request_of(SB_FAILURE, &SB_FAILURE_ANSWER);
    struct value values[MAX_KNOWN_FIELDS];
    const size_t size = detail == NULL ? 0 : strlen(detail);

    if (size > VSC_MAX_TEXT || (size > 0 && !is_text((const uint8_t *)detail, size)))
        return invalid(client, "a detail has at most 1,024 bytes of UTF-8");
    if (detail != NULL)
        add_body(&request, 1, detail, size);
    return call(client, &request, timeout_ms, values);
}

enum vsc_result vsc_ping(struct vsc_client *client, const void *data, size_t size, uint32_t timeout_ms)
{
    struct request request = request_of(PING, &PING_ANSWER);
    struct value values[MAX_KNOWN_FIELDS];
    enum vsc_result result;

    if (size > VSC_MAX_PING || (data == NULL && size > 0))
        return invalid(client, "a ping has at most 64 bytes");
    if (data != NULL)
        add_body(&request, 1, data, size);
    result = call(client, &request, timeout_ms, values);
    if (result == VSC_OK && ((values[0].data != NULL) != (data != NULL) || values[0].size != size ||
                             (size > 0 && memcmp(values[0].data, data, size) != 0)))
        return broken(client, VSC_BAD_MESSAGE, "a ping came back changed");
    return result;
}

uint64_t vsc_guest_status(const struct vsc_client *client, enum vsc_result result)
{
    if (result == VSC_OK)
        return 0;
    return UINT64_C(0x8000000000000000) | (result == VSC_REFUSED && client->error.code == VSC_STORE_OVER_LIMIT ? 9u : 7u);
}

bool vsc_uuid(const char *text, uint8_t vm[VSC_UUID_BYTES])
{
    static const char digits[] = "0123456789abcdef0123456789ABCDEF";
    size_t nibble = 0;

    for (size_t at = 0; at < 36; at++) {
        const bool dash = at == 8 || at == 13 || at == 18 || at == 23;
        const char *digit = text[at] == '\0' ? NULL : strchr(digits, text[at]);

        if (dash ? text[at] != '-' : digit == NULL)
            return false;
        if (!dash) {
            const unsigned int value = (unsigned int)(digit - digits) & 15u;

            vm[nibble / 2] = (uint8_t)(nibble % 2 == 0 ? value << 4 : vm[nibble / 2] | value);
            nibble++;
        }
    }
    return text[36] == '\0';
}

const char *vsc_result_name(enum vsc_result result)
{
    static const char *const names[] = {"ok", "refused", "unavailable", "broken", "invalid"};

    return (size_t)result < sizeof(names) / sizeof(names[0]) ? names[result] : "unknown";
}

const char *vsc_code_name(uint16_t code)
{
    static const char *const names[] = {
        "none",          "BAD_FRAME",         "UNSUPPORTED_VERSION", "HELLO_REQUIRED",   "WRONG_VM",
        "UNKNOWN_TYPE",  "BAD_MESSAGE",       "UNSUPPORTED_FIELD",   "BUSY",             "NOT_A_STORE",
        "STORE_OVER_LIMIT", "TOOLSTACK_UNAVAILABLE", "TOOLSTACK_REFUSED", "UNCLEAR",     "UNKNOWN_VM",
        "NOT_ALLOWED",   "NOT_HERE",          "SHUTTING_DOWN",       "INTERNAL",         "INVALID_ARGUMENT",
        "CONFLICT",      "TIMED_OUT",
    };

    return code < sizeof(names) / sizeof(names[0]) ? names[code] : "an error of a later list";
}
