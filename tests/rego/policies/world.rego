# What of the world a policy may ask for.
package world

import rego.v1

answer := {
	"allow": true,
	"dynamic_metadata": {
		"now": sprintf("%d", [time.now_ns()]),
		"random": sprintf("%d", [rand.intn("a", 1000000)]),
		"uuid": uuid.rfc4122("b"),
	},
}
