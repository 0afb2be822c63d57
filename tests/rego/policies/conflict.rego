# Rules that contradict each other: OPA gives up.
package conflict

import rego.v1

allow := true if input.a

allow := false if input.b

# If a contradiction were undefined, what follows would allow it.
blocked(kind) := true if kind in {"bad", "both"}

blocked(kind) := false if kind in {"good", "both"}

allow := true if {
	input.kind
	not blocked(input.kind)
}

allow := true if {
	input.keys
	positions := {key: index | some index, key in input.keys}
	not positions.z
}
