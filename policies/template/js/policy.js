// Who may do what: roles by the identity that the proxy has authenticated, and rules by path and method.

import { allow, deny, isUnder } from "./portcullis.js";

/** Which role an identity has that is this one or below it. The first that fits counts. */
const ROLES = [
  ["spiffe://shop.example/web", "reader"],
  ["spiffe://shop.example/checkout", "writer"],
  ["spiffe://shop.example/ops", "admin"],
];

/** Who may use which method below which path. The first path that fits counts; what no rule names is nobody's. */
const RULES = [
  { path: "/health", methods: ["GET"], roles: ["anyone"] },
  { path: "/catalog", methods: ["GET", "HEAD"], roles: ["reader", "writer", "admin"] },
  { path: "/orders", methods: ["GET", "POST"], roles: ["writer", "admin"] },
  { path: "/admin", methods: ["GET", "POST", "PUT", "DELETE"], roles: ["admin"] },
];

export function decide(request) {
  return request.tag === "http" ? decideHttp(request.val) : deny(400, "expected an http request");
}

function decideHttp(http) {
  const rule = RULES.find(({ path }) => isUnder(http.path, path));
  if (!rule) return deny(404, "no rule for this path");
  if (!rule.methods.includes(http.method)) return deny(405, `method not allowed below ${rule.path}`);
  let role = "anyone";
  if (!rule.roles.includes(role)) {
    if (http.source.principal == null) return deny(401, "nobody is authenticated");
    role = roleOf(http.source.principal);
    if (!role) return deny(403, "identity has no role");
    if (!rule.roles.includes(role)) return deny(403, `role ${role} may not use ${rule.path}`);
  }
  // What the client says of itself is not believed by anybody behind the proxy.
  return allow({ headersSet: { "x-role": role }, headersRemove: ["x-forwarded-user"], metadata: { rule: rule.path } });
}

function roleOf(principal) {
  return ROLES.find(([identity]) => isUnder(principal, identity))?.[1];
}
