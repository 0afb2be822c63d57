// Who may do what: roles by the identity that the proxy has authenticated, and rules by path and method.

import { Decision, HttpRequest, Request, isUnder } from "./portcullis";

class Rule {
  constructor(public path: string, public methods: string[], public roles: string[]) {}
}

/** Which role an identity has that is this one or below it. The first that fits counts. */
const ROLES = [
  ["spiffe://shop.example/web", "reader"],
  ["spiffe://shop.example/checkout", "writer"],
  ["spiffe://shop.example/ops", "admin"],
];

/** Who may use which method below which path. The first path that fits counts; what no rule names is nobody's. */
const RULES = [
  new Rule("/health", ["GET"], ["anyone"]),
  new Rule("/catalog", ["GET", "HEAD"], ["reader", "writer", "admin"]),
  new Rule("/orders", ["GET", "POST"], ["writer", "admin"]),
  new Rule("/admin", ["GET", "POST", "PUT", "DELETE"], ["admin"]),
];

export function decide(request: Request): Decision {
  const http = request.http;
  return http === null ? Decision.deny(400, "expected an http request") : decideHttp(http);
}

function decideHttp(http: HttpRequest): Decision {
  for (let i = 0; i < RULES.length; i++) {
    const rule = RULES[i];
    if (!isUnder(http.path, rule.path)) continue;
    if (!rule.methods.includes(http.method)) return Decision.deny(405, `method not allowed below ${rule.path}`);
    let role = "anyone";
    if (!rule.roles.includes(role)) {
      const principal = http.source.principal;
      if (principal === null) return Decision.deny(401, "nobody is authenticated");
      role = roleOf(principal);
      if (role == "") return Decision.deny(403, "identity has no role");
      if (!rule.roles.includes(role)) return Decision.deny(403, `role ${role} may not use ${rule.path}`);
    }
    // What the client says of itself is not believed by anybody behind the proxy.
    return Decision.allow().setHeader("x-role", role).removeHeader("x-forwarded-user").addMetadata("rule", rule.path);
  }
  return Decision.deny(404, "no rule for this path");
}

function roleOf(principal: string): string {
  for (let i = 0; i < ROLES.length; i++) {
    if (isUnder(principal, ROLES[i][0])) return ROLES[i][1];
  }
  return "";
}
