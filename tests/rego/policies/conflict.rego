# Two rules that contradict each other: OPA gives up.
package conflict

import rego.v1

allow := true if input.a

allow := false if input.b
