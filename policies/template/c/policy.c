/* Who may do what: roles by the identity that the proxy has authenticated, and rules by path and method. */
#include "portcullis.h"

/* Lists end with an empty text. */
typedef text list[6];

/* Which role an identity has that is this one or below it. The first that fits counts. */
static const struct {
    text identity, role;
} roles[] = {
    {TEXT("spiffe://shop.example/web"), TEXT("reader")},
    {TEXT("spiffe://shop.example/checkout"), TEXT("writer")},
    {TEXT("spiffe://shop.example/ops"), TEXT("admin")},
};

/* Who may use which method below which path. The first path that fits counts; what no rule names is nobody's. */
static const struct {
    text path;
    list methods, roles;
} rules[] = {
    {TEXT("/health"), {TEXT("GET")}, {TEXT("anyone")}},
    {TEXT("/catalog"), {TEXT("GET"), TEXT("HEAD")}, {TEXT("reader"), TEXT("writer"), TEXT("admin")}},
    {TEXT("/orders"), {TEXT("GET"), TEXT("POST")}, {TEXT("writer"), TEXT("admin")}},
    {TEXT("/admin"), {TEXT("GET"), TEXT("POST"), TEXT("PUT"), TEXT("DELETE")}, {TEXT("admin")}},
};

static bool contains(const list all, text one) {
    for (; all->len > 0; all++) {
        if (text_equals(*all, one)) {
            return true;
        }
    }
    return false;
}

static text role_of(text principal) {
    for (size_t i = 0; i < sizeof roles / sizeof *roles; i++) {
        if (text_is_under(principal, roles[i].identity)) {
            return roles[i].role;
        }
    }
    return (text){0};
}

static void decide_http(const http_request *http, answer *to) {
    for (size_t i = 0; i < sizeof rules / sizeof *rules; i++) {
        text path = rules[i].path;
        if (!text_is_under(http->path, path)) {
            continue;
        }
        if (!contains(rules[i].methods, http->method)) {
            return deny(to, 405, text_join(TEXT("method not allowed below "), path));
        }
        text role = TEXT("anyone");
        if (!contains(rules[i].roles, role)) {
            if (!http->source.principal.is_some) {
                return deny(to, 401, TEXT("nobody is authenticated"));
            }
            role = role_of(http->source.principal.some);
            if (role.len == 0) {
                return deny(to, 403, TEXT("identity has no role"));
            }
            if (!contains(rules[i].roles, role)) {
                return deny(to, 403, text_join(text_join(TEXT("role "), role), text_join(TEXT(" may not use "), path)));
            }
        }
        allow(to);
        /* What the client says of itself is not believed by anybody behind the proxy. */
        set_header(to, TEXT("x-role"), role);
        remove_header(to, TEXT("x-forwarded-user"));
        add_metadata(to, TEXT("rule"), path);
        return;
    }
    deny(to, 404, TEXT("no rule for this path"));
}

void decide(const request *asked, answer *to) {
    if (asked->kind == REQUEST_HTTP) {
        decide_http(&asked->http, to);
    } else {
        deny(to, 400, TEXT("expected an http request"));
    }
}
