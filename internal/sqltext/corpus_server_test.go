package sqltext

import (
	"database/sql"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/lib/pq"
)

// corpus returns the texts that the fuzzers of texts begin with.
func corpus(t *testing.T) []string {
	t.Helper()
	texts := append([]string{ormSelect, ormInsert, ormUpdate}, provenReads...)
	texts = append(texts, withOwnRows...)
	texts = append(texts, withoutOwnRows...)
	for _, fuzzer := range []string{"FuzzAnalyze", "FuzzFingerprint"} {
		files, err := filepath.Glob(filepath.Join("testdata", "fuzz", fuzzer, "*"))
		if err != nil || len(files) < 30 {
			t.Fatalf("%d seeds of %s: %v", len(files), fuzzer, err)
		}
		for _, file := range files {
			content, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			_, value, _ := strings.Cut(strings.TrimSuffix(string(content), ")\n"), "\nstring(")
			text, err := strconv.Unquote(value)
			if err != nil {
				t.Fatalf("%s: %v", file, err)
			}
			texts = append(texts, text)
		}
	}
	return texts
}

// agrees compares what Analyze says of a text with what the server does. It
// reports whether the server knows the syntax.
func agrees(t *testing.T, db *sql.DB, text string) bool {
	t.Helper()
	if !utf8.ValidString(text) || strings.Contains(text, "\x00") {
		return false // the server never sees such a text
	}
	info := Analyze(text)
	server, err := ask(t, db, ";"+text) // or lib/pq would take a COPY for its own
	if info.Suspicious {
		return false
	}
	if server == rejected {
		if pqError, ok := errors.AsType[*pq.Error](err); ok &&
			(strings.HasPrefix(pqError.Message, "unterminated ") || strings.HasPrefix(pqError.Message, "trailing junk ")) {
			t.Errorf("%q is not suspicious, and the server says %v", text, err)
		}
		return false
	}
	if (server == several) != (info.Statements > 1) {
		t.Errorf("%q: %d statements, and the server sees several: %v", text, info.Statements, server == several)
		return true
	}
	if server == several {
		return true
	}
	switch info.Keyword {
	case Release, RollbackTo:
		if want := serversSavepoint(t, db, text); info.Savepoint != want {
			t.Errorf("%q: %q, the server says %q", text, info.Savepoint, want)
		}
	case Savepoint:
		if info.Savepoint == "" {
			t.Errorf("%q has no name, and the server has no objection", text)
		}
	}
	if info.OwnRows {
		if p, err := explain(t, db, text); err == nil {
			if err := notOwn(p, info.Keyword); err != nil {
				t.Errorf("%q is said to show its own rows only: %v", text, err)
			}
		}
	}
	return true
}

func TestServerAgreesOnTheFuzzersSeeds(t *testing.T) {
	db := openWithTables(t)
	known := 0
	for _, text := range corpus(t) {
		if agrees(t, db, text) {
			known++
		}
	}
	if known < 100 {
		t.Errorf("the server knows the syntax of only %d texts", known)
	}
}

// TestServerAgreesOnMutatedSeeds cuts the seeds at tokens or anywhere, and puts
// parts of them together.
func TestServerAgreesOnMutatedSeeds(t *testing.T) {
	db := openWithTables(t)
	random := rand.New(rand.NewPCG(9, 10))
	seeds := corpus(t)
	pieces := []string{
		"'", "''", `"`, "$$", "$a$", ";", "; select 1", "--", "/*", "*/", "\n", " ", "(", ")", "\\", "E'", "U&'", "N'", "1", ".", ",", "::", "é", "e", "$1",
		" for update ", " from u ", " returning a ", " begin ", " as ", "select ", "savepoint ", " to ",
	}
	// cut returns a place in a text, most often one between two tokens.
	cut := func(text string) int {
		if random.IntN(3) == 0 {
			return random.IntN(len(text) + 1)
		}
		tokens := tokensOf(t, text)
		if len(tokens) == 0 {
			return 0
		}
		return tokens[random.IntN(len(tokens))].start
	}
	known := 0
	for range 30_000 {
		text := seeds[random.IntN(len(seeds))]
		for range 1 + random.IntN(3) {
			from := cut(text)
			switch random.IntN(4) {
			case 0:
				text = text[:from] + text[max(from, cut(text)):]
			case 1:
				text = text[:from] + pieces[random.IntN(len(pieces))] + text[from:]
			case 2:
				other := seeds[random.IntN(len(seeds))]
				text = text[:from] + " " + other[cut(other):]
			default:
				other := seeds[random.IntN(len(seeds))]
				begin := cut(other)
				text = text[:from] + other[begin:max(begin, cut(other))] + " " + text[from:]
			}
		}
		if agrees(t, db, text) {
			known++
		}
	}
	if known < 2000 {
		t.Errorf("the server knows the syntax of only %d texts", known)
	}
}

// TestServerCountsTheSameResults has the server run texts of harmless pieces
// and counts what comes back.
func TestServerCountsTheSameResults(t *testing.T) {
	db := open(t)
	random := rand.New(rand.NewPCG(11, 12))
	pieces := []string{
		"select 1", "select ';'", "select E'\\';'", "select $$;$$", `select 1 as ";"`, "(select 1)", "values (1), (2)", ";", ";", ";", ";", "\n",
		" /* ; */ ", " -- ;\n", "with x as (select 1) table x", "select 'C:\\temp'", "show server_version", "select '\\\\', N';'", " union ", ", ';'",
	}
	counted := map[int]int{}
	for range 4000 {
		var b strings.Builder
		for range 1 + random.IntN(8) {
			b.WriteString(pieces[random.IntN(len(pieces))])
		}
		text := b.String()
		rows, err := db.QueryContext(t.Context(), text)
		if err != nil {
			continue
		}
		results := 0
		for more := true; more; more = rows.NextResultSet() {
			if names, err := rows.Columns(); err == nil && len(names) > 0 {
				results++
			}
			for rows.Next() {
			}
		}
		if err := errors.Join(rows.Err(), rows.Close()); err != nil {
			continue // in a later statement
		}
		counted[results]++
		if info := Analyze(text); info.Statements != results || info.Suspicious {
			t.Errorf("%q: %d statements, the server gave %d results: %+v", text, info.Statements, results, info)
		}
	}
	if counted[0] < 20 || counted[1] < 100 || counted[2] < 100 || counted[3] < 20 {
		t.Errorf("only so many texts had so many results: %v", counted)
	}
}
