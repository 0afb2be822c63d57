// Package portcullis is what a policy in Go is built on: what it is asked, what it answers, and what it may use of the
// host. A policy names its function with Decide:
//
//	func init() { portcullis.Decide(decide) }
//	func main() {}
//
// It is called once, in a fresh instance: nothing it keeps is there the next time, and nothing has to be given back.
package portcullis

import (
	"net/netip"
	"strings"
)

// Failure is returned by a policy that cannot decide: what it needs is not there, or makes no sense. The request is
// refused, never allowed.
type Failure struct {
	// Reason is what kind, for counting: 1 to 64 bytes of a-z 0-9 - _ and the full stop.
	Reason string
	// Detail is for people. Keep secrets out of it.
	Detail string
}

func (failure *Failure) Error() string { return failure.Reason + ": " + failure.Detail }

// Request is what a policy is asked. Exactly one of the two is not nil.
type Request struct {
	HTTP   *HTTPRequest
	Opaque *Opaque
}

// HTTPRequest is the request as the proxy saw it.
type HTTPRequest struct {
	Method, Scheme, Host string
	// Path is without the query.
	Path string
	// Query is without the question mark; nil where there is none.
	Query   *string
	Headers []Header
	// Body is nil where the proxy sends none.
	Body                []byte
	Source, Destination Peer
	// Attributes are what the proxy says beyond HTTP: "tls.sni", "route.name". A name may come twice.
	Attributes []Attribute
}

// Attribute is something the proxy says.
type Attribute struct{ Name, Value string }

// Opaque is bytes that only the policy understands.
type Opaque struct {
	// ContentType is a media type, or empty.
	ContentType string
	Bytes       []byte
}

// Peer is one end of the proxied connection.
type Peer struct {
	// Address is the zero Addr where the proxy does not know it.
	Address netip.Addr
	Port    uint16
	// Principal is who the proxy has authenticated there, for example a SPIFFE id; empty for nobody.
	Principal string
}

// Header is one header line.
type Header struct {
	Name  string
	Value []byte
}

// Header returns every value of the header name, whatever the case it was sent in.
func (request *HTTPRequest) Header(name string) [][]byte {
	var values [][]byte
	for _, header := range request.Headers {
		if strings.EqualFold(header.Name, name) {
			values = append(values, header.Value)
		}
	}
	return values
}

// IsUnder is true if path is prefix or lies below it, segment by segment: /a covers /a and /a/b, not /ab.
func IsUnder(path, prefix string) bool {
	rest, found := strings.CutPrefix(path, prefix)
	return found && (rest == "" || rest[0] == '/' || strings.HasSuffix(prefix, "/"))
}

// Decision is the answer. Allow and Deny make one.
type Decision struct {
	denied bool
	reason string

	// Status is what the client should see; 0 leaves that to the proxy.
	Status uint16
	// HeadersSet replace every header of their name.
	HeadersSet    []Header
	HeadersAppend []Header
	HeadersRemove []string
	Body          []byte
	Metadata      []Metadatum
	// CacheMillis is how long the answer holds; 0 is not to be cached.
	CacheMillis uint32
	CacheScope  CacheScope
}

// Metadatum is for the proxy's own log and filters.
type Metadatum struct{ Key, Value string }

// CacheScope is for whom a cached answer holds.
type CacheScope uint8

const (
	// CacheRequest is only for exactly this request.
	CacheRequest CacheScope = iota
	// CacheClient is for everything this client asks on this path.
	CacheClient
	// CachePath is for every client on this path.
	CachePath
)

// Allow lets the request through.
func Allow() *Decision { return &Decision{} }

// Deny stops the request. The status is what the client should see, the reason what the operator should.
func Deny(status uint16, reason string) *Decision {
	return &Decision{denied: true, reason: reason, Status: status}
}

// SetHeader replaces a header of the request.
func (decision *Decision) SetHeader(name, value string) *Decision {
	decision.HeadersSet = append(decision.HeadersSet, Header{name, []byte(value)})
	return decision
}

// RemoveHeader takes a header away.
func (decision *Decision) RemoveHeader(name string) *Decision {
	decision.HeadersRemove = append(decision.HeadersRemove, name)
	return decision
}

// AddMetadata tells the proxy something.
func (decision *Decision) AddMetadata(key, value string) *Decision {
	decision.Metadata = append(decision.Metadata, Metadatum{key, value})
	return decision
}
