"""A client of Portcullis written from docs/protocol.md alone, with nothing but Python's standard library.

    protocol_client.py check docs/protocol-vectors.json   decode and encode every vector
    protocol_client.py ask SOCKET TENANT POLICY           ask one question and print the decision as JSON
"""

import json
import socket
import struct
import sys

VERSION = 3
CLIENT_FRAME_MAX = 1 << 20
SERVER_FRAME_MAX = 4 << 20
NAME_MAX = 64


class Refused(Exception):
    """These bytes are not a message. Whoever asked takes that for a denial."""


# A type is a pair of functions: read(Reader) -> value, and write(value) -> bytes.


class Reader:
    def __init__(self, data):
        self.data = data
        self.at = 0

    def take(self, count):
        end = self.at + count
        if end > len(self.data):
            raise Refused("ends too early")
        piece = self.data[self.at : end]
        self.at = end
        return piece

    def end(self):
        if self.at != len(self.data):
            raise Refused("bytes left over")


def varint(bits):
    longest = (bits + 6) // 7

    def read(reader):
        value = 0
        for index in range(longest):
            byte = reader.take(1)[0]
            value |= (byte & 0x7F) << (7 * index)
            if byte < 0x80:
                if value >> bits:
                    raise Refused("number too large")
                return value
        raise Refused("number too long")

    def write(value):
        assert 0 <= value < 1 << bits
        out = bytearray()
        while value >= 0x80:
            out.append(value & 0x7F | 0x80)
            value >>= 7
        out.append(value)
        return bytes(out)

    return read, write


U16, U32, U64 = varint(16), varint(32), varint(64)


def _read_bytes(reader):
    return list(reader.take(U64[0](reader)))


def _write_bytes(value):
    return U64[1](len(value)) + bytes(value)


BYTES = (_read_bytes, _write_bytes)


def _read_string(reader):
    try:
        return reader.take(U64[0](reader)).decode("utf-8")
    except UnicodeDecodeError:
        raise Refused("not UTF-8")


STRING = (_read_string, lambda value: _write_bytes(value.encode("utf-8")))


def _read_name(reader):
    name = _read_string(reader)
    first = set("abcdefghijklmnopqrstuvwxyz0123456789")
    if not name or len(name) > NAME_MAX or name[0] not in first or not set(name) <= first | set("._-"):
        raise Refused("not a name")
    return name


NAME = (_read_name, STRING[1])


def array(count):
    return lambda reader: list(reader.take(count)), bytes


DIGEST = (
    lambda reader: "sha256:" + reader.take(32).hex(),
    lambda value: bytes.fromhex(value.removeprefix("sha256:")),
)


def _read_decision_id(reader):
    data = reader.take(16)
    if not any(data):
        raise Refused("a decision id of zeros")
    return data.hex()


DECISION_ID = (_read_decision_id, bytes.fromhex)


def traceparent():
    def read(reader):
        trace, parent, flags = reader.take(16), reader.take(8), reader.take(1)
        if not any(trace) or not any(parent):
            raise Refused("an id of zeros")
        return f"00-{trace.hex()}-{parent.hex()}-{flags.hex()}"

    return read, lambda value: bytes.fromhex("".join(value.split("-")[1:]))


def option(of):
    def read(reader):
        tag = reader.take(1)[0]
        if tag > 1:
            raise Refused("neither there nor not")
        return of[0](reader) if tag else None

    return read, lambda value: b"\0" if value is None else b"\1" + of[1](value)


def list_of(of):
    return (
        lambda reader: [of[0](reader) for _ in range(U64[0](reader))],
        lambda value: U64[1](len(value)) + b"".join(of[1](one) for one in value),
    )


def record(**fields):
    return (
        lambda reader: {name: of[0](reader) for name, of in fields.items()},
        lambda value: b"".join(of[1](value[name]) for name, of in fields.items()),
    )


def choice(**variants):
    """Variants in order; None is one without anything. {"Name": value}, or "Name" alone."""
    names = list(variants)

    def read(reader):
        number = U32[0](reader)
        if number >= len(names):
            raise Refused("no such variant")
        name = names[number]
        return name if variants[name] is None else {name: variants[name][0](reader)}

    def write(value):
        name, inner = (value, None) if isinstance(value, str) else next(iter(value.items()))
        of = variants[name]
        return U32[1](names.index(name)) + (b"" if of is None else of[1](inner))

    return read, write


# The messages, table by table as in the document.

ADDRESS = choice(Unknown=None, Ipv4=array(4), Ipv6=array(16))
PEER = record(address=ADDRESS, port=U16, principal=option(STRING))
HEADER = record(name=STRING, value=BYTES)
HTTP = record(
    method=STRING,
    scheme=STRING,
    host=STRING,
    path=STRING,
    query=option(STRING),
    headers=list_of(HEADER),
    body=option(BYTES),
    source=PEER,
    destination=PEER,
    attributes=list_of(record(name=STRING, value=STRING)),
)
INPUT = choice(Http=HTTP, Opaque=record(content_type=STRING, bytes=BYTES))

TRACE = option(traceparent())
DEADLINE = choice(Default=None, Budget=record(us=U32), Absolute=record(ns=U64))
CLIENT = choice(
    Hello=record(version=U16, tenant=STRING),
    Decide=record(id=U64, tenant=STRING, policy=STRING, deadline=DEADLINE, trace=TRACE, input=BYTES),
    DecideBatch=record(
        id=U64, tenant=STRING, policy=STRING, deadline=DEADLINE, trace=TRACE, inputs=list_of(BYTES)
    ),
    Cancel=record(id=U64),
    Ping=record(nonce=U64),
)

STAGE = choice(Receipt=None, Queue=None, Instantiate=None, Run=None, Reply=None)
QUOTA = choice(
    Pipeline=None,
    Connections=None,
    Queue=None,
    Requests=None,
    Cpu=None,
    Concurrent=None,
    Memory=None,
    BytesIn=None,
    BytesOut=None,
    HostCalls=None,
    Wait=None,
)
TRAP = choice(
    Unreachable=None,
    OutOfBounds=None,
    Stack=None,
    Memory=None,
    Arithmetic=None,
    IndirectCall=None,
    Abi=None,
    Other=None,
    Fuel=None,
    HostCalls=None,
)
REFUSAL = choice(
    Deadline=STAGE,
    Quota=record(which=QUOTA, retry_after_ms=U32),
    Trap=TRAP,
    InvalidOutput=STRING,
    UnknownPolicy=None,
    UnknownTenant=None,
    NotPermitted=None,
    Overloaded=None,
    Unavailable=None,
    BadRequest=STRING,
    Cancelled=None,
    Revoked=None,
    PolicyFailed=record(reason=STRING, detail=STRING),
)
OUTCOME = choice(Allow=None, Deny=record(reason=STRING), Refused=REFUSAL)
OBLIGATIONS = record(
    status=option(U16),
    headers_set=list_of(HEADER),
    headers_append=list_of(HEADER),
    headers_remove=list_of(STRING),
    body=option(BYTES),
    metadata=list_of(record(key=STRING, value=STRING)),
)
CACHE = record(ttl_ms=U32, scope=choice(Request=None, Client=None, Path=None))
TIMING = record(queue_ns=U64, instantiate_ns=U64, run_ns=U64, host_ns=U64)
DECISION = record(
    outcome=OUTCOME,
    obligations=OBLIGATIONS,
    cache=CACHE,
    digest=option(DIGEST),
    timing=TIMING,
    id=option(DECISION_ID),
)
VIOLATION = choice(
    Empty=None,
    TooLong=None,
    Malformed=None,
    HelloTwice=None,
    NotHello=None,
    DuplicateId=None,
    BatchSize=None,
    Input=None,
)
FAREWELL = choice(
    Version=record(theirs=U16, ours=U16),
    UnknownTenant=None,
    NotPermitted=None,
    Unavailable=None,
    Quota=QUOTA,
    Protocol=VIOLATION,
    Timeout=None,
    ShuttingDown=None,
)
SERVER = choice(
    Welcome=record(version=U16, **{"class": NAME}, generation=U64),
    Decision=record(id=U64, decision=DECISION),
    Decisions=record(id=U64, decisions=list_of(DECISION)),
    Pong=record(nonce=U64),
    Farewell=FAREWELL,
)


def decode(of, data):
    reader = Reader(data)
    value = of[0](reader)
    reader.end()
    return value


def frame(message):
    return struct.pack(">I", len(message)) + message


def length_of(prefix, limit):
    (length,) = struct.unpack(">I", prefix)
    if not 0 < length <= limit:
        raise Refused(f"frame of {length} bytes")
    return length


def unframe(data, limit):
    length = length_of(data[:4], limit)
    if len(data) != 4 + length:
        raise Refused("not one whole frame")
    return data[4:]


KINDS = {
    "input": (INPUT, lambda data: data, lambda data: data),
    "client": (CLIENT, lambda data: unframe(data, CLIENT_FRAME_MAX), frame),
    "server": (SERVER, lambda data: unframe(data, SERVER_FRAME_MAX), frame),
}


def check(path):
    with open(path) as file:
        document = json.load(file)
    assert document["protocol_version"] == VERSION
    for vector in document["vectors"]:
        of, outer_off, outer_on = KINDS[vector["of"]]
        data = bytes.fromhex(vector["hex"])
        value = decode(of, outer_off(data))
        assert value == vector["value"], f"{vector['name']}: decodes to {value}"
        again = outer_on(of[1](vector["value"]))
        assert again == data, f"{vector['name']}: encodes to {again.hex()}"
    for vector in document["refused"]:
        of, outer_off, _ = KINDS[vector["of"]]
        try:
            value = decode(of, outer_off(bytes.fromhex(vector["hex"])))
        except Refused:
            continue
        raise AssertionError(f"{vector['name']}: taken for {value}")
    print(f"{len(document['vectors'])} vectors agree, {len(document['refused'])} are refused")


def receive(stream):
    """The next message of the service."""

    def exactly(count):
        data = b""
        while len(data) < count:
            piece = stream.recv(count - len(data))
            if not piece:
                raise Refused("closed")
            data += piece
        return data

    return decode(SERVER, exactly(length_of(exactly(4), SERVER_FRAME_MAX)))


def ask(path, tenant, policy):
    stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    stream.settimeout(30)
    stream.connect(path)
    stream.sendall(frame(CLIENT[1]({"Hello": {"version": VERSION, "tenant": tenant}})))
    welcome = receive(stream)
    if "Welcome" not in welcome or welcome["Welcome"]["version"] != VERSION:
        raise Refused(f"not welcome: {welcome}")
    question = {
        "Http": {
            "method": "GET",
            "scheme": "https",
            "host": "api.acme.example",
            "path": "/v1/orders",
            "query": "page=2",
            "headers": [{"name": "accept", "value": b"*/*"}, {"name": "x-raw", "value": b"\x00\xff"}],
            "body": None,
            "source": {"address": {"Ipv4": socket.inet_aton("192.0.2.7")}, "port": 50123, "principal": None},
            "destination": {
                "address": {"Ipv6": socket.inet_pton(socket.AF_INET6, "2001:db8::1")},
                "port": 443,
                "principal": "spiffe://acme.example/api",
            },
            "attributes": [{"name": "tls.sni", "value": "api.acme.example"}],
        }
    }
    decide = {
        "id": 7,
        "tenant": tenant,
        "policy": policy,
        "deadline": {"Budget": {"us": 20000}},
        "trace": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "input": INPUT[1](question),
    }
    stream.sendall(frame(CLIENT[1]({"Decide": decide})))
    answer = receive(stream)
    if "Decision" not in answer or answer["Decision"]["id"] != 7:
        raise Refused(f"not the answer: {answer}")
    print(json.dumps(answer["Decision"]["decision"]))


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["check", path]:
            check(path)
        case ["ask", path, tenant, policy]:
            ask(path, tenant, policy)
        case _:
            sys.exit(__doc__)
