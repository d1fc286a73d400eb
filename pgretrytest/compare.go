package pgretrytest

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// shownRows is how many rows, of one table, a difference shows.
const shownRows = 10

func allTables(a, b snapshot) []string {
	names := maps.Clone(a)
	maps.Copy(names, b)
	return slices.Sorted(maps.Keys(names))
}

// masks are the columns that are not compared, by table.
type masks map[string]map[string]bool

func (m masks) add(table, column string) {
	if m[table] == nil {
		m[table] = make(map[string]bool)
	}
	m[table][column] = true
}

// ignores says whether the option asks for a column to be left out: "table.column" or
// "schema.table.column".
func ignores(names []string, table, column string) bool {
	full := table + "." + column
	return slices.ContainsFunc(names, func(name string) bool {
		return name == full || strings.HasSuffix(full, "."+name) && strings.Contains(name, ".")
	})
}

// compare says what one snapshot holds that the other one does not, in lines, "" if
// nothing. Tables whose rows were not fetched are compared by their digests.
func (m masks) compare(undisturbed, got snapshot) string {
	var text strings.Builder
	for _, name := range allTables(undisturbed, got) {
		text.WriteString(m.compareTable(name, undisturbed[name], got[name]))
	}
	return text.String()
}

func (m masks) compareTable(name string, undisturbed, got *table) string {
	switch {
	case undisturbed == nil:
		return fmt.Sprintf("table %s is there\n", name)
	case got == nil:
		return fmt.Sprintf("table %s is not there\n", name)
	case !slices.Equal(undisturbed.columns, got.columns):
		return fmt.Sprintf("table %s has other columns: %v, undisturbed %v\n", name, got.columns, undisturbed.columns)
	case !undisturbed.fetched || !got.fetched:
		if undisturbed.digest == got.digest {
			return ""
		}
		return fmt.Sprintf("table %s holds other rows\n", name)
	}
	missing, extra := m.differingRows(name, undisturbed, got)
	if len(missing)+len(extra) == 0 {
		return ""
	}
	var text strings.Builder
	fmt.Fprintf(&text, "table %s:\n", name)
	showRows(&text, "-", missing)
	showRows(&text, "+", extra)
	return text.String()
}

func showRows(text *strings.Builder, sign string, rows []string) {
	for i, row := range rows {
		if i == shownRows {
			fmt.Fprintf(text, "  %s … and %d more\n", sign, len(rows)-shownRows)
			return
		}
		fmt.Fprintf(text, "  %s %s\n", sign, row)
	}
}

// differingRows returns the rows that only one of two tables has, in words.
func (m masks) differingRows(name string, undisturbed, got *table) (missing, extra []string) {
	counts := make(map[string]int)
	for _, row := range undisturbed.rows {
		counts[m.words(name, undisturbed.columns, row)]++
	}
	for _, row := range got.rows {
		counts[m.words(name, got.columns, row)]--
	}
	for _, row := range slices.Sorted(maps.Keys(counts)) {
		for n := counts[row]; n > 0; n-- {
			missing = append(missing, row)
		}
		for n := counts[row]; n < 0; n++ {
			extra = append(extra, row)
		}
	}
	return missing, extra
}

// words names the columns of a row that are compared, with their values.
func (m masks) words(name string, columns []column, row []*string) string {
	var parts []string
	for i, c := range columns {
		switch {
		case m[name][c.name]:
		case row[i] == nil:
			parts = append(parts, c.name+"=NULL")
		default:
			parts = append(parts, fmt.Sprintf("%s=%q", c.name, *row[i]))
		}
	}
	return strings.Join(parts, " ")
}

// learn masks the columns of times and UUIDs whose values differ between two runs that
// nothing disturbed.
func (m masks) learn(first, second snapshot, during, duringSecond span) (learned []string) {
	for _, name := range allTables(first, second) {
		a, b := first[name], second[name]
		if a == nil || b == nil || !a.fetched || !b.fetched || !slices.Equal(a.columns, b.columns) {
			continue
		}
		if missing, extra := m.differingRows(name, a, b); len(missing)+len(extra) == 0 {
			continue
		}
		for i, c := range a.columns {
			if c.varies() && mayVary(c.typ, valuesOf(a, i), valuesOf(b, i), during, duringSecond) {
				m.add(name, c.name)
				learned = append(learned, name+"."+c.name)
			}
		}
	}
	return learned
}

// mayVary says whether the values in a column differ between two runs, and only because each
// has UUIDs and times of its own.
func mayVary(typ string, first, second []string, during, duringSecond span) bool {
	if slices.Equal(first, second) {
		return false
	}
	if typ == "uuid" {
		return true
	}
	own := func(values, others []string, s span) bool {
		return !slices.ContainsFunc(values, func(value string) bool {
			return !slices.Contains(others, value) && !s.holdsText(typ, value)
		})
	}
	return own(first, second, during) && own(second, first, duringSecond)
}

// valuesOf returns the values in a column, in their order.
func valuesOf(t *table, column int) []string {
	values := make([]string, len(t.rows))
	for i, row := range t.rows {
		values[i] = "NULL"
		if row[column] != nil {
			values[i] = *row[column]
		}
	}
	slices.SortFunc(values, cmp.Compare[string])
	return values
}
