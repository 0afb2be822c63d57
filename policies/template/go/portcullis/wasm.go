package portcullis

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"runtime/debug"
	"unsafe"
)

var decide func(*Request) (*Decision, error)

// Decide names the policy's function. To be called from init. What it panics with is a failure, like an error that it
// returns.
func Decide(function func(*Request) (*Decision, error)) { decide = function }

// What the host was given an address of. A policy lives for one decision, so all of it stays.
var kept [][]byte

func init() { debug.SetGCPercent(-1) }

//go:wasmexport cabi_realloc
func realloc(old, oldLen, align, newLen uint32) uint32 {
	block := make([]byte, newLen)
	copy(block, bytes(old, min(oldLen, newLen)))
	kept = append(kept, block)
	return address(block)
}

//go:wasmexport decide
func export(request uint32) uint32 {
	var answer writer
	decision, err := decided(memory(request))
	if err == nil && decision == nil {
		err = errors.New("the policy returned neither a decision nor an error")
	}
	if err != nil {
		answer.failure(err)
	} else {
		answer.word(0)
		answer.decision(decision)
	}
	kept = append(kept, answer.bytes)
	return address(answer.bytes)
}

func decided(request memory) (decision *Decision, err error) {
	defer func() {
		if panicked := recover(); panicked != nil {
			err = &Failure{"panic", describe(panicked)}
		}
	}()
	return decide(readRequest(request))
}

// Without fmt, which is larger than the rest of a policy.
func describe(panicked any) string {
	switch panicked := panicked.(type) {
	case error:
		return panicked.Error()
	case string:
		return panicked
	}
	return "of another type than error and string"
}

func address(block []byte) uint32 { return uint32(uintptr(unsafe.Pointer(unsafe.SliceData(block)))) }

func bytes(at, len uint32) []byte {
	if len == 0 {
		return nil
	}
	return unsafe.Slice((*byte)(unsafe.Pointer(uintptr(at))), len)
}

// memory is an address in the layout that the component model gives to the types of the world.
type memory uint32

func (at memory) byte() uint8    { return *(*uint8)(unsafe.Pointer(uintptr(at))) }
func (at memory) short() uint16  { return *(*uint16)(unsafe.Pointer(uintptr(at))) }
func (at memory) word() uint32   { return *(*uint32)(unsafe.Pointer(uintptr(at))) }
func (at memory) bytes() []byte  { return bytes(at.word(), (at + 4).word()) }
func (at memory) string() string { return unsafe.String(unsafe.SliceData(at.bytes()), (at + 4).word()) }
func (at memory) optional() bool { return at.byte() != 0 }
func (at memory) count() uint32  { return (at + 4).word() }
func (at memory) element(number, size uint32) memory {
	return memory(at.word() + number*size)
}

func readRequest(at memory) *Request {
	if at.byte() != 0 {
		return &Request{Opaque: &Opaque{ContentType: (at + 4).string(), Bytes: (at + 12).bytes()}}
	}
	http := at + 4
	request := &HTTPRequest{
		Method: http.string(), Scheme: (http + 8).string(), Host: (http + 16).string(), Path: (http + 24).string(),
		Source: readPeer(http + 64), Destination: readPeer(http + 96),
	}
	if (http + 32).optional() {
		query := (http + 36).string()
		request.Query = &query
	}
	headers := http + 44
	request.Headers = make([]Header, headers.count())
	for number := range request.Headers {
		header := headers.element(uint32(number), 16)
		request.Headers[number] = Header{header.string(), (header + 8).bytes()}
	}
	if (http + 52).optional() {
		request.Body = append([]byte{}, (http + 56).bytes()...)
	}
	attributes := http + 128
	request.Attributes = make([]Attribute, attributes.count())
	for number := range request.Attributes {
		attribute := attributes.element(uint32(number), 16)
		request.Attributes[number] = Attribute{attribute.string(), (attribute + 8).string()}
	}
	return &Request{HTTP: request}
}

func readPeer(at memory) Peer {
	peer := Peer{Port: (at + 18).short()}
	switch at.byte() {
	case 1:
		peer.Address = netip.AddrFrom4([4]byte(bytes(uint32(at)+2, 4)))
	case 2:
		var address [16]byte
		for group := range memory(8) {
			binary.BigEndian.PutUint16(address[2*group:], (at + 2 + 2*group).short())
		}
		peer.Address = netip.AddrFrom16(address)
	}
	if (at + 20).optional() {
		peer.Principal = (at + 24).string()
	}
	return peer
}

// writer puts an answer together in the same layout.
type writer struct{ bytes []byte }

func (to *writer) word(value uint32)  { to.bytes = binary.LittleEndian.AppendUint32(to.bytes, value) }
func (to *writer) short(value uint16) { to.bytes = binary.LittleEndian.AppendUint16(to.bytes, value) }

func (to *writer) block(block []byte, count int) {
	kept = append(kept, block)
	to.word(address(block))
	to.word(uint32(count))
}

func (to *writer) string(text string) { to.block([]byte(text), len(text)) }

func (to *writer) failure(err error) {
	var failure *Failure
	if !errors.As(err, &failure) {
		failure = &Failure{"error", err.Error()}
	}
	to.word(1)
	to.string(failure.Reason)
	to.string(failure.Detail)
	// A decision would be so long.
	to.bytes = append(to.bytes, make([]byte, 72-len(to.bytes))...)
}

func (to *writer) decision(decision *Decision) {
	if decision.denied {
		to.word(1)
		to.string(decision.reason)
	} else {
		to.word(0)
		to.block(nil, 0)
	}
	if decision.Status != 0 {
		to.short(1)
	} else {
		to.short(0)
	}
	to.short(decision.Status)
	to.headers(decision.HeadersSet)
	to.headers(decision.HeadersAppend)
	var names writer
	for _, name := range decision.HeadersRemove {
		names.string(name)
	}
	to.block(names.bytes, len(decision.HeadersRemove))
	if decision.Body != nil {
		to.word(1)
	} else {
		to.word(0)
	}
	to.block(decision.Body, len(decision.Body))
	var metadata writer
	for _, metadatum := range decision.Metadata {
		metadata.string(metadatum.Key)
		metadata.string(metadatum.Value)
	}
	to.block(metadata.bytes, len(decision.Metadata))
	to.word(decision.CacheMillis)
	to.word(uint32(decision.CacheScope))
}

func (to *writer) headers(headers []Header) {
	var lines writer
	for _, header := range headers {
		lines.string(header.Name)
		lines.block(header.Value, len(header.Value))
	}
	to.block(lines.bytes, len(headers))
}
