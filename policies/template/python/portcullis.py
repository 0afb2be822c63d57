"""What a policy in Python is built on: the types of the world, and answers made with one call.

A policy is called once, in a fresh instance: nothing it keeps is there the next time. What it is asked has the form that
wit/policy.wit says. What it may use of the host is named in wit/world.wit, and imported from wit_world.imports then. There
is no WASI behind the standard library: time, random, files and sockets end the policy, use the host's clock and random.
"""

from componentize_py_types import Err
from wit_world.imports.types import (
    CacheHint,
    CacheScope,
    Decision,
    Failure,
    Header,
    HttpRequest,
    Metadatum,
    Obligations,
    Opaque,
    Peer,
    Request,
    Request_Http,
    Request_Opaque,
    Verdict,
    Verdict_Allow,
    Verdict_Deny,
)

__all__ = [
    "CacheHint",
    "CacheScope",
    "Decision",
    "HttpRequest",
    "Opaque",
    "Peer",
    "Request",
    "Request_Http",
    "Request_Opaque",
    "allow",
    "deny",
    "failure",
    "header",
    "is_under",
]


def allow(
    status: int | None = None,
    headers_set: dict[str, str] | None = None,
    headers_append: dict[str, str] | None = None,
    headers_remove: list[str] | None = None,
    body: bytes | None = None,
    metadata: dict[str, str] | None = None,
) -> Decision:
    """Lets the request through."""
    return _decision(Verdict_Allow(), status, headers_set, headers_append, headers_remove, body, metadata)


def deny(
    status: int,
    reason: str,
    headers_set: dict[str, str] | None = None,
    headers_append: dict[str, str] | None = None,
    headers_remove: list[str] | None = None,
    body: bytes | None = None,
    metadata: dict[str, str] | None = None,
) -> Decision:
    """Stops it. The status is what the client should see, the reason what the operator should."""
    return _decision(Verdict_Deny(reason), status, headers_set, headers_append, headers_remove, body, metadata)


def failure(reason: str, detail: str = "") -> Err[Failure]:
    """To be raised by a policy that cannot decide. The reason is for counting, the detail for people."""
    return Err(Failure(reason, detail))


def header(http: HttpRequest, name: str) -> list[bytes]:
    """Every value of the header, whatever the case its name was sent in."""
    return [one.value for one in http.headers if one.name.lower() == name.lower()]


def is_under(path: str, prefix: str) -> bool:
    """True if path is prefix or lies below it, segment by segment: /a covers /a and /a/b, not /ab."""
    return path.startswith(prefix) and (path[len(prefix) :][:1] in ("", "/") or prefix.endswith("/"))


def _decision(
    verdict: Verdict,
    status: int | None,
    headers_set: dict[str, str] | None,
    headers_append: dict[str, str] | None,
    headers_remove: list[str] | None,
    body: bytes | None,
    metadata: dict[str, str] | None,
) -> Decision:
    return Decision(
        verdict,
        Obligations(
            status,
            _lines(headers_set),
            _lines(headers_append),
            headers_remove or [],
            body,
            [Metadatum(key, value) for key, value in (metadata or {}).items()],
        ),
        CacheHint(0, CacheScope.REQUEST),
    )


def _lines(headers: dict[str, str] | None) -> list[Header]:
    return [Header(name, value.encode()) for name, value in (headers or {}).items()]
