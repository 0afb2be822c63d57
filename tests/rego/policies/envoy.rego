# As policies for OPA's Envoy plugin are written: the request in attributes, an object as the answer.
package envoy.authz

import rego.v1

import input.attributes.request.http

default answer := {"allowed": false, "http_status": 403, "body": "no", "reason": "nothing allows it"}

answer := {
	"allowed": true,
	"headers": {"x-user": user, "x-path": concat("/", input.parsed_path)},
	"response_headers_to_add": {"x-seen-by": "rego"},
	"request_headers_to_remove": ["authorization"],
	"dynamic_metadata": {"user": user, "limits": {"page": input.parsed_query.page}},
} if {
	http.method == "GET"
	input.parsed_path[0] == "people"
	startswith(http.headers.authorization, "Basic ")
	[user, "secret"] = split(base64.decode(substring(http.headers.authorization, 6, -1)), ":")
	net.cidr_contains("10.0.0.0/8", input.attributes.source.address.socketAddress.address)
}
