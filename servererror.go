package pgretry

import (
	"reflect"

	"github.com/lib/pq"
)

// serverError is what a PostgreSQL server, or something that speaks for one, said
// in an ErrorResponse. It is empty where the driver does not keep the field.
type serverError struct {
	severity, code, message, detail, hint, where, table, constraint string

	// routine is the server's function that reported the error. Unlike the
	// message it is never translated.
	routine string
}

// asServerError finds the server's error in the tree of err. An error that has
// the message beside the SQLSTATE is preferred to one that only repeats the
// SQLSTATE of what it wraps. It is false if no error in the tree has a SQLSTATE.
func asServerError(err error) (serverError, bool) {
	var found serverError
	var ok bool
	eachError(err, func(node error, _ bool) bool {
		server, isServer := serverErrorOf(node)
		if isServer && (!ok || server.message != "") {
			found, ok = server, true
		}
		return found.message == ""
	})
	return found, ok
}

// fielder is an error of bun's pgdriver, which gives the fields of the server's message by
// their letters (PostgreSQL manual, 55.8).
type fielder interface{ Field(letter byte) string }

// serverErrorOf looks at one error and not at what it wraps.
func serverErrorOf(node error) (serverError, bool) {
	if pqError, ok := node.(*pq.Error); ok {
		return serverError{
			severity:   pqError.Severity,
			code:       string(pqError.Code),
			message:    pqError.Message,
			detail:     pqError.Detail,
			hint:       pqError.Hint,
			where:      pqError.Where,
			table:      pqError.Table,
			constraint: pqError.Constraint,
			routine:    pqError.Routine,
		}, isSQLState(string(pqError.Code))
	}
	if fields, ok := node.(fielder); ok {
		return serverError{
			severity: fields.Field('V'), code: fields.Field('C'), message: fields.Field('M'), detail: fields.Field('D'),
			hint: fields.Field('H'), where: fields.Field('W'), table: fields.Field('t'), constraint: fields.Field('n'),
			routine: fields.Field('R'),
		}, isSQLState(fields.Field('C'))
	}
	state, ok := node.(interface{ SQLState() string })
	if !ok {
		return serverError{}, false
	}
	code := state.SQLState()
	if !isSQLState(code) {
		return serverError{}, false
	}
	fields := reflect.Indirect(reflect.ValueOf(node))
	if fields.Kind() != reflect.Struct {
		return serverError{code: code}, true
	}
	severity := stringField(fields, "SeverityUnlocalized")
	if severity == "" {
		severity = stringField(fields, "Severity")
	}
	table := stringField(fields, "TableName")
	if table == "" {
		table = stringField(fields, "Table")
	}
	constraint := stringField(fields, "ConstraintName")
	if constraint == "" {
		constraint = stringField(fields, "Constraint")
	}
	return serverError{
		severity:   severity,
		code:       code,
		message:    stringField(fields, "Message"),
		detail:     stringField(fields, "Detail"),
		hint:       stringField(fields, "Hint"),
		where:      stringField(fields, "Where"),
		table:      table,
		constraint: constraint,
		routine:    stringField(fields, "Routine"),
	}, true
}

// stringField returns the exported string field of that name, or "".
func stringField(fields reflect.Value, name string) string {
	field, ok := fields.Type().FieldByName(name)
	if !ok || !field.IsExported() || field.Type.Kind() != reflect.String {
		return ""
	}
	value, err := fields.FieldByIndexErr(field.Index)
	if err != nil { // promoted from an embedded pointer that is nil: the field is not there
		return ""
	}
	return value.String()
}

// isSQLState reports whether code is five of the characters a SQLSTATE is made of
// and stands for an error.
func isSQLState(code string) bool {
	if len(code) != 5 || code == "00000" {
		return false
	}
	for i := range len(code) {
		if c := code[i]; (c < '0' || c > '9') && (c < 'A' || c > 'Z') {
			return false
		}
	}
	return true
}

// maxErrors bounds how much of an error tree is looked at, because nothing stops
// a type's Unwrap from returning itself.
const maxErrors = 100

// eachError calls visit for err and everything it wraps, the outer before the
// inner, until visit returns false. leaf is true for an error that wraps nothing.
//
// It differs from errors.As in what a classification must survive: nil pointers
// in interfaces are passed over, methods that panic count as absent, and trees
// without an end are cut off.
func eachError(err error, visit func(node error, leaf bool) bool) {
	left := maxErrors
	eachErrorWithin(err, visit, &left)
}

func eachErrorWithin(err error, visit func(error, bool) bool, left *int) bool {
	for err != nil && *left > 0 {
		*left--
		if isNilPointer(err) {
			return true
		}
		several, next := unwrap(err)
		if !guarded(err, next == nil && len(several) == 0, visit) {
			return false
		}
		for _, inner := range several {
			if !eachErrorWithin(inner, visit, left) {
				return false
			}
		}
		err = next
	}
	return true
}

// guarded calls visit; if a method of the error panics, the walk goes on.
func guarded(node error, leaf bool, visit func(error, bool) bool) (more bool) {
	more = true
	defer func() { _ = recover() }()
	return visit(node, leaf)
}

func unwrap(err error) (several []error, next error) {
	defer func() {
		if recover() != nil {
			several, next = nil, nil
		}
	}()
	switch wrapper := err.(type) {
	case interface{ Unwrap() error }:
		return nil, wrapper.Unwrap()
	case interface{ Unwrap() []error }:
		return wrapper.Unwrap(), nil
	}
	return nil, nil
}

func isNilPointer(err error) bool {
	switch value := reflect.ValueOf(err); value.Kind() {
	case reflect.Pointer, reflect.Map, reflect.Slice, reflect.Func, reflect.Chan:
		return value.IsNil()
	default:
		return false
	}
}
