"""Who may do what: roles by the identity that the proxy has authenticated, and rules by path and method."""

from typing import NamedTuple

from portcullis import Decision, HttpRequest, Request, Request_Http, allow, deny, is_under

# Which role an identity has that is this one or below it. The first that fits counts.
ROLES = [
    ("spiffe://shop.example/web", "reader"),
    ("spiffe://shop.example/checkout", "writer"),
    ("spiffe://shop.example/ops", "admin"),
]


class Rule(NamedTuple):
    path: str
    methods: list[str]
    roles: list[str]


# Who may use which method below which path. The first path that fits counts; what no rule names is nobody's.
RULES = [
    Rule("/health", ["GET"], ["anyone"]),
    Rule("/catalog", ["GET", "HEAD"], ["reader", "writer", "admin"]),
    Rule("/orders", ["GET", "POST"], ["writer", "admin"]),
    Rule("/admin", ["GET", "POST", "PUT", "DELETE"], ["admin"]),
]


def decide(request: Request) -> Decision:
    match request:
        case Request_Http(http):
            return decide_http(http)
        case _:
            return deny(400, "expected an http request")


def decide_http(http: HttpRequest) -> Decision:
    rule = next((rule for rule in RULES if is_under(http.path, rule.path)), None)
    if rule is None:
        return deny(404, "no rule for this path")
    if http.method not in rule.methods:
        return deny(405, f"method not allowed below {rule.path}")
    role = "anyone"
    if role not in rule.roles:
        if http.source.principal is None:
            return deny(401, "nobody is authenticated")
        role = role_of(http.source.principal)
        if role is None:
            return deny(403, "identity has no role")
        if role not in rule.roles:
            return deny(403, f"role {role} may not use {rule.path}")
    # What the client says of itself is not believed by anybody behind the proxy.
    return allow(headers_set={"x-role": role}, headers_remove=["x-forwarded-user"], metadata={"rule": rule.path})


def role_of(principal: str) -> str | None:
    return next((role for identity, role in ROLES if is_under(principal, identity)), None)
