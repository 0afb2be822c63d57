# Who may do what: roles by the identity that the proxy has authenticated, and rules by path and method.
package gate

# What to answer: see docs/rego.md of Portcullis for what a request looks like here.
answer := {"allowed": false, "http_status": 400, "reason": "expected an http request"} if {
	not http
} else := {"allowed": false, "http_status": 404, "reason": "no rule for this path"} if {
	not rule
} else := {"allowed": false, "http_status": 405, "reason": concat("", ["method not allowed below ", rule.path])} if {
	not http.method in rule.methods
} else := allowed("anyone") if {
	"anyone" in rule.roles
} else := {"allowed": false, "http_status": 401, "reason": "nobody is authenticated"} if {
	not principal
} else := {"allowed": false, "http_status": 403, "reason": "identity has no role"} if {
	not role
} else := {"allowed": false, "http_status": 403, "reason": concat("", ["role ", role, " may not use ", rule.path])} if {
	not role in rule.roles
} else := allowed(role)

# What the client says of itself is not believed by anybody behind the proxy.
allowed(role) := {
	"allowed": true,
	"headers": {"x-role": role},
	"request_headers_to_remove": ["x-forwarded-user"],
	"dynamic_metadata": {"rule": rule.path},
}

http := input.attributes.request.http

principal := input.attributes.source.principal

path := split(http.path, "?")[0]

# The first path that fits counts; what no rule names is nobody's.
rule := [rule | some rule in data.rules; is_under(path, rule.path)][0]

# The first identity that fits counts.
role := [one.role | some one in data.roles; is_under(principal, one.identity)][0]

# Segment by segment: /a covers /a and /a/b, not /ab.
is_under(path, prefix) if path == prefix

is_under(path, prefix) if startswith(path, concat("", [prefix, "/"]))
