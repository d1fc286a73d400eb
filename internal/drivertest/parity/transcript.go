package parity

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"reflect"
	"regexp"
	"strings"
	"sync"
	"time"
)

// transcript is what a scenario saw, line by line.
type transcript struct {
	mu    sync.Mutex
	lines []string
}

func (t *transcript) note(format string, args ...any) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.lines = append(t.lines, fmt.Sprintf(format, args...))
}

func (t *transcript) snapshot() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return append([]string(nil), t.lines...)
}

// What differs from session to session without meaning anything.
var masks = []struct {
	pattern     *regexp.Regexp
	replacement string
}{
	{regexp.MustCompile(`(?i)\b(process|pid|backend|transaction) \d+`), "$1 N"},
	{regexp.MustCompile(`\b(127\.0\.0\.1|\[?::1\]?|localhost):\d+`), "$1:N"},
	{regexp.MustCompile(`\b(Port=)\d+`), "${1}N"},
	{regexp.MustCompile(`\b0xc[0-9a-f]{9}\b`), "0xN"},
}

func mask(s string) string {
	for _, m := range masks {
		s = m.pattern.ReplaceAllString(s, m.replacement)
	}
	return s
}

// format shows a value with its dynamic type.
func format(v any) string {
	switch v := v.(type) {
	case nil:
		return "nil"
	case []byte:
		if v == nil {
			return "[]uint8(nil)"
		}
		return fmt.Sprintf("[]uint8(%q)", v)
	case string:
		return fmt.Sprintf("string(%q)", v)
	case time.Time:
		return fmt.Sprintf("time.Time(%s, %s)", v.Format(time.RFC3339Nano), v.Location())
	case error:
		return formatError(v)
	default:
		return fmt.Sprintf("%T(%+v)", v, v)
	}
}

var sentinels = []struct {
	name string
	err  error
}{
	{"sql.ErrNoRows", sql.ErrNoRows},
	{"sql.ErrTxDone", sql.ErrTxDone},
	{"sql.ErrConnDone", sql.ErrConnDone},
	{"driver.ErrBadConn", driver.ErrBadConn},
	{"driver.ErrSkip", driver.ErrSkip},
	{"driver.ErrRemoveArgument", driver.ErrRemoveArgument},
	{"context.Canceled", context.Canceled},
	{"context.DeadlineExceeded", context.DeadlineExceeded},
	{"io.EOF", io.EOF},
	{"io.ErrUnexpectedEOF", io.ErrUnexpectedEOF},
}

// formatError shows what callers can find out about an error: text, SQLSTATE, the
// sentinels it is (==) or wraps, and for each error of the chain the dynamic type
// and all fields.
func formatError(err error) string {
	if err == nil {
		return "no error"
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%q", err.Error())
	var state interface{ SQLState() string }
	if errors.As(err, &state) {
		fmt.Fprintf(&b, " SQLSTATE %s", state.SQLState())
	}
	for _, s := range sentinels {
		switch {
		case err == s.err:
			b.WriteString(" == " + s.name)
		case errors.Is(err, s.err):
			b.WriteString(" is " + s.name)
		}
	}
	writeChain(&b, err)
	return b.String()
}

func writeChain(b *strings.Builder, err error) {
	if err == nil {
		return
	}
	fmt.Fprintf(b, " <- %T", err)
	if fields := formatFields(reflect.ValueOf(err), 3); fields != "" {
		b.WriteString(fields)
	}
	switch wrapper := err.(type) {
	case interface{ Unwrap() error }:
		writeChain(b, wrapper.Unwrap())
	case interface{ Unwrap() []error }:
		for _, each := range wrapper.Unwrap() {
			writeChain(b, each)
		}
	}
}

// formatFields lists the fields of structs, exported or not, that are not zero.
// Fields that hold an error are left to the chain; functions, channels and
// pointers to anything but structs are left out.
func formatFields(v reflect.Value, depth int) string {
	for v.Kind() == reflect.Pointer || v.Kind() == reflect.Interface {
		if v.IsNil() {
			return ""
		}
		v = v.Elem()
	}
	if v.Kind() != reflect.Struct || depth == 0 {
		return ""
	}
	var fields []string
	for i := range v.NumField() {
		name, field := v.Type().Field(i).Name, v.Field(i)
		if field.IsZero() || field.Type().Implements(reflect.TypeFor[error]()) {
			continue
		}
		switch field.Kind() {
		case reflect.String:
			fields = append(fields, fmt.Sprintf("%s=%q", name, field.String()))
		case reflect.Bool:
			fields = append(fields, fmt.Sprintf("%s=%t", name, field.Bool()))
		case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
			fields = append(fields, fmt.Sprintf("%s=%d", name, field.Int()))
		case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
			fields = append(fields, fmt.Sprintf("%s=%d", name, field.Uint()))
		case reflect.Slice:
			fields = append(fields, fmt.Sprintf("%s of %d", name, field.Len()))
		case reflect.Struct, reflect.Pointer, reflect.Interface:
			if inner := formatFields(field, depth-1); inner != "" {
				fields = append(fields, name+inner)
			}
		}
	}
	return "{" + strings.Join(fields, " ") + "}"
}
