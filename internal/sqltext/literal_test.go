package sqltext

import (
	"context"
	"database/sql"
	"errors"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/lib/pq"
)

// bothSettings returns a function that has the server parse a text with
// standard_conforming_strings on and off.
func bothSettings(t *testing.T) func(text string) (on, off verdict) {
	t.Helper()
	db := open(t)
	ask := func(setting string) func(string) verdict {
		c, err := db.Conn(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := c.Close(); err != nil {
				t.Error(err)
			}
		})
		if _, err := c.ExecContext(t.Context(), "set standard_conforming_strings = "+setting+"; set escape_string_warning = off"); err != nil {
			t.Fatal(err)
		}
		return func(text string) verdict { return askOn(t, c, text) }
	}
	on, off := ask("on"), ask("off")
	return func(text string) (verdict, verdict) { return on(text), off(text) }
}

// askOn has the server parse a text in a certain session. With plain literals
// that are escaped a text can be refused for more reasons than its syntax.
func askOn(t *testing.T, c *sql.Conn, text string) verdict {
	t.Helper()
	statement, err := c.PrepareContext(context.Background(), text)
	if err == nil {
		err = statement.Close()
		if err != nil {
			t.Fatal(err)
		}
		return oneAtMost
	}
	pqError, ok := errors.AsType[*pq.Error](err)
	switch {
	case !ok:
		t.Fatalf("%q: %v", text, err)
	case pqError.Code == "42601" && strings.Contains(pqError.Message, "multiple commands"):
		return several
	}
	return rejected
}

func TestServerReadsPlainLiteralsAlikeWithBothSettings(t *testing.T) {
	parse := bothSettings(t)
	for text, want := range map[string]struct {
		on, off    verdict
		suspicious bool
	}{
		`select 'C:\temp', 'a'`:           {oneAtMost, oneAtMost, false},
		`select 'C:\temp'; select ';'`:    {several, several, false},
		`select '\\'; select 1`:           {several, several, false},
		`select '\\', ';'`:                {oneAtMost, oneAtMost, false},
		`select '\\'';'`:                  {oneAtMost, oneAtMost, false},
		`select 'a\\\\;\n', N'\\', ';'`:   {oneAtMost, oneAtMost, false},
		"select 'a'\n'\\\\', ';'":         {oneAtMost, oneAtMost, false},
		`select '\'; select '1'`:          {several, rejected, true},
		`select '\'; select ' -- '`:       {several, oneAtMost, true},
		`select '\'';select '1' as "'"`:   {rejected, several, true},
		`select '\\\', ';'`:               {oneAtMost, rejected, true},
		`select '\\\', ' -- '; select 1`:  {several, oneAtMost, true},
		`select N'\'; select N'1'`:        {several, rejected, true},
		`select U&'\\'; select '1'`:       {several, rejected, false},
		`select B'1'; select '1\b'`:       {several, several, false},
		`select E'\'', ';'`:               {oneAtMost, oneAtMost, false},
		`select $$\$$; select "\" from t`: {several, several, false},
	} {
		on, off := parse(text)
		if on != want.on || off != want.off {
			t.Errorf("%q: the server says %v if on and %v if off, want %v and %v", text, on, off, want.on, want.off)
		}
		info := Analyze(text)
		if info.Suspicious != want.suspicious {
			t.Errorf("%q: %v, want %v", text, info.Suspicious, want.suspicious)
		}
		if !info.Suspicious && on != rejected && (on == several) != (info.Statements > 1) {
			t.Errorf("%q: %d statements", text, info.Statements)
		}
	}
}

func TestServerReadsRandomLiteralsAlikeWithBothSettings(t *testing.T) {
	parse := bothSettings(t)
	random := rand.New(rand.NewPCG(7, 8))
	pieces := []string{`\`, `\`, `\`, `'`, `'`, `'`, `''`, `\\`, "a", ";select 1", ",", " ", "\n", "E'", "N'", "$$", "--", "; --", "; --", "é", "||", `"`}
	plain, disagreed := 0, 0
	for range 40_000 {
		var b strings.Builder
		b.WriteString("select '")
		for range 1 + random.IntN(12) {
			b.WriteString(pieces[random.IntN(len(pieces))])
		}
		if random.IntN(2) == 0 {
			b.WriteString("'")
		}
		text := b.String()
		info := Analyze(text)
		on, off := parse(text)
		if on != rejected && off != rejected && on != off {
			disagreed++
		}
		if info.Suspicious {
			continue
		}
		for _, v := range []verdict{on, off} {
			if v != rejected && (v == several) != (info.Statements > 1) {
				t.Errorf("%q: %d statements, the server says %v if on and %v if off", text, info.Statements, on, off)
			}
		}
		if strings.Contains(text, `\`) && on != rejected && off != rejected {
			plain++
		}
	}
	if plain < 200 || disagreed == 0 {
		t.Errorf("only %d texts with a backslash were read alike, %d otherwise", plain, disagreed)
	}
}
