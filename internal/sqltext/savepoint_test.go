package sqltext

import (
	"database/sql"
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/lib/pq"
)

var savepointNames = map[string]string{
	"savepoint s":                                    "s",
	"SAVEPOINT Sp1;":                                 "sp1",
	"; /* c */ savepoint -- d\n é_ÄZ$1 ;;":           "é_Äz$1",
	`savepoint "Sp1"`:                                "Sp1",
	`savepoint "a ""b"""`:                            `a "b"`,
	`savepoint "a;b.c"`:                              "a;b.c",
	`savepoint "select"`:                             "select",
	`savepoint """"`:                                 `"`,
	"savepoint savepoint":                            "savepoint",
	"savepoint work":                                 "work",
	"release s":                                      "s",
	"release S":                                      "s",
	"release savepoint S":                            "s",
	"release savepoint":                              "savepoint",
	"release savepoint savepoint":                    "savepoint",
	`release "savepoint"`:                            "savepoint",
	"rollback to s":                                  "s",
	"rollback to savepoint s":                        "s",
	"Rollback Work To Savepoint S":                   "s",
	"rollback transaction to s":                      "s",
	"rollback transaction to savepoint s":            "s",
	"rollback to savepoint":                          "savepoint",
	"rollback to savepoint savepoint":                "savepoint",
	"rollback to work":                               "work",
	"rollback to transaction":                        "transaction",
	`ROLLBACK/**/TO/**/"S"`:                          "S",
	"savepoint u":                                    "u",
	"savepoint e":                                    "e",
	"savepoint \U0001F600":                           "\U0001F600",
	`savepoint "` + strings.Repeat("é", 40) + `"`:    strings.Repeat("é", 31),
	`savepoint "x` + strings.Repeat("é", 40) + `"`:   "x" + strings.Repeat("é", 31),
	`savepoint ` + strings.Repeat("Ab", 40):          strings.Repeat("ab", 31) + "a",
	`savepoint "` + strings.Repeat(`""`, 70) + `"`:   strings.Repeat(`"`, 63),
	`savepoint ` + strings.Repeat("a", 63):           strings.Repeat("a", 63),
	`savepoint ` + strings.Repeat("a", 64):           strings.Repeat("a", 63),
	`savepoint ` + strings.Repeat("\u20ac", 22):      strings.Repeat("\u20ac", 21),
	`savepoint aa` + strings.Repeat("\u20ac", 22):    "aa" + strings.Repeat("\u20ac", 20),
	`savepoint a` + strings.Repeat("\U0001F600", 20): "a" + strings.Repeat("\U0001F600", 15),
}

func TestSavepointIsTheNameTheServerCompares(t *testing.T) {
	for text, want := range savepointNames {
		if got := Analyze(text).Savepoint; got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
	for _, text := range []string{
		"", "select 1", "savepoint", "savepoint to", "savepoint select", "savepoint a b", "savepoint a.b", "savepoint 'a'", "savepoint $1", "savepoint (a)",
		`savepoint ""`, `savepoint U&"a"`, `savepoint "a`, "release", "release to s", "release savepoint a b", "rollback",
		"rollback to", "rollback s", "rollback to to s", "rollback work transaction to s", "rollback to savepoint a b",
		"rollback prepared 's'", "abort to s", "commit s", "rollback and chain", "savepoint s; savepoint t", "savepoint s; select 1",
		"select 1; savepoint s", `"savepoint" s`, "savepoint s /*", "prepare savepoint as select 1",
	} {
		if got := Analyze(text).Savepoint; got != "" {
			t.Errorf("%q: %q", text, got)
		}
	}
}

// serversSavepoint has the server look for a savepoint where there is none, and
// say which it looked for. It is empty if the server does not know the syntax.
func serversSavepoint(t *testing.T, db *sql.DB, text string) string {
	t.Helper()
	tx, err := db.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := tx.Rollback(); err != nil {
			t.Errorf("%q: %v", text, err)
		}
	}()
	_, err = tx.ExecContext(t.Context(), text)
	pqError, ok := errors.AsType[*pq.Error](err)
	switch {
	case !ok:
		t.Fatalf("%q: %v", text, err)
	case pqError.Code == "42601": // syntax_error
		return ""
	case pqError.Code != "3B001": // invalid_savepoint_specification
		t.Fatalf("%q: %v", text, err)
	}
	name, found := strings.CutPrefix(pqError.Message, `savepoint "`)
	name, closed := strings.CutSuffix(name, `" does not exist`)
	if !found || !closed {
		t.Fatalf("%q: %v", text, err)
	}
	return name
}

func TestServerGivesSavepointsTheSameNames(t *testing.T) {
	db := open(t)
	for text, want := range savepointNames {
		if Analyze(text).Keyword == Savepoint {
			// The command itself would succeed and tell nothing.
			spelled := strings.TrimRight(text[strings.Index(strings.ToLower(text), "savepoint")+len("savepoint"):], ";")
			text = "rollback to savepoint " + spelled
		}
		if got := serversSavepoint(t, db, text); got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
	for _, text := range []string{
		"release", "release to s", "release savepoint a b", "rollback to", "rollback s", "rollback to to s", `rollback to ""`,
		"rollback work transaction to s", "rollback to savepoint a b", "abort to s", "rollback to a.b", "rollback to 'a'",
	} {
		if got := serversSavepoint(t, db, text); got != "" {
			t.Errorf("%q: %q", text, got)
		}
	}
}

// reservedLater are words that name savepoints in some versions that are supported, and
// are reserved in later ones: of PostgreSQL 16.
var reservedLater = []string{"system_user"}

func TestServerLetsTheSameKeywordsNameASavepoint(t *testing.T) {
	db := open(t)
	for word, category := range serversKeywords(t, db) {
		got := Analyze("rollback to " + word).Savepoint
		want := serversSavepoint(t, db, "rollback to "+word)
		// Some words can be functions or types but no names of columns and
		// the like. The list of these changes; nothing comes of a name that
		// the server refuses.
		if want == "" && (category == "T" || slices.Contains(reservedLater, word)) {
			continue
		}
		if got != want {
			t.Errorf("%s, of category %s: %q, the server says %q", word, category, got, want)
		}
	}
}

func TestServerGivesRandomSavepointsTheSameNames(t *testing.T) {
	db := open(t)
	random := rand.New(rand.NewPCG(3, 4))
	commands := []string{"release", "release savepoint", "rollback to", "rollback work to savepoint", "ROLLBACK TRANSACTION TO", "rollback"}
	pieces := []string{"a", "B", "é", "É", "\u20ac", "\U0001F600", "$", "1", "_", `""`, `"`, " ", ".", "savepoint", "to", "work", "/**/", "xxxxxxxxxx"}
	named := 0
	for range 3000 {
		var b strings.Builder
		b.WriteString(commands[random.IntN(len(commands))])
		b.WriteString(" ")
		quoted := random.IntN(2) == 0
		if quoted {
			b.WriteString(`"`)
		}
		few := pieces[:2+random.IntN(len(pieces)-1)]
		for range 1 + random.IntN(1<<random.IntN(6)) {
			b.WriteString(few[random.IntN(len(few))])
		}
		if quoted {
			b.WriteString(`"`)
		}
		info := Analyze(b.String())
		if info.Suspicious || info.Keyword != Release && info.Keyword != RollbackTo {
			continue
		}
		server := serversSavepoint(t, db, b.String())
		if server != info.Savepoint {
			t.Errorf("%q: %q, the server says %q", b.String(), info.Savepoint, server)
		}
		if server != "" {
			named++
		}
	}
	if named < 500 {
		t.Errorf("only %d of the names were any", named)
	}
}
