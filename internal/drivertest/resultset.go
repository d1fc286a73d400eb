package drivertest

import (
	"database/sql/driver"
	"reflect"
)

// Column describes a column. The zero value but for the name is a column of which
// the driver knows nothing.
type Column struct {
	Name         string
	DatabaseType string
	ScanType     reflect.Type // nil stands for any
	Length       int64
	HasLength    bool
	Nullable     bool
	HasNullable  bool
	Precision    int64
	Scale        int64
	HasDecimal   bool
}

// ResultSet is an answer to a query.
type ResultSet struct {
	Columns []Column
	Rows    [][]driver.Value
	// Err is what Next returns after the last row; nil stands for io.EOF.
	Err error

	names []string
}

// Columns returns columns of which no more than the names are known.
func Columns(names ...string) []Column {
	columns := make([]Column, len(names))
	for i, name := range names {
		columns[i].Name = name
	}
	return columns
}

func nameColumns(sets []ResultSet) []ResultSet {
	named := make([]ResultSet, len(sets))
	for i, set := range sets {
		set.names = make([]string, len(set.Columns))
		for j, column := range set.Columns {
			set.names[j] = column.Name
		}
		named[i] = set
	}
	return named
}

// defaultSets answers a query no rule knows: one row with one int64 that is 1.
var defaultSets = nameColumns([]ResultSet{{
	Columns: []Column{{Name: "value", DatabaseType: "INT8", ScanType: reflect.TypeFor[int64]()}},
	Rows:    [][]driver.Value{{int64(1)}},
}})

// defaultResult answers an Exec no rule knows.
var defaultResult driver.Result = driver.RowsAffected(1)
