# Something of each family of builtins that has an adapter of its own, one behind the other.
package families

import rego.v1

answer := {"allow": true, "dynamic_metadata": {
	"base": sprintf("%v is %v", [input.name, semver.compare("1.2.3", "1.2.4")]),
	"regex": regex.replace(input.name, "o+", "0"),
	"time": time.format([1700000000000000000, "Europe/Berlin", "RFC3339"]),
	"tokens": crypto.sha256(input.name),
	"yaml": yaml.unmarshal("a: [1, 2]"),
	"all": [regex.split("-", yaml.marshal({"at": time.date(0)})), crypto.hmac.equal("a", "b")],
}}
