package portcullis

import "unsafe"

// What is used of these becomes an import of the policy, which a trust policy has to permit.

// Now is when the request was received, nanoseconds since 1970. It stands still while the policy runs.
//
//go:wasmimport portcullis:policy/clock@1.0.0 now
func Now() uint64

// Random is a number from the request's seed: a replay with the same seed sees the same numbers.
//
//go:wasmimport portcullis:policy/random@1.0.0 get-u64
func Random() uint64

// Level is how much a line of log matters.
type Level uint32

const (
	Debug Level = iota
	Info
	Warn
)

// Log writes a line for the operator. At most 16 lines of 1 KiB are kept per decision.
func Log(level Level, line string) {
	write(uint32(level), unsafe.Pointer(unsafe.StringData(line)), uint32(len(line)))
}

//go:wasmimport portcullis:policy/log@1.0.0 write
func write(level uint32, text unsafe.Pointer, length uint32)

// Data returns the value of a key in the data snapshots that the policy's manifest names.
func Data(key string) (value []byte, found bool) {
	var area [3]uint32
	get(unsafe.Pointer(unsafe.StringData(key)), uint32(len(key)), unsafe.Pointer(&area))
	return bytes(area[1], area[2]), area[0]&1 != 0
}

//go:wasmimport portcullis:policy/data@1.0.0 get
func get(key unsafe.Pointer, length uint32, result unsafe.Pointer)

// Entry is one of a data snapshot's.
type Entry struct {
	Key   string
	Value []byte
}

// Entries returns the entries whose key starts with prefix, in the order of the keys' bytes: the first limit of those after
// the key after, or of all where that is empty. Fewer may come, but none only where there is none.
func Entries(prefix, after string, limit uint32) []Entry {
	var area [2]uint32
	var following uint32
	if after != "" {
		following = 1
	}
	entries(unsafe.Pointer(unsafe.StringData(prefix)), uint32(len(prefix)),
		following, unsafe.Pointer(unsafe.StringData(after)), uint32(len(after)), limit, unsafe.Pointer(&area))
	found := make([]Entry, area[1])
	for number := range found {
		entry := memory(area[0] + 16*uint32(number))
		found[number] = Entry{entry.string(), (entry + 8).bytes()}
	}
	return found
}

//go:wasmimport portcullis:policy/data@1.0.0 entries
func entries(prefix unsafe.Pointer, length, following uint32, after unsafe.Pointer, afterLength, limit uint32, result unsafe.Pointer)

// Count adds to a counter that the policy's manifest declares.
func Count(name string, value uint64) {
	add(unsafe.Pointer(unsafe.StringData(name)), uint32(len(name)), value)
}

//go:wasmimport portcullis:policy/metric@1.0.0 add
func add(name unsafe.Pointer, length uint32, value uint64)
