package pgretrytest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/pgretry/pgretry/internal/abort"
)

// snapshot is what a database holds, as a session sees it, by the names of the tables.
type snapshot map[string]*table

// table is what a table, or a materialized view, holds.
type table struct {
	sql     string // its name as SQL has it
	columns []column
	digest  string      // of the rows, in whatever order
	rows    [][]*string // as text, nil for NULL
	fetched bool        // the rows are here
}

type column struct {
	name string
	typ  string // the name of its type, or of that which its domain is of
}

// varies is true of the types whose values may differ each time they are made.
func (c column) varies() bool {
	switch c.typ {
	case "timestamp", "timestamptz", "date", "time", "timetz", "uuid":
		return true
	}
	return false
}

// listTables is a query for the tables that can be read, those of other sessions, the
// server's own, and, if the text is not empty, those in other schemas apart.
const listTables = `SELECT CASE n.oid WHEN pg_catalog.pg_my_temp_schema() THEN 'pg_temp' ELSE n.nspname END || '.' || c.relname,
	pg_catalog.quote_ident(n.nspname) || '.' || pg_catalog.quote_ident(c.relname),
	(SELECT coalesce(pg_catalog.json_agg(pg_catalog.json_build_array(a.attname, coalesce(b.typname, t.typname)) ORDER BY a.attnum), '[]')::text
		FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_type t ON t.oid = a.atttypid LEFT JOIN pg_catalog.pg_type b ON b.oid = t.typbasetype
		WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped)
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'm') AND c.relispopulated
	AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast')
	AND (c.relpersistence <> 't' OR n.oid = pg_catalog.pg_my_temp_schema())
	AND pg_catalog.has_schema_privilege(n.oid, 'USAGE') AND pg_catalog.has_table_privilege(c.oid, 'SELECT')%s
ORDER BY 1`

// digestsAtOnce is how many tables are looked at in one query.
const digestsAtOnce = 50

// take looks at the database. Rows are fetched of the tables that want asks for.
func (r *reader) take(ctx context.Context, on abort.Session, want func(name, digest string) bool) (snapshot, error) {
	list, err := on.Query(ctx, fmt.Sprintf(listTables, r.condition))
	if err != nil {
		return nil, fmt.Errorf("list the tables: %w", err)
	}
	found := make(snapshot)
	names := make([]string, len(list))
	for i, row := range list {
		t := &table{sql: *row[1]}
		var columns [][2]string
		if err := json.Unmarshal([]byte(*row[2]), &columns); err != nil {
			return nil, fmt.Errorf("read the columns of %s: %w", *row[0], err)
		}
		for _, c := range columns {
			t.columns = append(t.columns, column{c[0], c[1]})
		}
		names[i] = *row[0]
		found[names[i]] = t
	}
	for len(names) > 0 {
		n := min(digestsAtOnce, len(names))
		if err := found.digest(ctx, on, names[:n]); err != nil {
			return nil, err
		}
		names = names[n:]
	}
	for name, t := range found {
		if want(name, t.digest) {
			if err := t.fetch(ctx, on); err != nil {
				return nil, err
			}
		}
	}
	return found, nil
}

// digest digests tables. A sum does not depend on an order.
func (s snapshot) digest(ctx context.Context, on abort.Session, names []string) error {
	parts := make([]string, len(names))
	for i, name := range names {
		parts[i] = fmt.Sprintf(`SELECT %d::text, pg_catalog.count(*)::text || ' ' || coalesce(pg_catalog.sum(pg_catalog.hashtextextended("its row"::text, 0)::numeric), 0)::text FROM ONLY %s AS "its row"`,
			i, s[name].sql)
	}
	rows, err := on.Query(ctx, strings.Join(parts, " UNION ALL "))
	if err != nil {
		return fmt.Errorf("digest the tables: %w", err)
	}
	for _, row := range rows {
		var i int
		if _, err := fmt.Sscan(*row[0], &i); err != nil || i < 0 || i >= len(names) {
			return errors.Join(fmt.Errorf("digest the tables: table %s", *row[0]), err)
		}
		s[names[i]].digest = *row[1]
	}
	return nil
}

// fetch reads the rows.
func (t *table) fetch(ctx context.Context, on abort.Session) error {
	values := make([]string, len(t.columns))
	for i, c := range t.columns {
		values[i] = `"its row".` + quoteName(c.name) + `::text`
	}
	list, err := on.Query(ctx, fmt.Sprintf(`SELECT pg_catalog.to_json(ARRAY[%s]::text[])::text FROM ONLY %s AS "its row"`, strings.Join(values, ", "), t.sql))
	if err != nil {
		return fmt.Errorf("read %s: %w", t.sql, err)
	}
	t.rows, t.fetched = make([][]*string, len(list)), true
	for i, row := range list {
		if err := json.Unmarshal([]byte(*row[0]), &t.rows[i]); err != nil {
			return fmt.Errorf("read %s: %w", t.sql, err)
		}
	}
	return nil
}

func quoteName(name string) string { return `"` + strings.ReplaceAll(name, `"`, `""`) + `"` }

func quoteText(text string) string {
	quoted := `'` + strings.ReplaceAll(strings.ReplaceAll(text, `\`, `\\`), `'`, `''`) + `'`
	if strings.Contains(text, `\`) {
		return ` E` + quoted
	}
	return quoted
}

// reader looks at databases.
type reader struct{ condition string }

// newReader returns a reader of the schemas, of all if there is none.
func newReader(schemas []string) *reader {
	if len(schemas) == 0 {
		return new(reader)
	}
	quoted := make([]string, len(schemas))
	for i, schema := range schemas {
		quoted[i] = quoteText(schema)
	}
	return &reader{" AND (n.oid = pg_catalog.pg_my_temp_schema() OR n.nspname IN (" + strings.Join(quoted, ", ") + "))"}
}

// differingTables says which tables differ between two snapshots, by their digests.
func differingTables(a, b snapshot) (names []string) {
	for _, name := range allTables(a, b) {
		if a[name] == nil || b[name] == nil || a[name].digest != b[name].digest {
			names = append(names, name)
		}
	}
	return names
}
