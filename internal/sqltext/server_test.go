package sqltext

import (
	"context"
	"database/sql"
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/lib/pq"

	"github.com/pgretry/pgretry/internal/pgserver/pgtest"
)

func open(t *testing.T) *sql.DB {
	t.Helper()
	db, err := sql.Open("postgres", pgtest.DSN(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	return db
}

// verdict is what the server makes of a text.
type verdict int

const (
	rejected verdict = iota // its syntax
	oneAtMost
	several
)

// ask has the server parse a text. What it holds is not run.
func ask(t *testing.T, db *sql.DB, text string) (verdict, error) {
	t.Helper()
	statement, err := db.Prepare(text)
	if err == nil {
		return oneAtMost, statement.Close()
	}
	pqError, ok := errors.AsType[*pq.Error](err)
	switch {
	case !ok:
		t.Fatalf("%q: %v", text, err)
	case pqError.Code == "42601" && strings.Contains(pqError.Message, "multiple commands"):
		return several, nil
	case pqError.Code == "42601" || pqError.Code == "22025":
		return rejected, err
	}
	return oneAtMost, nil // parsed, and something it names does not exist
}

func TestServerCountsTheSameStatements(t *testing.T) {
	db := open(t)
	texts := []string{
		"", ";", "; -- x", "/* /* */ ; */", "select 1", "select 1;;", ";;select 1; -- ; x", "select 1;select 2",
		"select ';'", "select ''';'", "select '';select ''", `select E'\';'`, `select E'\\';select 2`, `select e'\''';'`,
		"select E'a'\n'\\';'", "select E'a' -- c ; '\n  '\\';'", "select 'a'\n';'", "select 'a'\r';'", "select 'a'\n\n-- ;\n';'",
		"select B'0'\n'1'; select 2", "select X'1F';select B'1'", "select N';', U&';', U&'\\003b', u&'!003b' uescape '!'",
		`select 1 as ";"`, `select 1 as """;"`, `select 1 as U&";"`, `select 1 as U&"\003b;" ; select 2`,
		"select $$;$$", "select $a$;$$;$b$;$a$", "select $a$;$A$;$a$", "select $_1é$;$_1é$", "select $$a$$;select $$b$$",
		"select 1 as a$b$; select 2 as c$b$", "select 1 as é$$; select 1 as é$$", "select $1::int; select $2::int",
		"select $1||$$;$$", "select 1||$$;$$", "select $1::text||$$;$$;select $2::int", "select a.b$$, ';' from t a; select 1 as b$$", "select 1 -- ; select 2\n; select 3",
		"select 1 -- ; select 2\r; select 3", "select 1 -- ; select 2", "select 1 /* ; /* ; */ ; */", "select 1 /*/ ; */",
		"select 2*/**/3; select 4", "select 2 */* ; */ 3", "select 1+--;\n2", "select 1 -/* ; */- 2", "select 1 +-/**/1; select 1",
		"select 1.; select .5", "select 1.5e5;select 1E-5", "select (1);select (array[1,2])[1:2]", "select 1.e3;select 2",
		"create rule r as on insert to t do (select 1; select 2)", "create rule r as on insert to t do also (;select 1;;)",
		"create function f() returns int begin atomic select 1; select case when true then 1 end; end",
		"create function f() returns int begin atomic select 1; select case when true then 1 end; end; select 2",
		"create or replace procedure p() language sql begin atomic select 1 as end; end; select 1",
		"create function f() returns int language sql as $$ select 1; select 2; $$",
		"create function f() returns int language sql as 'select 1; select 2'; select 1",
		"begin; select 1; end", "begin", "commit and chain", "rollback to savepoint s", "do $$ begin ; end $$",
		"prepare p as select ';'", "prepare transaction ';'", "explain (analyze) select ';'",
		"select 'é;\u00a0', \"\u00a0;\" from t", "notify c, ';'", "set a.b = ';'",
	}
	for _, text := range append(texts, provenReads...) {
		got, err := ask(t, db, text)
		if got == rejected {
			t.Errorf("%q: %v", text, err)
			continue
		}
		if n := Analyze(text).Statements; (got == several) != (n > 1) {
			t.Errorf("%q: %d statements, and the server sees several: %v", text, n, got == several)
		}
	}
}

// TestServerCutsRandomTextsAtTheSamePlaces builds texts of pieces that end,
// hide or seem to end other pieces.
func TestServerCutsRandomTextsAtTheSamePlaces(t *testing.T) {
	db := open(t)
	random := rand.New(rand.NewPCG(1, 2))
	pieces := []string{
		"select", " ", "\n", "\t", "1", "1.5", "$1", "a", "as", "b$", "e", "U&", "'", "''", "'x'", "E'\\''", "E'", "\"", "\"y\"",
		"$$", "$q$", "--", "/*", "*/", ";", ";", ";select 1", ",", "(", ")", "+", "-", "*", "/", "::text", "[", "]", ".",
		"N'z'", "B'1'", "\\", "é", "select 1", "select 'x'",
	}
	judged, both := 0, map[bool]int{}
	for range 40_000 {
		var b strings.Builder
		b.WriteString("select 1")
		for range 1 + random.IntN(9) {
			b.WriteString(pieces[random.IntN(len(pieces))])
			if random.IntN(3) == 0 {
				b.WriteString(" ")
			}
		}
		text := b.String()
		got, _ := ask(t, db, text)
		if got == rejected {
			continue
		}
		info := Analyze(text)
		if (got == several) != (info.Statements > 1) && !info.Suspicious {
			t.Errorf("%q: %d statements, and the server sees several: %v", text, info.Statements, got == several)
		}
		judged++
		both[got == several]++
	}
	if judged < 300 || both[true] < 50 || both[false] < 50 {
		t.Errorf("only %d texts had a syntax the server knows: %v", judged, both)
	}
}

// TestServerRunsProvenReadsWithoutWriting runs each where writing is refused,
// and where it would leave a transaction id.
func TestServerRunsProvenReadsWithoutWriting(t *testing.T) {
	db := open(t)
	for _, text := range provenReads {
		for _, readOnly := range []bool{true, false} {
			tx, err := db.BeginTx(t.Context(), &sql.TxOptions{ReadOnly: readOnly})
			if err != nil {
				t.Fatal(err)
			}
			if err := readAll(t.Context(), tx, text); err != nil {
				t.Errorf("%q: %v", text, err)
			} else {
				var written bool
				const query = "select txid_current_if_assigned() is not null"
				if err := tx.QueryRowContext(t.Context(), query).Scan(&written); err != nil {
					t.Error(err)
				}
				if written {
					t.Errorf("%q got a transaction id", text)
				}
			}
			if err := tx.Rollback(); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func readAll(ctx context.Context, tx *sql.Tx, text string) error {
	rows, err := tx.QueryContext(ctx, text)
	if err != nil {
		return err
	}
	for rows.Next() {
	}
	return errors.Join(rows.Err(), rows.Close())
}

func TestServerHasEveryHarmlessFunctionAsStableOrImmutable(t *testing.T) {
	db := open(t)
	volatile := strings.Fields(harmlessVolatile)
	for name := range harmless {
		var overloads, bad int
		const query = `select count(*), count(*) filter (where provolatile = 'v')
			from pg_catalog.pg_proc where proname = $1 and pronamespace = 'pg_catalog'::regnamespace`
		if err := db.QueryRow(query, name).Scan(&overloads, &bad); err != nil {
			t.Fatal(err)
		}
		switch {
		case overloads == 0:
			t.Errorf("there is no function %s", name)
		case bad > 0 && !slices.Contains(volatile, name):
			t.Errorf("%d of %d functions %s are volatile", bad, overloads, name)
		}
	}
	for _, name := range []string{
		// stable, and yet not without effects or running what it is given
		"pg_current_xact_id", "txid_current", "table_to_xml", "database_to_xml", "json_populate_record", "pg_cursor",
	} {
		if Harmless(name) {
			t.Errorf("%s is on the list", name)
		}
	}
}

// serversKeywords returns the category of each of the server's keywords.
func serversKeywords(t *testing.T, db *sql.DB) map[string]string {
	t.Helper()
	category := map[string]string{}
	rows, err := db.Query("select word, catcode from pg_get_keywords()")
	if err != nil {
		t.Fatal(err)
	}
	for rows.Next() {
		var word, code string
		if err := rows.Scan(&word, &code); err != nil {
			t.Fatal(err)
		}
		category[word] = code
	}
	if err := errors.Join(rows.Err(), rows.Close()); err != nil {
		t.Fatal(err)
	}
	return category
}

// A word that the server lets name a function or a type must not be skipped.
func TestServerReservesTheWordsThatAreSkipped(t *testing.T) {
	db := open(t)
	category := serversKeywords(t, db)
	for name, w := range words {
		if w.class&classReserved != 0 && category[name] != "R" {
			t.Errorf("%s is of category %q, not reserved", name, category[name])
		}
		if w.class&classSyntax != 0 && category[name] != "C" {
			t.Errorf("%s is of category %q and can name a function", name, category[name])
		}
	}
}

func TestServerHasEveryBuiltinType(t *testing.T) {
	db := open(t)
	for name := range builtinTypes {
		if slices.Contains([]string{"double", "national", "varying", "precision"}, name) {
			continue // parts of names
		}
		query := "select '' where null::" + name + " is null"
		if name == "nchar" {
			query = "select '' where null::nchar(3) is null"
		}
		var empty string
		if err := db.QueryRow(query).Scan(&empty); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		var own bool
		const builtin = "select typnamespace = 'pg_catalog'::regnamespace from pg_type where oid = $1::text::regtype"
		if err := db.QueryRow(builtin, name).Scan(&own); err != nil || !own {
			t.Errorf("%s is no type of the server's own: %v", name, err)
		}
	}
}
