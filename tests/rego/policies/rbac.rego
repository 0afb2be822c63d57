# Who may do what, by roles that the data grants.
package app.rbac

import rego.v1

default allow := false

allow if "admin" in data.user_roles[input.user]

allow if {
	some grant in user_is_granted
	input.action == grant.action
	input.type == grant.type
}

user_is_granted contains grant if {
	some role in data.user_roles[input.user]
	some grant in data.role_grants[role]
}
