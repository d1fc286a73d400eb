package drivertest

import (
	"database/sql/driver"
	"fmt"
	"math"
	"strconv"
	"strings"
)

// QueryOption is an argument that [CheckValue] removes from the list, as drivers do
// with options of a single query.
type QueryOption string

// CheckValue is what CheckNamedValue does by default, much like lib/pq: unsigned
// integers beyond int64 become text, slices of integers an array literal, a
// [QueryOption] is removed, everything else is left to database/sql.
func CheckValue(nv *driver.NamedValue) error {
	switch v := nv.Value.(type) {
	case QueryOption:
		return driver.ErrRemoveArgument
	case uint64:
		if v > math.MaxInt64 {
			nv.Value = strconv.FormatUint(v, 10)
			return nil
		}
	case []int64:
		items := make([]string, len(v))
		for i, n := range v {
			items[i] = strconv.FormatInt(n, 10)
		}
		nv.Value = "{" + strings.Join(items, ",") + "}"
		return nil
	}
	return driver.ErrSkip
}

// yesNoConverter is the converter of statements with StmtColumnConverter. It makes
// a bool "yes" or "no", so that it shows that it was asked, and leaves everything
// else to the default.
type yesNoConverter struct{}

func (yesNoConverter) ConvertValue(v any) (driver.Value, error) {
	switch v {
	case true:
		return "yes", nil
	case false:
		return "no", nil
	}
	return driver.DefaultParameterConverter.ConvertValue(v)
}

// checkArgs returns what is wrong with arguments that database/sql, or a wrapper in
// its place, should have converted.
func checkArgs(args []driver.NamedValue) error {
	for i, arg := range args {
		if arg.Ordinal != i+1 {
			return fmt.Errorf("argument %d has ordinal %d", i+1, arg.Ordinal)
		}
		if !driver.IsValue(arg.Value) {
			return fmt.Errorf("argument $%d of type %T is no driver.Value", arg.Ordinal, arg.Value)
		}
	}
	return nil
}

func namedValues(args []driver.Value) []driver.NamedValue {
	named := make([]driver.NamedValue, len(args))
	for i, arg := range args {
		named[i] = driver.NamedValue{Ordinal: i + 1, Value: arg}
	}
	return named
}

// placeholders returns the highest n of the placeholders $n in query.
func placeholders(query string) int {
	highest := 0
	for i := 0; i < len(query); i++ {
		if query[i] != '$' {
			continue
		}
		n := 0
		for i+1 < len(query) && query[i+1] >= '0' && query[i+1] <= '9' {
			i++
			n = n*10 + int(query[i]-'0')
		}
		highest = max(highest, n)
	}
	return highest
}
