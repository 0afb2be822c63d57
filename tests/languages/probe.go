// Reaches outside by the standard library, as the body of an opaque request says. Denies with what came of it.
package main

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"policy/portcullis"
)

func init() { portcullis.Decide(decide) }

func main() {}

func decide(request *portcullis.Request) (*portcullis.Decision, error) {
	return portcullis.Deny(403, probe(string(request.Opaque.Bytes))), nil
}

func probe(what string) string {
	switch what {
	case "open":
		_, err := os.Open("/etc/hostname")
		return said(err)
	case "write":
		return said(os.WriteFile("/tmp/portcullis-probe", []byte("x"), 0o644))
	case "list":
		entries, err := os.ReadDir("/")
		return fmt.Sprint(len(entries), " ", said(err))
	case "environment":
		return fmt.Sprint(os.Environ(), os.Getenv("PATH"))
	case "arguments":
		return fmt.Sprint(len(os.Args))
	case "clock":
		return strconv.FormatInt(time.Now().UnixNano(), 10)
	case "random":
		var bytes [16]byte
		_, err := rand.Read(bytes[:])
		return hex.EncodeToString(bytes[:]) + said(err)
	case "print":
		fmt.Println("to standard output")
		fmt.Fprintln(os.Stderr, "to standard error")
		return "printed"
	case "sleep":
		time.Sleep(time.Millisecond)
		return "slept"
	case "exit":
		os.Exit(0)
	case "panic":
		panic("at the policy")
	case "work":
		words := make(map[string]int)
		for number := range 50_000 {
			words[strconv.Itoa(number%5000)] += number
		}
		return strings.Repeat("x", len(words)%7) + strconv.Itoa(len(words))
	}
	return "unknown"
}

func said(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
