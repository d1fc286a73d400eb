package pgretrytest

import (
	"context"
	"database/sql"
	"math/big"
	"reflect"
)

// isOpaque is true of types that stand for something outside a value, or guard it: they are
// shared by copies, and not compared.
func isOpaque(typ reflect.Type) bool {
	if typ.Implements(reflect.TypeFor[reflect.Type]()) || typ.Implements(reflect.TypeFor[context.Context]()) {
		return true
	}
	if typ.Kind() == reflect.Pointer {
		typ = typ.Elem()
	}
	switch typ {
	case reflect.TypeFor[reflect.Value](), reflect.TypeFor[sql.DB](), reflect.TypeFor[sql.Conn](), reflect.TypeFor[sql.Tx](), reflect.TypeFor[sql.Stmt]():
		return true
	}
	return typ.PkgPath() == "sync"
}

// isReference is true of kinds that, in a field that is not exported, are a type's own affair:
// it may compare them by identity, guard them, or lead to all of the program.
func isReference(kind reflect.Kind) bool {
	switch kind {
	case reflect.Pointer, reflect.UnsafePointer, reflect.Interface, reflect.Map, reflect.Func, reflect.Chan:
		return true
	}
	return false
}

// isBigNumber is true of what types of decimals hide.
func isBigNumber(typ reflect.Type) bool {
	switch typ {
	case reflect.TypeFor[*big.Int](), reflect.TypeFor[*big.Rat](), reflect.TypeFor[*big.Float]():
		return true
	}
	return false
}

// isHidden says whether a field of a struct, hidden itself or not, is.
func isHidden(field reflect.StructField, hidden bool) bool {
	return hidden || !field.IsExported() && (!field.Anonymous || field.Type.Kind() != reflect.Struct)
}
