/* A client of varstore-companion for varstored: the framed protocol, version 1, on a VM's socket.
 *
 * protocol/README.md is the specification; README.md beside this file says what a storage backend does with it. One
 * source file, no dependency but libc on Linux, nothing is allocated: the caller gives the memory. A client belongs to one
 * thread at a time and has one request at a time. No call raises a signal, and descriptors are closed on exec.
 */
#ifndef VARSTORE_COMPANION_H
#define VARSTORE_COMPANION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Sizes in bytes (specification, "Limits"). */
#define VSC_MAX_STORE 131072u
#define VSC_MAX_PAYLOAD 262144u
#define VSC_MAX_TEXT 1024u
#define VSC_MAX_NAME 64u
#define VSC_MAX_PING 64u
#define VSC_MAX_PATH 107u
#define VSC_UUID_BYTES 16u
#define VSC_BUFFER_BYTES (16u + VSC_MAX_PAYLOAD) /* of the buffer for vsc_init: the largest answer, one frame */

/* What became of a call. */
enum vsc_result {
    VSC_OK = 0,
    VSC_REFUSED,     /* The server answered with an error that stays: see error.code. */
    VSC_UNAVAILABLE, /* No answer in the given time: no server, a lost connection, or nothing but "try again". */
    VSC_BROKEN,      /* What answers broke the protocol, and the connection was closed. error.code names the rule. */
    VSC_INVALID      /* An argument out of bounds. Nothing was sent. */
};

/* The server's errors (specification, "Errors"). A later server may send others. */
enum vsc_code {
    VSC_BAD_FRAME = 1,
    VSC_UNSUPPORTED_VERSION = 2,
    VSC_HELLO_REQUIRED = 3,
    VSC_WRONG_VM = 4,
    VSC_UNKNOWN_TYPE = 5,
    VSC_BAD_MESSAGE = 6,
    VSC_UNSUPPORTED_FIELD = 7,
    VSC_BUSY = 8,
    VSC_NOT_A_STORE = 9,
    VSC_STORE_OVER_LIMIT = 10,
    VSC_TOOLSTACK_UNAVAILABLE = 11,
    VSC_TOOLSTACK_REFUSED = 12,
    VSC_UNCLEAR = 13,
    VSC_UNKNOWN_VM = 14,
    VSC_NOT_ALLOWED = 15,
    VSC_NOT_HERE = 16,
    VSC_SHUTTING_DOWN = 17,
    VSC_INTERNAL = 18,
    VSC_INVALID_ARGUMENT = 19,
    VSC_CONFLICT = 20,
    VSC_TIMED_OUT = 21
};

enum vsc_kind { VSC_KIND_VARSTORED = 1, VSC_KIND_TOOL = 2 };
enum vsc_reason { VSC_BOOT = 1, VSC_RESUME = 2, VSC_TOOL = 3 };
enum vsc_outcome { VSC_NOT_ASKED = 0, VSC_UPDATED = 1, VSC_NOTHING_TO_DO = 2, VSC_FAILED = 3 };
enum vsc_verdict { VSC_VERDICT_UNSPECIFIED = 0, VSC_VERDICT_YES = 1, VSC_VERDICT_NO = 2 };
enum vsc_durable { VSC_DURABLE_TOOLSTACK = 1, VSC_DURABLE_JOURNAL = 2 };

/* Why the last call failed; all zero after one that did not. */
struct vsc_error {
    uint16_t code;                /* enum vsc_code, or one of a later list; 0: the server said nothing, or 0 */
    bool try_again;               /* what the server said with it */
    bool maybe_done;              /* the request may have been carried out all the same */
    int system_error;             /* errno of what failed on this side, ECONNRESET for a connection that ended; or 0 */
    char text[VSC_MAX_TEXT + 1u]; /* for the log: UTF-8, control characters replaced by '?', with a terminator */
};

/* A client. Its members are the library's, but for `error`, which the caller reads. */
struct vsc_client {
    struct vsc_error error;
    char path[VSC_MAX_PATH + 1u];
    char name[VSC_MAX_NAME + 1u];
    uint8_t vm[VSC_UUID_BYTES];
    enum vsc_kind kind;
    int fd;                /* -1: not connected */
    uint32_t last_id;      /* of the last request */
    uint32_t pending_id;   /* of the request whose answer has not come; 0: none */
    uint16_t pending_type; /* its type */
    uint8_t *buffer;       /* VSC_BUFFER_BYTES of the caller's */
    size_t filled;         /* bytes of it that were received */
    size_t taken;          /* bytes of it that were read already: the last answer's frame */
};

/* GET_STORE's answer. `store` points into the client's buffer and is good until the next call with that client. */
struct vsc_store {
    bool present; /* false: the toolstack said that there is none, the first boot */
    enum vsc_outcome outcome;
    uint64_t generation; /* for the log */
    const uint8_t *store;
    size_t size;                    /* at most VSC_MAX_STORE */
    char detail[VSC_MAX_TEXT + 1u]; /* with VSC_FAILED: why, for the log; as error.text */
};

/* PUT_STORE's answer: the store is durable. Nothing in it is for the client to act on. */
struct vsc_written {
    enum vsc_verdict verdict;
    enum vsc_durable durable;
    uint64_t generation;
};

/* Prepare a client; nothing is sent. `path`: of the VM's socket, at most VSC_MAX_PATH bytes. `vm`: its UUID, bytes in the order
 * of the text. `name`: the program and its version for the server's log, at most VSC_MAX_NAME bytes of UTF-8, or NULL.
 * `buffer`: at least VSC_BUFFER_BYTES that stay the client's. Returns VSC_OK or VSC_INVALID. */
enum vsc_result vsc_init(struct vsc_client *client, const char *path, const uint8_t vm[VSC_UUID_BYTES], enum vsc_kind kind,
                         const char *name, void *buffer, size_t size);

/* The calls. Each connects and greets when that is needed, also after the daemon was restarted, and does not take longer than
 * `timeout_ms`: up to then it tries again what the specification lets it try again ("Errors", "After a lost connection"),
 * with pauses from 100 ms to 2 s that no signal cuts short, the last time 100 ms before the end, so that there is time for the
 * answer. Each returns one of enum vsc_result and fills `error`.
 *
 * A call that is out of time leaves its connection open, and the next call waits for that answer first: a store that is still
 * on its way must not overtake a newer one. */

/* Connect and greet, if that is not done yet. Not needed before the others. */
enum vsc_result vsc_connect(struct vsc_client *client, uint32_t timeout_ms);

/* Read the store. On any other result than VSC_OK the VM must not start. `answer` is filled on VSC_OK only. */
enum vsc_result vsc_get_store(struct vsc_client *client, enum vsc_reason reason, uint32_t timeout_ms, struct vsc_store *answer);

/* Replace the store. VSC_OK: it is durable. Otherwise the guest is told vsc_guest_status() and its change is taken back;
 * error.maybe_done says that the store may be held nevertheless, until the next one replaces it. `store` must not be in
 * the client's buffer. `answer` may be NULL. */
enum vsc_result vsc_put_store(struct vsc_client *client, const void *store, size_t size, uint32_t timeout_ms,
                              struct vsc_written *answer);

/* Tell the operator that the VM failed Secure Boot verification. `detail`: at most VSC_MAX_TEXT bytes of UTF-8 without NUL, or
 * NULL. A failure goes into the log, and that is all. */
enum vsc_result vsc_sb_failure(struct vsc_client *client, const char *detail, uint32_t timeout_ms);

/* Ask whether the server gets round to answering. `data`: at most VSC_MAX_PING bytes that come back, or NULL. */
enum vsc_result vsc_ping(struct vsc_client *client, const void *data, size_t size, uint32_t timeout_ms);

/* End the connection. A request without an answer is lost then. The client can be used again. Nothing happens to one that is
 * all zero. */
void vsc_close(struct vsc_client *client);

/* What SetVariable returns to the guest after vsc_put_store() returned `result` (UEFI 2.10, appendix D; 64 bits): EFI_SUCCESS,
 * EFI_OUT_OF_RESOURCES or EFI_DEVICE_ERROR. */
uint64_t vsc_guest_status(const struct vsc_client *client, enum vsc_result result);

/* Read a UUID's text, 36 characters. False: it is not one. */
bool vsc_uuid(const char *text, uint8_t vm[VSC_UUID_BYTES]);

/* Words for the log: "refused", "TOOLSTACK_UNAVAILABLE". Never NULL. */
const char *vsc_result_name(enum vsc_result result);
const char *vsc_code_name(uint16_t code);

#ifdef __cplusplus
}
#endif

#endif
