// Everything that a policy may use of the host.
package main

import "policy/portcullis"

func init() { portcullis.Decide(decide) }

func decide(*portcullis.Request) (*portcullis.Decision, error) {
	value, found := portcullis.Data("name")
	entries := portcullis.Entries("n", "", 10)
	portcullis.Count("looked-up", 2)
	portcullis.Log(portcullis.Warn, "a line")
	if !found || len(entries) != 1 || portcullis.Now() != 57 || portcullis.Random() == portcullis.Random() {
		return nil, &portcullis.Failure{Reason: "host", Detail: "not as expected"}
	}
	return portcullis.Deny(403, string(value)), nil
}

func main() {}
