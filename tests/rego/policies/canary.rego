# Says what it was asked, and nothing of what was asked before.
package canary

answer := {"allow": true, "reason": sprintf("%v", [input.secret])}
