// Who may do what: roles by the identity that the proxy has authenticated, and rules by path and method.
package main

import (
	"slices"

	"policy/portcullis"
)

// Which role an identity has that is this one or below it. The first that fits counts.
var roles = []struct{ identity, role string }{
	{"spiffe://shop.example/web", "reader"},
	{"spiffe://shop.example/checkout", "writer"},
	{"spiffe://shop.example/ops", "admin"},
}

// Who may use which method below which path. The first path that fits counts; what no rule names is nobody's.
var rules = []struct {
	path    string
	methods []string
	roles   []string
}{
	{"/health", []string{"GET"}, []string{"anyone"}},
	{"/catalog", []string{"GET", "HEAD"}, []string{"reader", "writer", "admin"}},
	{"/orders", []string{"GET", "POST"}, []string{"writer", "admin"}},
	{"/admin", []string{"GET", "POST", "PUT", "DELETE"}, []string{"admin"}},
}

func init() { portcullis.Decide(decide) }

func main() {}

func decide(request *portcullis.Request) (*portcullis.Decision, error) {
	http := request.HTTP
	if http == nil {
		return portcullis.Deny(400, "expected an http request"), nil
	}
	for _, rule := range rules {
		if !portcullis.IsUnder(http.Path, rule.path) {
			continue
		}
		if !slices.Contains(rule.methods, http.Method) {
			return portcullis.Deny(405, "method not allowed below "+rule.path), nil
		}
		role := "anyone"
		if !slices.Contains(rule.roles, role) {
			if http.Source.Principal == "" {
				return portcullis.Deny(401, "nobody is authenticated"), nil
			}
			role = roleOf(http.Source.Principal)
			if role == "" {
				return portcullis.Deny(403, "identity has no role"), nil
			}
			if !slices.Contains(rule.roles, role) {
				return portcullis.Deny(403, "role "+role+" may not use "+rule.path), nil
			}
		}
		// What the client says of itself is not believed by anybody behind the proxy.
		return portcullis.Allow().SetHeader("x-role", role).RemoveHeader("x-forwarded-user").AddMetadata("rule", rule.path), nil
	}
	return portcullis.Deny(404, "no rule for this path"), nil
}

func roleOf(principal string) string {
	for _, one := range roles {
		if portcullis.IsUnder(principal, one.identity) {
			return one.role
		}
	}
	return ""
}
