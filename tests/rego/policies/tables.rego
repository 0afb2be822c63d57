# Reads the tenant's data snapshots: compiled with what policies/rego/capabilities.json adds to OPA's own.
package tables

import rego.v1

default answer := {"allow": false, "reason": "nobody knows them"}

answer := {"allow": true, "metadata": {"teams": teams, "limit": limit}} if {
	user := portcullis.data.get(sprintf("user/%s", [input.user]))
	user.active
	teams := sort({team |
		some key, lead in portcullis.data.entries("team/")
		lead == input.user
		team := trim_prefix(key, "team/")
	})
	limit := object.get(portcullis.data.get("limits"), input.user, 0)
}
