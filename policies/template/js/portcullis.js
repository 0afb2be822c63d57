// What a policy in JavaScript is built on.
//
// A policy exports `decide(request)`, which is called once, in a fresh instance: nothing it keeps is there the next time.
// What it is asked has the form that wit/policy.wit says: `request.tag` is "http" or "opaque" and `request.val` the
// request, names are written likeThis, an option that is not there is undefined, bytes are a Uint8Array.
//
// What it may use of the host is named in wit/world.wit, and imported by its name there:
// `import { now } from "portcullis:policy/clock@1.0.0"`. There is no WASI: Date.now(), Math.random() and console.log() have
// nothing behind them, use the host's clock, random and log.

/**
 * Lets the request through.
 *
 * @param {{status?: number, headersSet?: Record<string, string>, headersAppend?: Record<string, string>,
 *   headersRemove?: string[], body?: Uint8Array, metadata?: Record<string, string>}} obligations what else to do
 */
export function allow(obligations = {}) {
  return decision({ tag: "allow" }, obligations);
}

/** Stops it. The status is what the client should see, the reason what the operator should. */
export function deny(status, reason, obligations = {}) {
  return decision({ tag: "deny", val: reason }, { ...obligations, status });
}

/** To be thrown by a policy that cannot decide. The reason is for counting, the detail for people. */
export function failure(reason, detail = "") {
  return { reason, detail };
}

/** The same decision, to be kept by the proxy for so long; for whom is "request", "client" or "path". */
export function cached(decision, ttlMs, scope = "request") {
  return { ...decision, cache: { ttlMs, scope } };
}

/** Every value of the header `name`, whatever the case it was sent in. */
export function header(http, name) {
  return http.headers.filter((one) => one.name.toLowerCase() === name.toLowerCase()).map((one) => one.value);
}

/** True if `path` is `prefix` or lies below it, segment by segment: /a covers /a and /a/b, not /ab. */
export function isUnder(path, prefix) {
  return path.startsWith(prefix) && (path.length === prefix.length || path[prefix.length] === "/" || prefix.endsWith("/"));
}

/** The text as bytes in UTF-8. */
export function encode(text) {
  return Uint8Array.from(unescape(encodeURIComponent(text)), (byte) => byte.charCodeAt(0));
}

function decision(verdict, { status, headersSet, headersAppend, headersRemove = [], body, metadata = {} }) {
  return {
    verdict,
    obligations: {
      status,
      headersSet: lines(headersSet),
      headersAppend: lines(headersAppend),
      headersRemove,
      body,
      metadata: Object.entries(metadata).map(([key, value]) => ({ key, value })),
    },
    cache: { ttlMs: 0, scope: "request" },
  };
}

function lines(headers = {}) {
  return Object.entries(headers).map(([name, value]) => ({ name, value: encode(value) }));
}
