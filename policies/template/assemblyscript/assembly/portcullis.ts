// What a policy in AssemblyScript is built on: what it is asked, what it answers, and what it may use of the host.
//
// A policy is called once, in a fresh instance: nothing it keeps is there the next time, and nothing has to be given back.

/** What a policy is asked. Exactly one of the two is not null. */
export class Request {
  constructor(public http: HttpRequest | null, public opaque: Opaque | null) {}
}

/** Bytes that only the policy understands. */
export class Opaque {
  constructor(public contentType: string, public bytes: Uint8Array) {}
}

/** One header line. The value is bytes, as HTTP has it. */
export class Header {
  constructor(public name: string, public value: Uint8Array) {}
}

/** Something the proxy says. */
export class Attribute {
  constructor(public name: string, public value: string) {}
}

/** One end of the proxied connection. */
export class Peer {
  /** 4 bytes, 16 bytes, or none where the proxy does not know it. */
  address: Uint8Array = new Uint8Array(0);
  port: u16 = 0;
  /** Who the proxy has authenticated there, for example a SPIFFE id; null for nobody. */
  principal: string | null = null;
}

/** The request as the proxy saw it. */
export class HttpRequest {
  method: string = "";
  scheme: string = "";
  host: string = "";
  /** Without the query. */
  path: string = "";
  /** Without the question mark; null where there is none. */
  query: string | null = null;
  headers: Header[] = [];
  /** Null where the proxy sends none. */
  body: Uint8Array | null = null;
  source: Peer = new Peer();
  destination: Peer = new Peer();
  /** What the proxy says beyond HTTP: "tls.sni", "route.name". A name may come twice. */
  attributes: Attribute[] = [];

  /** Every value of the header `name`, whatever the case it was sent in. */
  header(name: string): Uint8Array[] {
    const values: Uint8Array[] = [];
    for (let i = 0; i < this.headers.length; i++) {
      if (this.headers[i].name.toLowerCase() == name.toLowerCase()) values.push(this.headers[i].value);
    }
    return values;
  }
}

/** True if `path` is `prefix` or lies below it, segment by segment: /a covers /a and /a/b, not /ab. */
export function isUnder(path: string, prefix: string): bool {
  if (!path.startsWith(prefix)) return false;
  return path.length == prefix.length || path.charAt(prefix.length) == "/" || prefix.endsWith("/");
}

/** For whom a cached answer holds. */
export enum CacheScope {
  Request,
  Client,
  Path,
}

/** The answer. `allow`, `deny` and `fail` make one. */
export class Decision {
  /** Not null where the policy cannot decide: what kind, for counting, 1 to 64 bytes of a-z 0-9 - _ and the full stop. */
  failed: string | null = null;
  /** For people. */
  detail: string = "";
  /** Null lets the request through. */
  denied: string | null = null;
  /** What the client should see; 0 leaves that to the proxy. */
  status: u16 = 0;
  /** They replace every header of their name. */
  headersSet: Header[] = [];
  headersAppend: Header[] = [];
  headersRemove: string[] = [];
  body: Uint8Array | null = null;
  /** For the proxy's own log and filters: key and value. */
  metadata: string[][] = [];
  /** How long the answer holds; 0 is not to be cached. */
  cacheMs: u32 = 0;
  cacheScope: CacheScope = CacheScope.Request;

  /** Lets the request through. */
  static allow(): Decision {
    return new Decision();
  }

  /** Stops it. The status is what the client should see, the reason what the operator should. */
  static deny(status: u16, reason: string): Decision {
    const decision = new Decision();
    decision.denied = reason;
    decision.status = status;
    return decision;
  }

  /** The policy cannot decide: what it needs is not there, or makes no sense. The request is refused, never allowed. */
  static fail(reason: string, detail: string): Decision {
    const decision = new Decision();
    decision.failed = reason;
    decision.detail = detail;
    return decision;
  }

  setHeader(name: string, value: string): Decision {
    this.headersSet.push(new Header(name, Uint8Array.wrap(String.UTF8.encode(value))));
    return this;
  }

  removeHeader(name: string): Decision {
    this.headersRemove.push(name);
    return this;
  }

  addMetadata(key: string, value: string): Decision {
    this.metadata.push([key, value]);
    return this;
  }
}

// What is used of these becomes an import of the policy, which a trust policy has to permit.

/** When the request was received, nanoseconds since 1970. It stands still while the policy runs. */
// @ts-ignore: decorator
@external("portcullis:policy/clock@1.0.0", "now")
export declare function now(): u64;

/** From the request's seed: a replay with the same seed sees the same numbers. */
// @ts-ignore: decorator
@external("portcullis:policy/random@1.0.0", "get-u64")
export declare function random(): u64;

export enum Level {
  Debug,
  Info,
  Warn,
}

/** A line for the operator. At most 16 lines of 1 KiB are kept per decision. */
export function log(level: Level, line: string): void {
  const text = String.UTF8.encode(line);
  write(level, changetype<usize>(text), text.byteLength);
}

// @ts-ignore: decorator
@external("portcullis:policy/log@1.0.0", "write")
declare function write(level: u32, at: usize, len: u32): void;

/** The value of a key in the data snapshots that the policy's manifest names; null where there is none. */
export function data(key: string): Uint8Array | null {
  const text = String.UTF8.encode(key);
  const area = heap.alloc(12);
  get(changetype<usize>(text), text.byteLength, area);
  if (!load<u8>(area)) return null;
  const value = new Uint8Array(load<u32>(area, 8));
  memory.copy(value.dataStart, load<u32>(area, 4), value.byteLength);
  return value;
}

// @ts-ignore: decorator
@external("portcullis:policy/data@1.0.0", "get")
declare function get(key: usize, len: u32, result: usize): void;

/** Adds to a counter that the policy's manifest declares. */
export function count(name: string, value: u64): void {
  const text = String.UTF8.encode(name);
  add(changetype<usize>(text), text.byteLength, value);
}

// @ts-ignore: decorator
@external("portcullis:policy/metric@1.0.0", "add")
declare function add(name: usize, len: u32, value: u64): void;
