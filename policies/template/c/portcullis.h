/* What a policy in C is built on: what it is asked, what it answers, and what it may use of the host.
 *
 * A policy defines `decide`, which is called once, in a fresh instance: nothing it keeps is there the next time, and
 * nothing has to be given back. The structures have the layout that the component model gives to the types of the world,
 * so nothing is converted. No C library is needed; one for WASI may be linked.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Text is UTF-8 and has a length; no zero ends it. */
typedef struct {
    const char *at;
    size_t len;
} text;

typedef struct {
    const uint8_t *at;
    size_t len;
} bytes;

typedef struct {
    text name;
    bytes value;
} header;

typedef struct {
    bool is_some;
    text some;
} optional_text;

typedef struct {
    bool is_some;
    bytes some;
} optional_bytes;

enum { ADDRESS_UNKNOWN, ADDRESS_IPV4, ADDRESS_IPV6 };

/* One end of the proxied connection. */
typedef struct {
    uint8_t address_kind;
    union {
        uint8_t ipv4[4];
        /* Most significant group first. */
        uint16_t ipv6[8];
    } address;
    uint16_t port;
    /* Who the proxy has authenticated there, for example a SPIFFE id. */
    optional_text principal;
} peer;

typedef struct {
    text name;
    text value;
} attribute;

typedef struct {
    text method;
    text scheme;
    text host;
    /* Without the query. */
    text path;
    /* Without the question mark. */
    optional_text query;
    struct {
        const header *at;
        size_t len;
    } headers;
    optional_bytes body;
    peer source;
    peer destination;
    /* What the proxy says beyond HTTP: "tls.sni", "route.name". A name may come twice. */
    struct {
        const attribute *at;
        size_t len;
    } attributes;
} http_request;

/* Bytes that only the policy understands. */
typedef struct {
    text content_type;
    bytes content;
} opaque;

enum { REQUEST_HTTP, REQUEST_OPAQUE };

typedef struct {
    uint8_t kind;
    union {
        http_request http;
        opaque opaque;
    };
} request;

typedef struct {
    text key;
    text value;
} metadatum;

/* How many of each an answer may have here; more are left out. */
enum { HEADERS_MAX = 16, METADATA_MAX = 16 };
enum { CACHE_REQUEST, CACHE_CLIENT, CACHE_PATH };

typedef struct {
    struct {
        uint8_t denied;
        text reason;
    } verdict;
    struct {
        bool is_some;
        uint16_t some;
    } status;
    struct {
        header *at;
        size_t len;
    } headers_set, headers_append;
    struct {
        text *at;
        size_t len;
    } headers_remove;
    optional_bytes body;
    struct {
        metadatum *at;
        size_t len;
    } metadata;
    /* How long the answer holds; 0 is not to be cached. */
    uint32_t cache_ms;
    uint8_t cache_scope;
} decision;

/* A decision, or why there is none. `allow`, `deny` and `fail` make one. */
typedef struct {
    uint8_t failed;
    union {
        decision decision;
        struct {
            text reason;
            text detail;
        } failure;
    };
} answer;

_Static_assert(sizeof(request) == 140 && sizeof(answer) == 72, "not the layout of portcullis:policy@1.0.0");

/* Yours. What it is given is a failure until it says something else. */
void decide(const request *asked, answer *to);

#define TEXT(literal) ((text){(literal), sizeof(literal) - 1})

bool text_equals(text a, text b);
/* Names of headers are the same in whatever case. */
bool text_equals_ignoring_case(text a, text b);
/* True if `path` is `prefix` or lies below it, segment by segment: /a covers /a and /a/b, not /ab. */
bool text_is_under(text path, text prefix);
/* Both, one after the other. */
text text_join(text a, text b);

/* The first header of that name, or null. */
const header *find_header(const http_request *http, text name);

/* Lets the request through. */
void allow(answer *to);
/* Stops it. The status is what the client should see, the reason what the operator should. */
void deny(answer *to, uint16_t status, text reason);
/* The policy cannot decide. The reason is for counting, the detail for people. */
void fail(answer *to, text reason, text detail);
/* What else is to be done; after `allow` or `deny`. */
void set_header(answer *to, text name, text value);
void remove_header(answer *to, text name);
void add_metadata(answer *to, text key, text value);

/* Room that is never given back. */
void *room(size_t len, size_t align);

/* What is used of these becomes an import of the policy, which a trust policy has to permit. */
#define HOST(interface, function) \
    __attribute__((import_module("portcullis:policy/" interface "@1.0.0"), import_name(function)))

/* When the request was received, nanoseconds since 1970. It stands still while the policy runs. */
HOST("clock", "now") uint64_t now(void);
/* From the request's seed: a replay with the same seed sees the same numbers. */
HOST("random", "get-u64") uint64_t random_number(void);
enum { LOG_DEBUG, LOG_INFO, LOG_WARN };
/* A line for the operator. At most 16 lines of 1 KiB are kept per decision. */
HOST("log", "write") void log_line(uint32_t level, const char *at, size_t len);
/* The value of a key in the data snapshots that the policy's manifest names. */
HOST("data", "get") void data_get(const char *key, size_t len, optional_bytes *value);
typedef struct {
    text key;
    bytes value;
} entry;
typedef struct {
    const entry *at;
    size_t len;
} entry_list;
/* The entries whose key starts with a prefix, in the order of the keys' bytes: the first `limit` of those after a key, or
 * of all. Fewer may come, but none only where there is none. */
HOST("data", "entries")
void data_entries(const char *prefix, size_t len, uint32_t is_after, const char *after, size_t after_len, uint32_t limit,
                  entry_list *found);
/* Adds to a counter that the policy's manifest declares. */
HOST("metric", "add") void metric_add(const char *name, size_t len, uint64_t value);
