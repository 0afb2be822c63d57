# Whatever input.result is, to see what becomes of it; undefined without.
package results

answer := input.result
