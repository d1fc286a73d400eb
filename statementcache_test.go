package pgretry

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lib/pq"

	"github.com/pgretry/pgretry/internal/pgserver/pgtest"
)

// keeper is a session of a database of ours, or of lib/pq's for comparison, and what is
// called by it, in the transaction if one is open.
type keeper struct {
	*testing.T
	conn  *sql.Conn
	tx    *sql.Tx
	other *sql.DB // lib/pq's, the same schema
	log   strings.Builder
}

// keeperOf opens one. Statements are executed by lib/pq first.
func keeperOf(t *testing.T, db *sql.DB, plain *sql.DB) *keeper {
	t.Helper()
	conn, err := db.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := conn.Close(); err != nil && !errors.Is(err, sql.ErrConnDone) {
			t.Error(err)
		}
	})
	return &keeper{T: t, conn: conn, other: plain}
}

// enterKeeping is enter with one session, whose cache is on from the start.
func enterKeeping(t *testing.T, size int, statements ...string) (*arena, *keeper) {
	t.Helper()
	a := enter(t, []Option{WithStatementCache(size)}, statements...)
	return a, keeperOf(t, a.db, a.plain)
}

// numberedType is how pgx, and an error of the server's, call a type that they do not know:
// in each schema it is another one.
var numberedType = regexp.MustCompile(`^[0-9]+$|\btype [0-9]+\b`)

func returnsRows(text string) bool {
	first, _, _ := strings.Cut(strings.ToUpper(strings.TrimSpace(text)), " ")
	return slices.Contains([]string{"SELECT", "VALUES", "TABLE", "WITH", "SHOW", "EXPLAIN", "FETCH"}, first) || strings.Contains(strings.ToUpper(text), "RETURNING")
}

// show executes a statement and returns all that there is to see of it.
func (k *keeper) show(text string, args ...any) string {
	k.Helper()
	exec, query := k.conn.ExecContext, k.conn.QueryContext
	if k.tx != nil {
		exec, query = k.tx.ExecContext, k.tx.QueryContext
	}
	if !returnsRows(text) {
		result, err := exec(k.Context(), text, args...)
		if err != nil {
			return showError(err)
		}
		n, err := result.RowsAffected()
		_, idErr := result.LastInsertId()
		return fmt.Sprint(n, err, idErr)
	}
	rows, err := query(k.Context(), text, args...)
	if err != nil {
		return "at once: " + showError(err)
	}
	defer rows.Close()
	var b strings.Builder
	names, err := rows.Columns()
	fmt.Fprint(&b, names, err)
	types, err := rows.ColumnTypes()
	if err != nil {
		fmt.Fprint(&b, err)
	}
	for _, c := range types {
		length, hasLength := c.Length()
		precision, scale, hasScale := c.DecimalSize()
		nullable, knowsNull := c.Nullable()
		fmt.Fprint(&b, " ", c.Name(), numberedType.ReplaceAllString(c.DatabaseTypeName(), "a type"), c.ScanType(), length, hasLength, precision, scale, hasScale, nullable, knowsNull)
	}
	for rows.Next() {
		values := make([]any, len(types))
		into := make([]any, len(types))
		for i := range values {
			into[i] = &values[i]
		}
		if err := rows.Scan(into...); err != nil {
			fmt.Fprint(&b, showError(err))
		}
		for _, value := range values {
			fmt.Fprintf(&b, " %T(%[1]v)", value)
		}
		b.WriteString(" |")
	}
	fmt.Fprint(&b, rows.NextResultSet(), " ", showError(rows.Err()), showError(rows.Close()))
	return b.String()
}

// showError shows what a program can see of an error, but for where in the server's source
// it comes from.
func showError(err error) string {
	if err == nil {
		return ""
	}
	reported, ok := err.(*pq.Error) //nolint:errorlint // many programs do it like that
	if !ok {
		server, _ := tested.said(err)
		server.routine = ""
		return numberedType.ReplaceAllString(fmt.Sprintf("%T %[1]v %+v", err, server), "a type")
	}
	e := *reported
	e.File, e.Line, e.Routine = "", "", ""
	return fmt.Sprintf("%s\n%s\n%+v", reported.Error(), reported.ErrorWithDetail(), e)
}

// does executes steps, and notes what they show: begin, commit and rollback; one for lib/pq
// in another session after "other: "; or a statement, with 1 for each argument.
func (k *keeper) does(steps ...string) {
	k.Helper()
	for _, s := range steps {
		var err error
		var shown string
		other, isOther := strings.CutPrefix(s, "other: ")
		switch {
		case isOther:
			_, err = k.other.ExecContext(k.Context(), other)
		case s == "begin":
			k.tx, err = k.conn.BeginTx(k.Context(), nil)
		case s == "commit":
			err, k.tx = k.tx.Commit(), nil
		case s == "rollback":
			err, k.tx = k.tx.Rollback(), nil
		default:
			shown = k.show(s, k.arguments(s)...)
		}
		if err != nil {
			shown = showError(err)
		}
		fmt.Fprintf(&k.log, "%s\n\t%s\n", s, shown)
	}
}

// arguments returns 1, 2 and so on for $1, $2 and so on.
func (k *keeper) arguments(text string) (args []any) {
	for n := 1; strings.Contains(text, fmt.Sprint("$", n)); n++ {
		args = append(args, n)
	}
	return args
}

// keeps returns what is prepared in the session, in the order of preparation.
func (k *keeper) keeps() (texts []string) {
	k.Helper()
	query := k.conn.QueryContext
	if k.tx != nil {
		query = k.tx.QueryContext
	}
	rows, err := query(k.Context(), `SELECT statement FROM pg_prepared_statements ORDER BY prepare_time`)
	if err != nil {
		k.Fatal(err)
	}
	defer rows.Close()
	for rows.Next() {
		var text string
		if err := rows.Scan(&text); err != nil {
			k.Fatal(err)
		}
		texts = append(texts, text)
	}
	if err := rows.Err(); err != nil {
		k.Fatal(err)
	}
	return texts
}

func (k *keeper) wantsKept(want ...string) {
	k.Helper()
	if got := k.keeps(); !slices.Equal(got, want) {
		k.Errorf("prepared are %q, want %q", got, want)
	}
}

// is checks the only value that a query of the session shows.
func (k *keeper) is(want, query string) {
	k.Helper()
	ask := k.conn.QueryRowContext
	if k.tx != nil {
		ask = k.tx.QueryRowContext
	}
	var got sql.NullString
	if err := ask(k.Context(), query).Scan(&got); err != nil || got.String != want {
		k.Errorf("%s gives %s, %v, want %s", query, got.String, err, want)
	}
}

// thrice makes steps of a statement that is kept from the second on.
func thrice(text string) []string { return []string{text, text, text} }

const balanceOf = `SELECT balance FROM account WHERE id = $1`

func TestATextWithArgumentsIsKeptPreparedFromItsSecondUse(t *testing.T) {
	for _, text := range []string{
		balanceOf,
		`SELECT balance FROM account WHERE id = $1 FOR UPDATE`,
		`UPDATE account SET balance = balance + $1`,
		`DELETE FROM account WHERE id = $1`,
		`INSERT INTO account VALUES ($1 + 10, 2) ON CONFLICT (id) DO UPDATE SET balance = 3 RETURNING id`,
		`WITH a AS (UPDATE account SET balance = $1 RETURNING id) SELECT count(*) FROM a`,
		`VALUES ($1::int)`,
		`SELECT now(), $1::int`,
		`INSERT INTO known VALUES ($1)`,
		`SELECT now ( ), 'unknown', $1::int AS now_or_never`,
	} {
		t.Run(text, func(t *testing.T) {
			_, k := enterKeeping(t, 8, bank, `CREATE TABLE known (n int)`)
			k.does(text)
			k.wantsKept()
			k.does(text)
			k.wantsKept(text)
			k.does(text, "begin", text, "commit")
			k.wantsKept(text)
		})
	}
}

func TestWhatIsNotWorthItOrNotAllowedIsNotKept(t *testing.T) {
	_, k := enterKeeping(t, 8, bank, `CREATE TABLE at (at timestamptz, n int)`)
	for _, text := range []string{
		`SELECT 1`,
		`SELECT $1::int -- ` + strings.Repeat("long ", cachedTextBytes/5),
		`SELECT 1; SELECT 2`,
		`INSERT INTO at VALUES ('now', $1)`,
		`SELECT date ' Tomorrow ', $1::int`,
		`SELECT date $$yesterday$$, $1::int`,
		`SELECT date 'today' + now()::time, $1::int`,
		`SHOW search_path`,
	} {
		k.does(thrice(text)...)
		if got := k.keeps(); len(got) != 0 {
			t.Errorf("%.60s: prepared is %.60q", text, got)
		}
	}
	for n := range 100 {
		k.does(fmt.Sprintf(`SELECT %d, $1::int`, n))
	}
	k.wantsKept()
}

// A text that is prepared knows the time of that only.
func TestNowIsTheTimeOfTheStatement(t *testing.T) {
	_, k := enterKeeping(t, 8)
	for range 4 {
		var before string
		if err := k.conn.QueryRowContext(t.Context(), `SELECT clock_timestamp()::text`).Scan(&before); err != nil {
			t.Fatal(err)
		}
		var later bool
		if err := k.conn.QueryRowContext(t.Context(), `SELECT timestamptz 'now' > $1::timestamptz`, before).Scan(&later); err != nil || !later {
			t.Errorf("'now' is an earlier time, %v", err)
		}
	}
}

func TestTheDefaultKeepsWhatComesAgainInASessionThatIsOurs(t *testing.T) {
	a := enter(t, nil, bank)
	k := keeperOf(t, a.db, a.plain)
	k.does(balanceOf)
	k.does(balanceOf, "begin", balanceOf, "commit")
	k.wantsKept(balanceOf)
	k.is("auto", `SHOW plan_cache_mode`)
}

func TestStatementsOutsideTransactionsAreEnoughToBeKept(t *testing.T) {
	a := enter(t, nil, bank)
	k := keeperOf(t, a.db, a.plain)
	k.does(thrice(balanceOf)...)
	k.wantsKept(balanceOf)
}

func TestTheStatementCacheIsSwitchedOff(t *testing.T) {
	with := func(parameters string) func(*testing.T) *sql.DB {
		return func(t *testing.T) *sql.DB {
			db, err := tested.open(withParameters(t, pgtest.DSN(t), parameters))
			if err != nil {
				t.Fatal(err)
			}
			return db
		}
	}
	for name, open := range map[string]func(*testing.T) *sql.DB{
		"by the DSN":             with("pgretry_statement_cache=0"),
		"with ModeOff":           with("pgretry_mode=off&pgretry_statement_cache=8"),
		"with binary parameters": with("binary_parameters=yes&pgretry_statement_cache=8"),
		"by an option": func(t *testing.T) *sql.DB {
			db, err := tested.open(pgtest.DSN(t), WithStatementCache(0))
			if err != nil {
				t.Fatal(err)
			}
			return db
		},
	} {
		t.Run(name, func(t *testing.T) {
			db := open(t)
			t.Cleanup(func() {
				if err := db.Close(); err != nil {
					t.Error(err)
				}
			})
			k := keeperOf(t, db, nil)
			for range 5 {
				var n int
				if err := k.conn.QueryRowContext(t.Context(), `SELECT $1::int`, 7).Scan(&n); err != nil || n != 7 {
					t.Error(n, err)
				}
			}
			k.wantsKept()
			k.is("auto", `SHOW plan_cache_mode`)
		})
	}
}

func withParameters(t *testing.T, dsn, parameters string) string {
	t.Helper()
	address, err := url.Parse(dsn)
	if err != nil {
		t.Fatal(err)
	}
	if address.RawQuery != "" && parameters != "" {
		parameters = "&" + parameters
	}
	address.RawQuery += parameters
	return address.String()
}

func TestTheDSNGivesTheSizeOfTheStatementCache(t *testing.T) {
	dsn := pgtest.DSN(t)
	db, err := tested.open(withParameters(t, dsn, "pgretry_statement_cache=2"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	k := keeperOf(t, db, nil)
	for n := range 4 {
		k.does(thrice(fmt.Sprintf(`SELECT %d, $1::int`, n))...)
	}
	k.wantsKept(`SELECT 2, $1::int`, `SELECT 3, $1::int`)
	for _, wrong := range []string{"-1", "many", "", "1.5", "99999999999"} {
		if db, err := tested.open(withParameters(t, dsn, "pgretry_statement_cache="+wrong)); err == nil {
			t.Errorf("%q is a size", wrong)
			_ = db.Close()
		}
	}
	if _, err := tested.open(dsn, WithStatementCache(-1)); err == nil {
		t.Error("-1 is a size")
	}
}

// A driver that is not lib/pq's, or a lib/pq that is built otherwise, is left alone.
func TestWhatIsNotTheLibPQWeKnowHasNoCache(t *testing.T) {
	type other struct {
		driver.Conn
		namei      string //nolint:unused // looked for by name
		inProgress bool   //nolint:unused // the same
	}
	config, err := newConfig(nil)
	if err != nil {
		t.Fatal(err)
	}
	if c := newStatementCache(config, &tap{Conn: &other{}, libPQ: true}, new(plans)); c != nil {
		t.Error("there is a cache for something else")
	}
	f := newFixture(t)
	if _, err := f.db.Exec("UPDATE a"); err != nil {
		t.Fatal(err)
	}
	sqlConn, err := f.db.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer sqlConn.Close()
	if err := sqlConn.Raw(func(raw any) error {
		if raw.(interface{ itself() *conn }).itself().tap.cache != nil {
			t.Error("there is a cache for the scripted driver")
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

// compared runs steps through lib/pq and through us, and compares all that they show.
func compared(t *testing.T, setup []string, steps func(*keeper)) {
	t.Helper()
	var logs [2]string
	for i, name := range []string{"lib/pq", "ours"} {
		t.Run(name, func(t *testing.T) {
			a := enter(t, []Option{WithStatementCache(16)}, setup...)
			k := keeperOf(t, []*sql.DB{a.plain, a.db}[i], a.plain)
			steps(k)
			logs[i] = strings.ReplaceAll(k.log.String(), a.read(`SELECT current_schema()`), "our_schema")
		})
	}
	if logs[0] != logs[1] {
		t.Errorf("lib/pq:\n%s\nwe:\n%s", logs[0], logs[1])
	}
}

func (k *keeper) notes(text string, args ...any) {
	k.Helper()
	fmt.Fprintf(&k.log, "%s\n\t%s\n", text, k.show(text, args...))
}

func TestResultsAreTheInnerDriversWhetherKeptOrNot(t *testing.T) {
	at := time.Date(2026, 2, 28, 23, 59, 59, 123456000, time.FixedZone("", 3600))
	values := []any{
		nil, 0, 1, -7, int64(1) << 40, 1.5, true, "", "text", "1", "{1,2,3}", `{"a": 1}`, "sad", []byte("bytes"),
		[]byte{0, 1, 255},
		[]byte(nil),
		at, at.UTC(), "2026-02-28", "6ba7b810-9dad-11d1-80b4-00c04fd430c8", "(1,2)", pq.Array([]int64{1, 2}), pq.Array([]string{"a", `b"c`, "null"}),
		sql.NullString{},
		sql.NullInt64{Int64: 3, Valid: true},
		strings.Repeat("long", 5000),
	}
	types := []string{
		"", "::text", "::varchar(3)", "::int2", "::int", "::bigint", "::numeric(10,2)", "::float4", "::float8", "::bool", "::bytea", "::date", "::time", "::timetz",
		"::timestamp", "::timestamptz", "::interval", "::uuid", "::json", "::jsonb", "::int[]", "::text[]", "::mood", "::mood[]", "::point", "::inet", "::pair", "::positive", "::char(4)", "::bit(3)",
	}
	compared(t, []string{`CREATE TYPE mood AS ENUM ('sad', 'happy'); CREATE TYPE pair AS (a int, b text); CREATE DOMAIN positive AS int CHECK (VALUE > 0)`}, func(k *keeper) {
		for _, kind := range types {
			for _, value := range values {
				for range 3 {
					k.notes(`SELECT $1`+kind+` AS got, 4 AS four, 'five' AS five`, value)
				}
			}
		}
	})
}

func TestStatementsAreTheInnerDriversWhetherKeptOrNot(t *testing.T) {
	compared(t, []string{bank, `CREATE TABLE line (id serial PRIMARY KEY, note text NOT NULL, price numeric(8,2), at date);
		CREATE FUNCTION pick(int) RETURNS text LANGUAGE sql IMMUTABLE AS $$SELECT 'int'$$;
		CREATE FUNCTION pick(text) RETURNS text LANGUAGE sql IMMUTABLE AS $$SELECT 'text'$$`}, func(k *keeper) {
		for n := range 4 {
			k.notes(`INSERT INTO line (note, price, at) VALUES ($1, $2, $3)`, fmt.Sprint(n), 1.25, "2026-01-01")
			k.notes(`INSERT INTO line (note, price) SELECT $1, n FROM generate_series(1, $2::int) n RETURNING id, note, price`, "x", n)
			k.notes(`UPDATE line SET price = price + $1 WHERE id > $2`, 1, n)
			k.notes(`DELETE FROM line WHERE note = $1`, fmt.Sprint(n))
			k.notes(`INSERT INTO account VALUES ($1, $2) ON CONFLICT (id) DO UPDATE SET balance = excluded.balance + account.balance RETURNING *`, 3, 4)
			k.notes(`WITH a AS (DELETE FROM line WHERE id = $1 RETURNING id) SELECT count(*), $2::text FROM a`, n, "b")
			k.notes(`SELECT n, n::text, NULL FROM generate_series(1, $1::int) n`, 300)
			k.notes(`SELECT FROM account WHERE id > $1`, 2)
			k.notes(`SELECT id AS "A b", balance AS id FROM account WHERE id = ANY($1) ORDER BY 1`, pq.Array([]int{1, 3, 9}))
			k.notes(`VALUES ($1::int, $2::text), (3, '4')`, 1, "2")
			k.notes(`SELECT pick($1::int)`, 1)
			k.notes(`SELECT pick($1::text)`, 1)
			k.notes(`EXPLAIN (COSTS off) SELECT * FROM account WHERE id = $1`, 1)
			k.notes(`SELECT $2::int - $1::int`, 1, 5)
		}
		k.does("begin", "DECLARE c CURSOR FOR SELECT id FROM account WHERE id > $1 ORDER BY id", "FETCH c", "commit")
	})
}

func TestErrorsAreTheInnerDriversWhetherKeptOrNot(t *testing.T) {
	compared(t, []string{
		bank, `CREATE FUNCTION raises(n int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS $$
		BEGIN IF n > 0 THEN RAISE 'no % here', n USING ERRCODE = '42P01', DETAIL = 'a', HINT = 'b'; END IF; RETURN n; END $$`,
		`ALTER TABLE account ADD CHECK (balance < 1000), ADD note varchar(3)`,
	}, func(k *keeper) {
		for n := range 4 {
			k.notes(`SELECT 1 / $1::int`, 0)
			k.notes(`SELECT 10 / (id - $1) FROM account ORDER BY id`, 3)
			k.notes(`SELECT $1::int`, "abc")
			k.notes(`SELECT $1::int`, n)
			k.notes(`UPDATE account SET balance = $1`, 2000)
			k.notes(`UPDATE account SET balance = $1`, 1<<40)
			k.notes(`UPDATE account SET balance = $1`, "x")
			k.notes(`UPDATE account SET note = $1`, "too long")
			k.notes(`INSERT INTO account VALUES ($1, 1)`, 1)
			k.notes(`INSERT INTO account VALUES ($1, NULL)`, 9)
			k.notes(`SELECT nothing FROM account WHERE id = $1`, 1)
			k.notes(`SELECT FROM nowhere WHERE id = $1`, 1)
			k.notes(`SELEKT $1`, 1)
			k.notes(`SELECT $1 +`, 1)
			k.notes(`SELECT $1 + $2`, 1, 2)
			k.notes(`SELECT $1::int`)
			k.notes(`SELECT $1::int`, 1, 2)
			k.notes(`SELECT $1::int, $2::int`, 1)
			k.notes(`SELECT $2::int`, 1, 2)
			k.notes(`SELECT $1::text`, "a\x00b")
			k.notes(`SELECT $1::text`, "\xff")
			k.notes(`SELECT $1::int`, struct{}{})
			k.notes(`SELECT $1::int`, sql.Named("n", 1))
			k.notes(`SELECT raises($1)`, n)
			k.notes(`SELECT $1::int`, 5)
			k.does("begin")
			k.notes(`SELECT 1 / $1::int`, 1)
			k.notes(`SELECT 1 / $1::int`, 0)
			k.notes(`SELECT 1 / $1::int`, 1)
			k.notes(balanceOf, 1)
			k.does("rollback", "begin", "SAVEPOINT a")
			k.notes(`UPDATE account SET balance = $1`, 2000)
			k.does("ROLLBACK TO a", balanceOf, "commit")
			k.notes(balanceOf, 2)
		}
	})
}

func TestAPlanCacheModeOfTheUsersStays(t *testing.T) {
	for name, dsn := range map[string]string{
		"auto":               "options=-c%20plan_cache_mode%3Dauto",
		"force_generic_plan": "options=-c%20plan_cache_mode%3Dforce_generic_plan",
	} {
		t.Run(name, func(t *testing.T) {
			a := enter(t, nil, bank)
			db, err := tested.open(withParameters(t, a.dsn, dsn))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := db.Close(); err != nil {
					t.Error(err)
				}
			})
			k := keeperOf(t, db, a.plain)
			k.does(thrice(`SELECT $1::int`)...)
			k.wantsKept(`SELECT $1::int`)
			k.is(name, `SHOW plan_cache_mode`)
		})
	}
	t.Run("set in the session", func(t *testing.T) {
		_, k := enterKeeping(t, 8)
		k.does(`SET plan_cache_mode = auto`)
		k.does(thrice(`SELECT $1::int`)...)
		k.wantsKept(`SELECT $1::int`)
		k.is("auto", `SHOW plan_cache_mode`)
	})
}

func TestStatementsAreKeptAgainAfterTheSessionWasReset(t *testing.T) {
	for _, lost := range []string{`RESET ALL`, `RESET plan_cache_mode`, `DISCARD ALL`} {
		for _, prepared := range []bool{false, true} {
			t.Run(fmt.Sprint(lost, prepared), func(t *testing.T) {
				_, k := enterKeeping(t, 8)
				k.does(thrice(`SELECT $1::int`)...)
				if prepared {
					stmt, err := k.conn.PrepareContext(t.Context(), lost)
					if err != nil {
						t.Fatal(err)
					}
					if _, err := stmt.Exec(); err != nil {
						t.Fatal(err)
					}
					if err := stmt.Close(); err != nil {
						t.Fatal(err)
					}
				} else {
					k.does(lost)
				}
				k.does(thrice(`SELECT $1::int + 1`)...)
				if !slices.Contains(k.keeps(), `SELECT $1::int + 1`) {
					t.Error("nothing is kept any more")
				}
			})
		}
	}
	t.Run("in a transaction", func(t *testing.T) {
		_, k := enterKeeping(t, 8)
		k.does("begin", `RESET ALL`)
		k.does(thrice(`SELECT $1::int`)...)
		k.wantsKept()
		k.does("commit", "begin")
		k.does(thrice(`SELECT $1::int`)...)
		k.wantsKept(`SELECT $1::int`)
		k.does("commit")
	})
}

func TestNoMoreStatementsAreKeptThanAllowed(t *testing.T) {
	for _, size := range []int{1, 8} {
		_, k := enterKeeping(t, size)
		for n := range 1000 / size {
			k.does(thrice(fmt.Sprintf(`SELECT %d, $1::int`, n))...)
			switch n % 5 {
			case 1:
				k.does(thrice(fmt.Sprintf(`SELECT %d / ($1::int - 1)`, n))...)
				k.does(fmt.Sprintf(`SELECT %d, $1::int`, n))
			case 2:
				k.does(`RESET statement_timeout`)
			case 3:
				k.does(`SET statement_timeout = 0`)
			case 4:
				k.does("begin", `SET LOCAL statement_timeout = 0`, "commit", `DEALLOCATE PREPARE ALL`)
			}
			if got := k.keeps(); len(got) > size {
				t.Fatalf("prepared are %d, allowed %d: %q", len(got), size, got)
			}
		}
		k.does("begin", "commit")
		k.does(thrice(`SELECT $1::int`)...)
		if !slices.Contains(k.keeps(), `SELECT $1::int`) {
			t.Error("nothing is kept any more")
		}
	}
}

// Every use of a name of a setting would leave all that was prepared behind.
func TestResetLeavesNothingBehind(t *testing.T) {
	for _, text := range []string{`RESET search_path`, `RESET ROLE`, `DEALLOCATE mine`, `DISCARD PLANS`} {
		_, k := enterKeeping(t, 4)
		for range 10 {
			for n := range 4 {
				k.does(thrice(fmt.Sprintf(`SELECT %d, $1::int`, n))...)
			}
			k.does(`PREPARE mine AS SELECT 0`, text)
			if got := k.keeps(); len(got) > 5 {
				t.Fatalf("%s: prepared are %q", text, got)
			}
			k.does(`DEALLOCATE mine`)
		}
	}
}

func TestTheStatementThatWasNotUsedForTheLongestTimeGoesFirst(t *testing.T) {
	_, k := enterKeeping(t, 3)
	text := func(n int) string { return fmt.Sprintf(`SELECT %d, $1::int`, n) }
	for n := range 3 {
		k.does(text(n), text(n))
	}
	k.does(text(0), text(2), text(3), text(3)) // 1 goes
	k.wantsKept(text(0), text(2), text(3))
	k.does(text(2), text(4), text(4)) // 0 goes
	k.wantsKept(text(2), text(3), text(4))
	k.does(text(3), text(2), text(4), text(5), text(5)) // 3 goes
	k.wantsKept(text(2), text(4), text(5))
}

// clock is one that a test sets.
type clock struct{ since atomic.Int64 }

func (c *clock) now() time.Time { return time.Unix(1<<30, c.since.Load()) }

// enterAging is enterKeeping with a clock.
func enterAging(t *testing.T, statements ...string) (*arena, *keeper, *clock) {
	t.Helper()
	a := enter(t, nil, statements...)
	inner, err := pq.NewConnector(a.dsn)
	if err != nil {
		t.Fatal(err)
	}
	connector, err := NewConnector(inner, WithStatementCache(8))
	if err != nil {
		t.Fatal(err)
	}
	c := &clock{}
	connector.config.now = c.now
	db := sql.OpenDB(connector)
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	return a, keeperOf(t, db, a.plain), c
}

func TestAStatementIsPreparedAnewWhenItIsOld(t *testing.T) {
	_, k, c := enterAging(t)
	const ask = `SELECT prepare_time::text FROM pg_prepared_statements ORDER BY prepare_time DESC LIMIT 1`
	prepared := func() (at string) {
		if err := k.conn.QueryRowContext(t.Context(), ask).Scan(&at); err != nil {
			t.Fatal(err)
		}
		return at
	}
	k.does(thrice(`SELECT $1::int`)...)
	first := prepared()
	c.since.Store(int64(cachedFor - 1))
	k.does(`SELECT $1::int`)
	if prepared() != first {
		t.Error("it is prepared anew too early")
	}
	c.since.Store(int64(cachedFor))
	k.does(`SELECT $1::int`)
	if prepared() == first {
		t.Error("it is not prepared anew")
	}
	if _, err := k.conn.ExecContext(t.Context(), `SELECT $1::int`, 1, 2); err == nil {
		t.Error("two arguments for one")
	}
}

// What has failed once because it was kept is kept again later, not at once.
func TestAfterATimeWhatWasBetterNotKeptIsKeptAgain(t *testing.T) {
	a, k, c := enterAging(t, bank)
	const all = `SELECT * FROM account WHERE id = $1`
	k.does(thrice(all)...)
	if _, err := a.plain.Exec(`ALTER TABLE account ADD note text`); err != nil {
		t.Fatal(err)
	}
	k.does(all)
	before := len(k.keeps())
	k.does(all, all)
	if got := len(k.keeps()); got != before {
		t.Errorf("%d are prepared, before it were %d", got, before)
	}
	c.since.Store(int64(cachedFor))
	k.does(all, all)
	if got := len(k.keeps()); got != before+1 {
		t.Errorf("%d are prepared, before it were %d", got, before)
	}
}

// meaning are steps that change what a text means which is kept.
var meaning = map[string][]string{
	"SET search_path":        slices.Concat(thrice(`SELECT n FROM a WHERE n > $1 - 5`), []string{`SET search_path = {S}_b`}, thrice(`SELECT n FROM a WHERE n > $1 - 5`)),
	"SET LOCAL and COMMIT":   {"K", "K", "begin", `SET LOCAL search_path = {S}_b`, "K", "K", "K", "commit", "K", "K", "K"},
	"SET LOCAL and ROLLBACK": {"K", "K", "begin", `SET LOCAL search_path = {S}_b`, "K", "K", "K", "rollback", "K", "K", "begin", "K", "commit"},
	"SET and ROLLBACK":       {"K", "K", "begin", `SET search_path = {S}_b`, "K", "K", "K", "rollback", "K", "K", "begin", "K", "commit"},
	"SET TimeZone":           {"Z", "Z", "Z", `SET TimeZone = 'Asia/Tokyo'`, "Z", "Z", "Z", "begin", `SET LOCAL TimeZone = 'America/New_York'`, "Z", "Z", "Z", "rollback", "Z", "Z"},
	"TimeZone in a savepoint": {
		"Z", "Z", "begin", "SAVEPOINT s", `SET TimeZone = 'Asia/Tokyo'`, "Z", "Z", "ROLLBACK TO s", "Z", "Z", "commit", "Z", "Z",
	},
	"a temporary table":              {"K", "K", `CREATE TEMP TABLE a (n text)`, "T", "T", "T", `DROP TABLE a`, "T", "T"},
	"one for a transaction":          {"T", "T", "begin", `CREATE TEMP TABLE a ON COMMIT DROP AS SELECT 5 n`, "T", "T", "T", "commit", "T", "T", "T"},
	"one by SELECT INTO":             {"T", "T", "begin", `SELECT 7 n INTO TEMP a`, "T", "T", "rollback", "T", "T"},
	"ALTER":                          {"T", "T", `ALTER TABLE a ALTER n TYPE text`, "T", "T", `ALTER TABLE a ADD m int`, "T", "T"},
	"ALTER and ROLLBACK":             {"T", "T", "begin", `ALTER TABLE a ALTER n TYPE text`, "T", "T", "T", "rollback", "T", "T", "begin", "T", "commit"},
	"a savepoint":                    {"T", "T", "begin", "SAVEPOINT s", `ALTER TABLE a ADD m int`, "T", "T", "ROLLBACK TO s", "T", "T", "commit", "T"},
	"ALTER by another":               {"T", "T", `other: ALTER TABLE a ALTER n TYPE text`, "T", "T", `other: ALTER TABLE a ADD m int`, "T", "T", "T"},
	"ALTER by another in the middle": {"T", "T", "begin", `other: ALTER TABLE a ALTER n TYPE text`, "T", "commit", "T"},
	"renaming by another":            {"T", "T", `other: ALTER TABLE a RENAME n TO m`, "T", "T", "K", "K"},
	"another table by another":       {"T", "T", `other: DROP TABLE a; CREATE TABLE a (x text, y text); INSERT INTO a VALUES ('p', 'q')`, "T", "T", "T"},
	"no table by another":            {"T", "T", `other: DROP TABLE a`, "T", "T", `other: CREATE TABLE a (z int)`, "T", "T"},
	"no table by another, in a transaction": {
		"T", "T", `other: ALTER TABLE a RENAME TO c`, "begin", "T", "rollback", `other: ALTER TABLE c RENAME TO a`, "T",
	},
	"a column's type by another": {
		`INSERT INTO a VALUES ($1)`, `INSERT INTO a VALUES ($1)`, `other: ALTER TABLE a ALTER n TYPE bool USING true`, `INSERT INTO a VALUES ($1)`, `INSERT INTO a VALUES ($1)`, "T",
	},
	"DO":                  {"K", "K", `DO $$BEGIN SET search_path = {S}_b; END$$`, "K", "K"},
	"a function":          {"K", "K", `SELECT elsewhere()`, "K", "K", "K"},
	"a function deep in":  {"K", "K", `SELECT coalesce(elsewhere()::text, 'x') IS NULL`, "K", "K", "K"},
	"a procedure":         {"K", "K", `CALL goes()`, "K", "K", "K"},
	"set_config":          {"K", "K", `SELECT set_config('search_path', '{S}_b', false)`, "K", "K"},
	"several statements":  {"K", "K", `SELECT 1; SET search_path = {S}_b`, "K", "K"},
	"BEGIN in a text":     {"Z", "Z", `BEGIN; SET LOCAL TimeZone = 'Asia/Tokyo'`, "Z", "Z", "Z", `COMMIT`, "Z", "Z"},
	"DEALLOCATE ALL":      {"K", "K", `DEALLOCATE ALL`, "K", "K", "K"},
	"DISCARD ALL":         {"K", "K", `DISCARD ALL`, `SET search_path = {S}_b`, "K", "K", "K"},
	"what is prepared":    {"K", "K", "prepared: SET search_path = {S}_b", "K", "K"},
	"ALTER, prepared":     {"T", "T", "prepared: ALTER TABLE a ADD m int", "T", "T"},
	"hidden DEALLOCATE":   {"K", "K", "T", "T", `INSERT INTO hook VALUES (1)`, "K", "T", "K", "T"},
	"hidden, in a middle": {"K", "K", "begin", `INSERT INTO hook VALUES (1)`, "K", "K", "commit", "K"},
	"an aborted transaction": {
		"K", "K", "begin", `SELECT 1/0`, "K", "T", "rollback", "K", "T", "T", "begin", `SELECT 1/0`, "T", "commit", "T",
	},
	"role": {"R", "R", `SET ROLE {S}_role`, "R", "R", `RESET ROLE`, "R", "R"},
}

// meanings are what the letters stand for.
var meanings = map[string]string{
	"K": `SELECT n FROM a WHERE n::text <> '' AND $1 = 1`,
	"T": `SELECT * FROM a WHERE $1 = 1 ORDER BY 1`,
	"Z": `SELECT timestamptz '2026-01-01 00:00' AT TIME ZONE 'UTC', $1::int`,
	"R": `SELECT current_user LIKE '%role', count(*) FROM a WHERE $1 = 1`,
}

func TestAKeptStatementMeansWhatItsTextMeans(t *testing.T) {
	setup := []string{`CREATE TABLE a (n int); INSERT INTO a VALUES (1), (2)`}
	for name, steps := range meaning {
		t.Run(name, func(t *testing.T) {
			compared(t, setup, func(k *keeper) {
				var schema string
				if err := k.other.QueryRow(`SELECT current_schema()`).Scan(&schema); err != nil {
					t.Fatal(err)
				}
				for _, s := range []string{
					`CREATE SCHEMA {S}_b; CREATE TABLE {S}_b.a (n text); INSERT INTO {S}_b.a VALUES ('b')`,
					`CREATE FUNCTION elsewhere() RETURNS int LANGUAGE plpgsql AS $$BEGIN SET search_path = {S}_b; RETURN 1; END$$`,
					`CREATE PROCEDURE goes() LANGUAGE plpgsql AS $$BEGIN SET search_path = {S}_b; END$$`,
					`CREATE FUNCTION deallocates() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN EXECUTE 'DEALLOCATE ALL'; RETURN NULL; END$$;
						CREATE TABLE hook (n int); CREATE TRIGGER t AFTER INSERT ON hook EXECUTE FUNCTION deallocates()`,
					`CREATE ROLE {S}_role; GRANT USAGE ON SCHEMA {S} TO {S}_role; GRANT SELECT ON a TO {S}_role;
						ALTER TABLE a ENABLE ROW LEVEL SECURITY; CREATE POLICY p ON a USING (n = 2)`,
				} {
					if _, err := k.other.Exec(strings.ReplaceAll(s, "{S}", schema)); err != nil {
						t.Fatal(err)
					}
				}
				k.Cleanup(func() {
					for _, s := range []string{`DROP SCHEMA {S}_b CASCADE`, `DROP OWNED BY {S}_role`, `DROP ROLE {S}_role`} {
						if _, err := k.other.Exec(strings.ReplaceAll(s, "{S}", schema)); err != nil {
							t.Error(err)
						}
					}
				})
				for _, s := range steps {
					if text, ok := meanings[s]; ok {
						s = text
					}
					s = strings.ReplaceAll(s, "{S}", schema)
					if s, ok := strings.CutPrefix(s, "prepared: "); ok {
						stmt, err := k.conn.PrepareContext(k.Context(), s)
						if err == nil {
							_, err = stmt.Exec()
							err = errors.Join(err, stmt.Close())
						}
						if err != nil {
							t.Error(err)
						}
						continue
					}
					k.does(s)
				}
			})
		})
	}
}

// staleBy is what makes kept statements stale: what another session does, by SQLSTATE.
var staleBy = map[string][]string{
	"0A000": {`ALTER TABLE a ADD m int DEFAULT 5`},
	"26000": nil, // by a trigger
}

func enterStale(t *testing.T, options ...Option) (*arena, *keeper) {
	t.Helper()
	a := enter(t, append([]Option{WithStatementCache(8)}, options...), `CREATE TABLE a (n int); INSERT INTO a VALUES (1);
		CREATE TABLE hook (n int); CREATE TABLE trace (n int);
		CREATE FUNCTION deallocates() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN EXECUTE 'DEALLOCATE ALL'; RETURN NULL; END$$;
		CREATE TRIGGER t AFTER INSERT ON hook EXECUTE FUNCTION deallocates()`)
	a.db.SetMaxOpenConns(1)
	k := keeperOf(t, a.db, a.plain)
	k.does(thrice(meanings["T"])...)
	return a, k
}

// spoil makes what is kept stale.
func (k *keeper) spoil(state string) {
	k.Helper()
	if state == "26000" {
		k.does(`INSERT INTO hook VALUES (1)`)
	}
	for _, s := range staleBy[state] {
		if _, err := k.other.Exec(s); err != nil {
			k.Fatal(err)
		}
	}
}

func TestAStaleStatementIsInvisible(t *testing.T) {
	for state := range staleBy {
		t.Run(state+" outside a transaction", func(t *testing.T) {
			_, k := enterStale(t)
			k.spoil(state)
			if got := k.show(meanings["T"], 1); !strings.Contains(got, "int64(1)") {
				t.Error(got)
			}
		})
		t.Run(state+" in a transaction", func(t *testing.T) {
			a, k := enterStale(t)
			k.does("begin", `INSERT INTO trace VALUES (2)`)
			k.spoil(state)
			if got := k.show(meanings["T"], 1); !strings.Contains(got, "int64(1)") {
				t.Error(got)
			}
			k.does("commit")
			a.is("1", `SELECT count(*) FROM trace`)
			if s := a.stats(); s.Replays != 1 {
				t.Errorf("the statistics are %+v", s)
			}
		})
		t.Run(state+" in a closure", func(t *testing.T) {
			a, k := enterStale(t)
			if err := k.conn.Close(); err != nil {
				t.Fatal(err)
			}
			runs := 0
			err := RunInTx(t.Context(), a.db, nil, func(ctx context.Context, tx *sql.Tx) error {
				runs++
				k.tx = tx
				if runs == 1 {
					k.spoil(state)
				}
				rows, err := tx.QueryContext(ctx, meanings["T"], 1)
				if err != nil {
					return err
				}
				return rows.Close()
			})
			if err != nil || runs != 2 {
				t.Errorf("after %d runs %v", runs, err)
			}
		})
		t.Run(state+" where nothing is replayed", func(t *testing.T) {
			_, k := enterStale(t, WithMode(ModeClosure))
			k.does("begin")
			k.spoil(state)
			if got := k.show(meanings["T"], 1); !strings.Contains(got, state) {
				t.Errorf("it shows %s", got)
			}
			k.does("rollback", "begin")
			if got := k.show(meanings["T"], 1); !strings.Contains(got, "int64(1)") {
				t.Error(got)
			}
			k.does("commit")
		})
	}
}

// Nothing but a statement's own failure is hidden.
func TestAStatementThatAlwaysFailsFailsAfterOneReplay(t *testing.T) {
	a, k := enterStale(t)
	if _, err := a.plain.Exec(`CREATE FUNCTION raises(n int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS $$
		BEGIN IF n > 0 THEN RAISE 'never' USING ERRCODE = '0A000'; END IF; RETURN n; END $$;
		CREATE TABLE checked (n int CHECK (raises(n) = 0))`); err != nil {
		t.Fatal(err)
	}
	const text = `INSERT INTO checked VALUES ($1)`
	for range 3 {
		if _, err := k.conn.ExecContext(t.Context(), text, 0); err != nil {
			t.Fatal(err)
		}
	}
	for range 3 {
		k.does("begin")
		if got := k.show(text, 1); !strings.Contains(got, "never") || !strings.Contains(got, "0A000") {
			t.Error(got)
		}
		k.does("rollback")
	}
	if s := a.stats(); s.Replays != 1 {
		t.Errorf("the statistics are %+v", s)
	}
}

// A transaction does not stay without the cache because an earlier one did.
func TestAfterDDLInATransactionLaterOnesKeepStatements(t *testing.T) {
	_, k := enterKeeping(t, 8, bank)
	k.does("begin", `SET LOCAL statement_timeout = 0`)
	k.does(thrice(balanceOf)...)
	k.wantsKept()
	k.does("rollback", "begin")
	k.does(thrice(balanceOf)...)
	k.wantsKept(balanceOf)
	k.does("commit")
}

func TestWhatIsDoneToTheInnerConnectionEmptiesTheCache(t *testing.T) {
	compared(t, []string{`CREATE TABLE a (n int); INSERT INTO a VALUES (1)`}, func(k *keeper) {
		k.does(thrice(meanings["T"])...)
		if err := k.conn.Raw(func(driverConn any) error {
			inner, ok := RawConn(driverConn)
			if !ok {
				inner = driverConn.(driver.Conn)
			}
			for _, s := range []string{`BEGIN`, `SET LOCAL search_path = pg_temp`, `CREATE TEMP TABLE a AS SELECT 'temp' n`, `DEALLOCATE ALL`} {
				if _, err := inner.(driver.ExecerContext).ExecContext(k.Context(), s, nil); err != nil {
					return err
				}
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		k.does(thrice(meanings["T"])...)
		k.does(`ROLLBACK`)
		k.does(thrice(meanings["T"])...)
	})
}

// The names are the application's to change.
func TestColumnNamesAreNotShared(t *testing.T) {
	_, k := enterKeeping(t, 8)
	for range 5 {
		rows, err := k.conn.QueryContext(t.Context(), `SELECT $1::int AS a`, 1)
		if err != nil {
			t.Fatal(err)
		}
		names, err := rows.Columns()
		if err != nil || names[0] != "a" {
			t.Errorf("the columns are %q, %v", names, err)
		}
		names[0] = "changed"
		if err := rows.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestOnlyOneResultIsReadAtATime(t *testing.T) {
	const series, other = `SELECT generate_series(1, $1::int)`, `SELECT $1::int + 1`
	for _, first := range []bool{false, true} {
		for _, second := range []bool{false, true} {
			for _, tx := range []bool{false, true} {
				t.Run(fmt.Sprintf("kept %t and %t, in a transaction %t", first, second, tx), func(t *testing.T) {
					_, k := enterKeeping(t, 8)
					for text, kept := range map[string]bool{series: first, other: second} {
						if kept {
							k.does(thrice(text)...)
						}
					}
					query := k.conn.QueryContext
					if tx {
						k.does("begin")
						query = k.tx.QueryContext
					}
					rows, err := query(t.Context(), series, 5)
					if err != nil || !rows.Next() {
						t.Fatal(err)
					}
					for _, text := range []string{other, `SELECT 7`, `UPDATE pg_class SET relname = relname WHERE oid = $1`, `DELETE FROM pg_class WHERE false`} {
						if got := k.show(text, k.arguments(text)...); !strings.Contains(got, tested.busy) {
							t.Errorf("%s shows %s", text, got)
						}
					}
					left := 0
					for rows.Next() {
						left++
					}
					if err := errors.Join(rows.Err(), rows.Close()); err != nil || left != 4 {
						t.Errorf("%d rows are left, %v", left, err)
					}
					k.is("7", `SELECT 7`)
					if got := k.show(other, 5); !strings.Contains(got, "int64(6)") {
						t.Error(got)
					}
					if tx {
						k.does("commit")
					}
				})
			}
		}
	}
}

// cancelled are statements whose context ends while they are executed or their rows read.
var cancelled = map[string]func(ctx context.Context, cancel context.CancelFunc, a *arena, k *keeper) error{
	"exec": func(ctx context.Context, cancel context.CancelFunc, a *arena, k *keeper) error {
		a.cancelWhenWaitedFor(cancel)
		_, err := k.querier().ExecContext(ctx, `UPDATE account SET balance = $1 WHERE id = 1`, 7)
		return err
	},
	"query": func(ctx context.Context, cancel context.CancelFunc, a *arena, k *keeper) error {
		a.cancelWhenWaitedFor(cancel)
		rows, err := k.querier().QueryContext(ctx, `UPDATE account SET balance = $1 WHERE id = 1 RETURNING id`, 7)
		if err == nil {
			return errors.Join(errors.New("no error"), rows.Close())
		}
		return err
	},
	"rows": func(ctx context.Context, cancel context.CancelFunc, _ *arena, k *keeper) error {
		rows, err := k.querier().QueryContext(ctx, `SELECT generate_series(1, $1::int)`, 1_000_000_000)
		if err != nil {
			return err
		}
		rows.Next()
		cancel()
		for rows.Next() {
		}
		_ = rows.Close() // Err says it
		return rows.Err()
	},
}

type querier interface {
	ExecContext(context.Context, string, ...any) (sql.Result, error)
	QueryContext(context.Context, string, ...any) (*sql.Rows, error)
}

func (k *keeper) querier() querier {
	if k.tx != nil {
		return k.tx
	}
	return k.conn
}

// cancelWhenWaitedFor makes the rival hold an account, and cancels when somebody waits.
func (a *arena) cancelWhenWaitedFor(cancel context.CancelFunc) {
	a.Helper()
	a.rivalDoes("BEGIN", `UPDATE account SET balance = 1 WHERE id = 1`)
	done := make(chan struct{})
	go func() {
		defer close(done)
		a.until(`SELECT EXISTS (SELECT FROM pg_stat_activity WHERE $1 = ANY (pg_blocking_pids(pid)))`, a.pid)
		cancel()
	}()
	a.Cleanup(func() {
		<-done
		_, _ = a.rival.ExecContext(context.Background(), "ROLLBACK")
	})
}

func TestACancelledStatementCostsItsConnectionWhetherKeptOrNot(t *testing.T) {
	for name, do := range cancelled {
		for _, tx := range []bool{false, true} {
			t.Run(fmt.Sprint(name, ", in a transaction ", tx), func(t *testing.T) {
				var shown [2]string
				for i, size := range []int{0, 8} {
					t.Run(fmt.Sprint("size ", size), func(t *testing.T) {
						a, k := enterKeeping(t, size, bank)
						var pid, after int
						if err := k.conn.QueryRowContext(t.Context(), `SELECT pg_backend_pid()`).Scan(&pid); err != nil {
							t.Fatal(err)
						}
						for range 3 {
							k.show(`UPDATE account SET balance = $1 WHERE id = 1`, 5)
							k.show(`UPDATE account SET balance = $1 WHERE id = 1 RETURNING id`, 5)
							k.show(`SELECT generate_series(1, $1::int)`, 5)
						}
						if tx {
							k.does("begin")
						}
						ctx, cancel := context.WithCancel(t.Context())
						defer cancel()
						text := showError(do(ctx, cancel, a, k))
						if tx {
							text += "; a statement: " + k.show(`SELECT 1`) + "; COMMIT: " + showError(k.tx.Commit())
						}
						if err := k.conn.Close(); err != nil {
							text += " closing: " + err.Error()
						}
						a.db.SetMaxOpenConns(1)
						if err := a.db.QueryRow(`SELECT pg_backend_pid()`).Scan(&after); err != nil {
							t.Fatal(err)
						}
						if pid == after {
							t.Error("the connection is used again")
						}
						shown[i] = text
					})
				}
				if shown[0] != shown[1] {
					t.Errorf("not kept:\n%s\nkept:\n%s", shown[0], shown[1])
				}
			})
		}
	}
}

// TestAContextThatATransactionBeganWithEndsItsStatements: lib/pq waits once for the
// context of a transaction, so its kept statements are not watched for themselves. What
// comes after the transaction is.
func TestAContextThatATransactionBeganWithEndsItsStatements(t *testing.T) {
	for place, get := range map[string]func(context.Context, *keeper) error{
		"inside the transaction": func(ctx context.Context, k *keeper) (err error) {
			k.tx, err = k.conn.BeginTx(ctx, nil)
			return err
		},
		"inside one with another context": func(_ context.Context, k *keeper) (err error) {
			k.tx, err = k.conn.BeginTx(k.Context(), nil)
			return err
		},
		"after the transaction": func(ctx context.Context, k *keeper) error {
			tx, err := k.conn.BeginTx(ctx, nil)
			return errors.Join(err, tx.Commit())
		},
		"after its rollback, in a block": func(ctx context.Context, k *keeper) error {
			tx, err := k.conn.BeginTx(ctx, nil)
			err = errors.Join(err, tx.Rollback())
			_, beginErr := k.conn.ExecContext(ctx, `BEGIN`)
			return errors.Join(err, beginErr)
		},
	} {
		for name, do := range cancelled {
			t.Run(name+", "+place, func(t *testing.T) {
				a, k := enterKeeping(t, 8, bank)
				for range 3 {
					k.show(`UPDATE account SET balance = $1 WHERE id = 1`, 5)
					k.show(`UPDATE account SET balance = $1 WHERE id = 1 RETURNING id`, 5)
					k.show(`SELECT generate_series(1, $1::int)`, 5)
				}
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				if err := get(ctx, k); err != nil {
					t.Fatal(err)
				}
				failed := make(chan error, 1)
				go func() { failed <- do(ctx, cancel, a, k) }()
				<-ctx.Done()
				a.until(`SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE state = 'active' AND pid NOT IN (pg_backend_pid(), $1)
					AND (query LIKE 'UPDATE account%' OR query LIKE 'SELECT generate_series%'))`, a.pid)
				if t.Failed() { // it would go on for ever
					_, _ = a.plain.ExecContext(t.Context(), `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE state = 'active' AND pid <> pg_backend_pid()`)
				}
				if err := <-failed; err == nil {
					t.Error("the statement did not fail")
				}
			})
		}
	}
}

func TestOnlyALibPQThatWatchesTransactionsIsReliedUpon(t *testing.T) {
	_, k := enterKeeping(t, 8)
	for _, watches := range []bool{true, false} {
		var mine *tap
		if err := k.conn.Raw(func(raw any) error {
			mine = raw.(interface{ itself() *conn }).itself().tap
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		if !watches {
			mine.cache.txnFinish = nil // another version may have another name for it
		}
		tx, err := k.conn.BeginTx(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		if alone := mine.unwatched(t.Context()).Done() == nil; alone != watches {
			t.Errorf("lib/pq watches %t, and a statement has no context of its own: %t", watches, alone)
		}
		if err := tx.Rollback(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestALateCancelHitsNobodyElse(t *testing.T) {
	a := enter(t, []Option{WithStatementCache(8)})
	a.db.SetMaxOpenConns(2)
	const text = `SELECT count(*) FROM generate_series(1, $1::int)`
	done := make(chan struct{})
	others := make(chan error, 1)
	go func() {
		defer close(others)
		for {
			select {
			case <-done:
				return
			default:
			}
			var n int
			if err := a.db.QueryRow(text, 1000).Scan(&n); err != nil {
				others <- err
				return
			}
		}
	}()
	hit := 0
	for i := range 500 {
		ctx, cancel := context.WithTimeout(t.Context(), time.Duration(i%50)*100*time.Microsecond)
		var n int
		if a.db.QueryRowContext(ctx, text, 50_000).Scan(&n) != nil {
			hit++
		}
		cancel()
	}
	close(done)
	if err := <-others; err != nil {
		t.Errorf("a statement that nobody cancelled gives %v", err)
	}
	if hit == 0 {
		t.Error("nothing was cancelled")
	}
}

func TestALostSessionTakesItsStatementsAlong(t *testing.T) {
	a, k := enterKeeping(t, 8, bank)
	k.does(thrice(balanceOf)...)
	k.does("begin", balanceOf)
	if _, err := a.plain.Exec(`SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE state = 'idle in transaction' AND query LIKE '%balance%'
		AND pid <> $1`, a.pid); err != nil {
		t.Fatal(err)
	}
	if got := k.show(balanceOf, 1); !strings.Contains(got, "int64(100)") {
		t.Error(got)
	}
	k.wantsKept()
	k.does("commit", "begin", balanceOf, balanceOf, "commit")
	k.wantsKept(balanceOf)
	if s := a.stats(); s.Replays == 0 {
		t.Errorf("the statistics are %+v", s)
	}
}

func TestADeadlockIsHiddenWithStatementsThatAreKept(t *testing.T) {
	bothWays(t, func(t *testing.T, options []Option) {
		a := enter(t, append(options, WithStatementCache(8)), bank)
		a.db.SetMaxOpenConns(1)
		const move = `UPDATE account SET balance = balance + $1 WHERE id = $2`
		tx := a.begin(sql.LevelReadCommitted)
		tx.does(move, -1, 3)
		tx.does(move, 1, 4)
		tx.commits()
		tx = a.begin(sql.LevelReadCommitted)
		if err := tx.QueryRow(balanceOf, 4).Scan(new(int)); err != nil {
			t.Fatal(err)
		}
		tx.does(move, -1, 1)
		over := a.meets(crossing)
		tx.does(move, 1, 2)
		over()
		tx.seesThat(move, `SELECT statement FROM pg_prepared_statements WHERE statement LIKE 'UPDATE%'`)
		tx.commits()
		a.hid("40P01")
		a.is("98 102 99 101", `SELECT string_agg(balance::text, ' ' ORDER BY id) FROM account`)
	})
}

func TestSpansAreThereForKeptStatements(t *testing.T) {
	o := newObservatory(t)
	a := enter(t, append(o.options(), WithStatementSpans(), WithStatementCache(8)), bank)
	k := keeperOf(t, a.db, a.plain)
	count := func(name string) (n int) {
		for _, s := range o.spans.GetSpans() {
			if s.Name == name {
				n++
			}
		}
		return n
	}
	k.does(balanceOf)
	first := count("sql.conn.query")
	k.does(thrice(balanceOf)...)
	k.does(`UPDATE account SET balance = $1`, `UPDATE account SET balance = $1`)
	if queries, execs := count("sql.conn.query")-first, count("sql.conn.exec"); queries != 3 || execs != 2 || count("sql.conn.prepare") != 0 {
		t.Errorf("there are %d spans of queries, %d of executions:\n%s", queries, execs, o.tree())
	}
	k.wantsKept(balanceOf, `UPDATE account SET balance = $1`)
}

func TestStatementsOfTheApplicationsOwnLiveBesideTheCache(t *testing.T) {
	_, k := enterKeeping(t, 2, bank)
	stmt, err := k.conn.PrepareContext(t.Context(), balanceOf)
	if err != nil {
		t.Fatal(err)
	}
	for n := range 10 {
		k.does(thrice(fmt.Sprintf(`SELECT %d, $1::int`, n))...)
		k.does(thrice(balanceOf)...)
		var balance int
		if err := stmt.QueryRow(2).Scan(&balance); err != nil || balance != 100 {
			t.Errorf("the balance is %d, %v", balance, err)
		}
	}
	if err := stmt.Close(); err != nil {
		t.Error(err)
	}
}

// Names that began alike in each session would be another client's behind a pooler.
func TestNamesOfStatementsBeginSomewhereElseInEachSession(t *testing.T) {
	a, _ := enterKeeping(t, 8)
	names := map[string]bool{}
	for range 5 {
		k := keeperOf(t, a.db, a.plain)
		k.does(thrice(`SELECT $1::int`)...)
		var name string
		if err := k.conn.QueryRowContext(t.Context(), `SELECT name FROM pg_prepared_statements`).Scan(&name); err != nil {
			t.Fatal(err)
		}
		if len(name) < 8 || names[name] {
			t.Errorf("a statement is named %s", name)
		}
		names[name] = true
	}
}

// As when one prepared on Monday is executed in a table of Tuesday's.
func TestValuesThatFitOnlyTheNewTypeOfAColumnAreTaken(t *testing.T) {
	for kind, value := range map[string]any{"text": "seven", "numeric": 1.5, "bigint": 1 << 40, "timestamptz USING now()": "2026-01-01 00:00:00+02"} {
		t.Run(kind, func(t *testing.T) {
			compared(t, []string{`CREATE TABLE a (n int)`}, func(k *keeper) {
				const text = `INSERT INTO a VALUES ($1)`
				k.does(thrice(text)...)
				k.does(`other: ALTER TABLE a ALTER n TYPE ` + kind)
				k.notes(text, value)
				k.notes(text, value)
				k.does(`SELECT count(*) FROM a`)
			})
		})
	}
	t.Run("a type that is gone", func(t *testing.T) {
		compared(t, []string{`CREATE TYPE mood AS ENUM ('sad'); CREATE TABLE a (m mood)`}, func(k *keeper) {
			const text = `INSERT INTO a VALUES ($1)`
			for range 3 {
				k.notes(text, "sad")
			}
			k.does(`other: ALTER TYPE mood RENAME TO old; CREATE TYPE mood AS ENUM ('happy', 'sad'); ALTER TABLE a ALTER m TYPE mood USING m::text::mood; DROP TYPE old`)
			for range 3 {
				k.notes(text, "happy")
			}
		})
	})
}

// tap returns what is directly around the inner driver's connection.
func (k *keeper) tap() (t *tap) {
	k.Helper()
	if err := k.conn.Raw(func(driverConn any) error {
		t = driverConn.(interface{ itself() *conn }).itself().tap
		return nil
	}); err != nil {
		k.Fatal(err)
	}
	return t
}

func TestAConnectionThatIsLostIsLostEvenWhileRowsAreRead(t *testing.T) {
	_, k := enterKeeping(t, 8)
	tap := k.tap()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	rows, err := tap.QueryContext(ctx, `SELECT generate_series(1, 10000000)`, nil)
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	for tap.isValid() {
		runtime.Gosched()
	}
	if _, err := tap.ExecContext(t.Context(), `SELECT 1`, nil); err != driver.ErrBadConn { //nolint:errorlint // drivers must return it bare
		t.Errorf("the next statement gives %v", err)
	}
	_ = rows.Close()
}

// What the session has dropped need not be closed.
func TestAfterDiscardAllNothingIsLeftToClose(t *testing.T) {
	for text, left := range map[string]int{`DISCARD ALL`: 0, ` deallocate  All ;`: 0, `DISCARD TEMP`: 1, `RESET ALL`: 1} {
		_, k := enterKeeping(t, 8)
		k.does(thrice(`SELECT $1::int`)...)
		k.does(text)
		if got := len(k.tap().cache.stale); got != left {
			t.Errorf("%s leaves %d to close, want %d", text, got, left)
		}
	}
}
