#include "portcullis.h"

/* Memory that grows and is thrown away with the instance. */
void *room(size_t len, size_t align) {
    static uintptr_t next, end;
    if (end == 0) {
        next = end = __builtin_wasm_memory_size(0) << 16;
    }
    uintptr_t start = (next + align - 1) & -align;
    if (len > SIZE_MAX - 0xffff - start) {
        __builtin_trap();
    }
    if (start + len > end) {
        size_t pages = (start + len - end + 0xffff) >> 16;
        if (__builtin_wasm_memory_grow(0, pages) == SIZE_MAX) {
            __builtin_trap();
        }
        end += pages << 16;
    }
    next = start + len;
    return (void *)start;
}

/* The host's way to put a request into our memory. */
__attribute__((export_name("cabi_realloc"))) void *portcullis_realloc(void *old, size_t old_len, size_t align, size_t len) {
    char *block = room(len, align);
    for (size_t i = 0; i < old_len && i < len; i++) {
        block[i] = ((char *)old)[i];
    }
    return block;
}

__attribute__((export_name("decide"))) answer *portcullis_decide(const request *asked) {
    static answer to;
    fail(&to, TEXT("no-answer"), TEXT("the policy said nothing"));
    decide(asked, &to);
    return &to;
}

bool text_equals(text a, text b) {
    if (a.len != b.len) {
        return false;
    }
    for (size_t i = 0; i < a.len; i++) {
        if (a.at[i] != b.at[i]) {
            return false;
        }
    }
    return true;
}

static char lower(char c) { return c >= 'A' && c <= 'Z' ? c + ('a' - 'A') : c; }

bool text_equals_ignoring_case(text a, text b) {
    if (a.len != b.len) {
        return false;
    }
    for (size_t i = 0; i < a.len; i++) {
        if (lower(a.at[i]) != lower(b.at[i])) {
            return false;
        }
    }
    return true;
}

bool text_is_under(text path, text prefix) {
    if (path.len < prefix.len || !text_equals((text){path.at, prefix.len}, prefix)) {
        return false;
    }
    return path.len == prefix.len || path.at[prefix.len] == '/' || (prefix.len > 0 && prefix.at[prefix.len - 1] == '/');
}

text text_join(text a, text b) {
    char *both = room(a.len + b.len, 1);
    for (size_t i = 0; i < a.len; i++) {
        both[i] = a.at[i];
    }
    for (size_t i = 0; i < b.len; i++) {
        both[a.len + i] = b.at[i];
    }
    return (text){both, a.len + b.len};
}

const header *find_header(const http_request *http, text name) {
    for (size_t i = 0; i < http->headers.len; i++) {
        if (text_equals_ignoring_case(http->headers.at[i].name, name)) {
            return &http->headers.at[i];
        }
    }
    return NULL;
}

void allow(answer *to) { *to = (answer){0}; }

void deny(answer *to, uint16_t status, text reason) {
    *to = (answer){.decision = {.verdict = {1, reason}, .status = {true, status}}};
}

void fail(answer *to, text reason, text detail) {
    *to = (answer){.failed = 1, .failure = {reason, detail}};
}

void set_header(answer *to, text name, text value) {
    static header lines[HEADERS_MAX];
    to->decision.headers_set.at = lines;
    if (to->decision.headers_set.len < HEADERS_MAX) {
        lines[to->decision.headers_set.len++] = (header){name, {(const uint8_t *)value.at, value.len}};
    }
}

void remove_header(answer *to, text name) {
    static text names[HEADERS_MAX];
    to->decision.headers_remove.at = names;
    if (to->decision.headers_remove.len < HEADERS_MAX) {
        names[to->decision.headers_remove.len++] = name;
    }
}

void add_metadata(answer *to, text key, text value) {
    static metadatum data[METADATA_MAX];
    to->decision.metadata.at = data;
    if (to->decision.metadata.len < METADATA_MAX) {
        data[to->decision.metadata.len++] = (metadatum){key, value};
    }
}
