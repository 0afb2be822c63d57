// The world, as the component model lays it out in memory.

import { Attribute, Decision, Header, HttpRequest, Opaque, Peer, Request } from "./portcullis";
import { decide as policy } from "./policy";

/** Where the host puts a request. */
export function cabi_realloc(old: usize, oldLen: usize, align: usize, len: usize): usize {
  const block = (heap.alloc(len + align) + align - 1) & ~(align - 1);
  memory.copy(block, old, min(oldLen, len));
  return block;
}

export function decide(request: usize): usize {
  return written(policy(asked(request)));
}

function text(at: usize): string {
  return String.UTF8.decodeUnsafe(load<u32>(at), load<u32>(at, 4));
}

function optionalText(at: usize): string | null {
  return load<u8>(at) ? text(at + 4) : null;
}

function bytes(at: usize): Uint8Array {
  const copy = new Uint8Array(load<u32>(at, 4));
  memory.copy(copy.dataStart, load<u32>(at), copy.byteLength);
  return copy;
}

function asked(at: usize): Request {
  if (load<u8>(at)) return new Request(null, new Opaque(text(at + 4), bytes(at + 12)));
  const from = at + 4;
  const http = new HttpRequest();
  http.method = text(from);
  http.scheme = text(from + 8);
  http.host = text(from + 16);
  http.path = text(from + 24);
  http.query = optionalText(from + 32);
  const headers: usize = load<u32>(from, 44);
  for (let i: usize = 0; i < load<u32>(from, 48); i++) {
    http.headers.push(new Header(text(headers + 16 * i), bytes(headers + 16 * i + 8)));
  }
  if (load<u8>(from, 52)) http.body = bytes(from + 56);
  http.source = peer(from + 64);
  http.destination = peer(from + 96);
  const attributes: usize = load<u32>(from, 128);
  for (let i: usize = 0; i < load<u32>(from, 132); i++) {
    http.attributes.push(new Attribute(text(attributes + 16 * i), text(attributes + 16 * i + 8)));
  }
  return new Request(http, null);
}

function peer(at: usize): Peer {
  const peer = new Peer();
  const kind = load<u8>(at);
  if (kind == 1) {
    peer.address = new Uint8Array(4);
    memory.copy(peer.address.dataStart, at + 2, 4);
  } else if (kind == 2) {
    peer.address = new Uint8Array(16);
    for (let i: usize = 0; i < 8; i++) store<u16>(peer.address.dataStart + 2 * i, bswap(load<u16>(at + 2 + 2 * i)));
  }
  peer.port = load<u16>(at, 18);
  peer.principal = optionalText(at + 20);
  return peer;
}

/** Puts address and length of a list with room for `count` times `size` bytes to `at`, and returns where it is. */
function list(at: usize, count: u32, size: u32): usize {
  const start = heap.alloc(max(count * size, 1));
  store<u32>(at, start as u32);
  store<u32>(at, count, 4);
  return start;
}

function putText(at: usize, text: string): void {
  const encoded = String.UTF8.encode(text);
  memory.copy(list(at, encoded.byteLength, 1), changetype<usize>(encoded), encoded.byteLength);
}

function putBytes(at: usize, bytes: Uint8Array): void {
  memory.copy(list(at, bytes.byteLength, 1), bytes.dataStart, bytes.byteLength);
}

function putHeaders(at: usize, headers: Header[]): void {
  const start = list(at, headers.length, 16);
  for (let i = 0; i < headers.length; i++) {
    putText(start + 16 * i, headers[i].name);
    putBytes(start + 16 * i + 8, headers[i].value);
  }
}

function written(decision: Decision): usize {
  const start = heap.alloc(72);
  memory.fill(start, 0, 72);
  const failed = decision.failed;
  if (failed !== null) {
    store<u8>(start, 1);
    putText(start + 4, failed);
    putText(start + 12, decision.detail);
    return start;
  }
  const at = start + 4;
  const denied = decision.denied;
  if (denied !== null) {
    store<u8>(at, 1);
    putText(at + 4, denied);
  }
  store<u8>(at, decision.status != 0, 12);
  store<u16>(at, decision.status, 14);
  putHeaders(at + 16, decision.headersSet);
  putHeaders(at + 24, decision.headersAppend);
  const removed = list(at + 32, decision.headersRemove.length, 8);
  for (let i = 0; i < decision.headersRemove.length; i++) putText(removed + 8 * i, decision.headersRemove[i]);
  const body = decision.body;
  if (body !== null) {
    store<u8>(at, 1, 40);
    putBytes(at + 44, body);
  }
  const metadata = list(at + 52, decision.metadata.length, 16);
  for (let i = 0; i < decision.metadata.length; i++) {
    putText(metadata + 16 * i, decision.metadata[i][0]);
    putText(metadata + 16 * i + 8, decision.metadata[i][1]);
  }
  store<u32>(at, decision.cacheMs, 60);
  store<u8>(at, decision.cacheScope, 64);
  return start;
}
