package sqltext

import (
	"errors"
	"strings"
	"testing"

	"github.com/lib/pq"
)

func TestCopyWithFreezeIsFound(t *testing.T) {
	for text, want := range map[string]bool{
		"copy t from stdin freeze":                           true,
		"copy t from stdin with freeze":                      true,
		"copy t from stdin csv freeze":                       true,
		"copy t from '/a' (freeze)":                          true,
		"COPY t (a) FROM STDIN WITH (FORMAT csv, Freeze on)": true,
		`copy t from stdin ("freeze", header)`:               true,
		"copy t from stdin (freeze false)":                   true, // its value does not matter
		"select 1; copy t from stdin (freeze)":               true,
		"copy t from stdin":                                  false,
		`copy t ("freeze") from stdin`:                       false,
		`copy "freeze" from stdin`:                           false,
		"copy (select freeze from t) to stdout":              false,
		`copy t from stdin (force_null ("freeze"))`:          false,
		`copy t from stdin csv force null "freeze"`:          false,
		"copy t from stdin (delimiter 'freeze')":             false,
		"copy t from stdin (format freeze)":                  false,
		"vacuum (freeze) t":                                  false,
		"copy t from stdin; vacuum freeze t":                 false,
	} {
		if got := Analyze(text).CopyFreeze; got != want {
			t.Errorf("%q: %v, want %v", text, got, want)
		}
	}
}

// The server refuses to freeze the rows of a table that is older than the
// transaction, once it has understood that it should.
func TestServerSeesFreezeInTheSameCopies(t *testing.T) {
	db := openWithTables(t)
	for _, text := range []string{
		"copy t from '/dev/null'", "copy t from '/dev/null' freeze", "copy t from '/dev/null' with csv freeze",
		"copy t from '/dev/null' csv header", "copy t (a) from '/dev/null' with (freeze)",
		`copy t from '/dev/null' (format csv, "freeze" on, force_null (b))`, "copy t from '/dev/null' (null 'freeze')",
		"copy t from '/dev/null' csv force not null b", "copy t from '/dev/null' (format csv, force_null (a, b), freeze true)",
		"copy t from '/dev/null' where b = 'freeze'",
	} {
		// lib/pq would take it for a COPY from the client.
		_, err := db.Exec("; " + text)
		pqError, ok := errors.AsType[*pq.Error](err)
		server := ok && strings.Contains(pqError.Message, "FREEZE")
		if err != nil && !server {
			t.Errorf("%q: %v", text, err)
		}
		if got := Analyze(text); got.CopyFreeze != server || got.Hazard != HazardCopy {
			t.Errorf("%q: %v, the server: %v", text, got.CopyFreeze, err)
		}
	}
}
