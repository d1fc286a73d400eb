package sqltext

import (
	"slices"
	"strings"
	"testing"
)

func TestFingerprintIsThatOfAllTextsOfOneShape(t *testing.T) {
	shapes := [][]string{
		{"", " ", ";", "-- nothing", ";;/* ; */;"},
		{
			"select * from t where a in (1, 2, 3)", "SELECT * FROM T WHERE A IN (1)", "select*from\"t\"where a in($1,$2)", "select * from t where a in ('x', E'\\'', $$y$$, 1e5)",
			"select /* 1 */ * from t -- (\n where a in (-1, +2, null, true, 'x');", "; select * from t where \"a\" in (U&'x')",
		},
		{"select * from t where a in (1, b)", "select * from t where a in ('x', b)"},
		{"select * from t where a in ()"},
		{
			"insert into t (a, b) values (1, 2)", "insert into t (a, b) values (1,2),(3,4)", "insert into t(a,b) values($1,$2),($3,$4),($5,$6)",
			"INSERT INTO t (a, b) VALUES (DEFAULT, 'x'), (DEFAULT, NULL)", "insert into t (a, b) values (true, -1)", "insert into t (a, b) values (1)",
		},
		{"insert into t (a) values (now(), 1)", "insert into t (a) values (now(), 1), (now(), 2)"},
		{"insert into t (a) values (now(), 1), (1)", "insert into t (a) values (now(), 2), (3, 4), (5)"},
		{"insert into t (a) values (1) returning a", "insert into t (a) values (1), (2) returning a"},
		{"select (a, b) in ((1, 2))", "select (a, b) in ((1, 2), (3, 4))", "select (A, B) in (($1, $2), ($3, $4))"},
		{"select f(1), (2)", "select f(1, 2), (3)"},
		{"select f(1)", "select f(1, 2)", "select F('x')", "select \"f\"($1)"},
		{"select \"F\"(1)"},
		{"select f(1), f(2)", "select f(3), f(4)"},
		{"select a + 1", "select a + 2", "select a + $1"},
		{"select a - 1"},
		{"select a = 1", "select a = -1", "select a = - 1"},
		{"select a = -b"},
		{"select a[1]", "select a[2]"},
		{"select array[1]", "select array[1, 2]", "select array['x', $1, null]"},
		{"select array[[1]]", "select array[[1, 2], [3, 4]]"},
		{"select a is null"},
		{"select a is not null"},
		{"select a is true"},
		{"update t set a = null", "update t set a = 1", "update t set a = false"},
		{"update t set a = default"},
		{"select 'x'::text", "select $1::text", "select 1 :: text"},
		{"select 1; select 2", "select 3;; select 4;", ";select $1;select 'x'"},
		{"select 1, 2"},
		{"select 1"},
		{"select \"select\""},
		{"select a.b", "select A . \"b\""},
		{"select \"a.b\""},
		{"select \"a\"\"b\""},
		{"select date '2020-01-01'", "select date 'x'"},
		{"select x from " + strings.Repeat("a", 63), "select x from \"" + strings.Repeat("a", 63) + "bc\""},
		{"select (1", "select ('x'"},
		{"select 1)"},
		{"select (1, 2", "select (3, 4"},
		{"select ((1)), ((2))"},
	}
	seen := map[string]string{}
	for _, texts := range shapes {
		want := Fingerprint(texts[0])
		if other, ok := seen[want]; ok {
			t.Errorf("%q and %q share %s", texts[0], other, want)
		}
		seen[want] = texts[0]
		for _, text := range texts {
			if got := Fingerprint(text); got != want {
				t.Errorf("%q: %s, and %q: %s", text, got, texts[0], want)
			}
		}
	}
}

func TestFingerprintStaysTheSame(t *testing.T) {
	for text, want := range map[string]string{
		"":        "cbf29ce484222325", // FNV-1a of nothing
		ormSelect: "f2bef1224a1091ff",
		ormInsert: "afd9b70e14dd9841",
		ormUpdate: "083bbbe50797a142",
	} {
		if got := Fingerprint(text); got != want {
			t.Errorf("%q: %s, want %s", text, got, want)
		}
	}
}

func TestFingerprintKeepsNothingOfTheData(t *testing.T) {
	for _, text := range []string{
		"insert into t values ('secret', 4711, E'secret', $secret$x$secret$, N'secret', U&'secret', B'101', X'ABCD', -47.11e3, 'a' \n 'secret')",
		"select 1 -- secret\n /* secret */",
		"select 'secret",
	} {
		n := normalization{lexer: lexer{text: text}, groups: make([]group, 1)}
		for next := n.lexer.next(); next.kind != tokenEnd; next = n.lexer.next() {
			n.token(next)
		}
		for _, data := range []string{"secret", "47", "11", "101", "ABCD"} {
			if strings.Contains(string(n.out), data) {
				t.Errorf("%q: %q", text, n.out)
			}
		}
	}
}

func TestFingerprintOfALongListTakesItsTimeOnce(t *testing.T) {
	rows := slices.Repeat([]string{"(1, 'x', (2), f(3))"}, 50_000)
	long := "insert into t values " + strings.Join(rows, ", ")
	if got, want := Fingerprint(long), Fingerprint("insert into t values "+rows[0]); got != want {
		t.Errorf("%s, want %s", got, want)
	}
	deep := "select " + strings.Repeat("((1), ", 50_000) + "1" + strings.Repeat(")", 50_000)
	if got := Fingerprint(deep); got == Fingerprint("select 1") {
		t.Error(got)
	}
}
