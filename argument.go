package pgretry

import (
	"database/sql/driver"
	"math/big"
	"net/netip"
	"reflect"
	"slices"
	"time"
	"unsafe"
)

// argumentDepth bounds how far an argument refers to others, and so those that refer to
// themselves.
const argumentDepth = 32

// valueSize is the size of what a value points to, but for those of types that only some
// drivers take: these are counted when they are copied.
func valueSize(value driver.Value) int {
	switch value := value.(type) {
	case string:
		return len(value)
	case []byte:
		return len(value)
	case time.Time:
		return int(unsafe.Sizeof(value))
	}
	return 0
}

// copyValue makes a value independent of the caller's memory, and returns how much more
// than valueSize the copy takes. It is false if the value's type does not allow a copy, or
// if that takes more than room.
func (j *journal) copyValue(value *driver.Value, room int) (size int, ok bool) {
	switch v := (*value).(type) {
	case nil, bool, int64, float64, string, time.Time:
		return 0, true
	case []byte:
		if len(v) == 0 {
			return 0, true // nil stays nil, and there is nothing to change in the other
		}
		first := len(j.arena)
		j.arena = append(j.arena, v...)
		*value = j.arena[first:len(j.arena):len(j.arena)]
		return 0, true
	}
	c := copier{room: room}
	copied, ok := c.copy(reflect.ValueOf(*value), argumentDepth)
	if ok {
		*value = copied.Interface()
	}
	return room - c.room, ok
}

// copier copies values that some drivers take as they are, pgx for one: named types, other
// numbers, and slices, maps, pointers and structures of all these. What a driver makes of
// a copy has to be what it makes of the original, now and later, so nothing is copied that
// says itself how it is written, unless it is known, and nothing that hides anything.
type copier struct{ room int }

func (c *copier) takes(size int) bool {
	c.room -= size
	return c.room >= 0
}

func (c *copier) copy(v reflect.Value, depth int) (reflect.Value, bool) {
	if depth == 0 || !c.takes(int(v.Type().Size())) {
		return v, false
	}
	if isFixed(v.Type()) {
		return v, c.takes(textSize(v))
	}
	copied := reflect.New(v.Type()).Elem()
	switch v.Kind() {
	case reflect.Interface:
		if v.IsNil() {
			return v, true
		}
		element, ok := c.copy(v.Elem(), depth-1)
		if !ok {
			return v, false
		}
		copied.Set(element)
		return copied, true
	case reflect.Pointer:
		if v.IsNil() {
			return v, true
		}
		if number, ok := v.Interface().(*big.Int); ok {
			return reflect.ValueOf(new(big.Int).Set(number)), c.takes(len(number.Bits()) * int(unsafe.Sizeof(big.Word(0))))
		}
		if target := v.Type().Elem(); v.Type().NumMethod() > target.NumMethod() && !isKnown(target) {
			return v, false // it may go by which one it is, or note that it was written
		}
		element, ok := c.copy(v.Elem(), depth-1)
		if !ok {
			return v, false
		}
		copied.Set(reflect.New(v.Type().Elem()))
		copied.Elem().Set(element)
		return copied, true
	case reflect.Slice:
		return c.copySlice(copied, v, depth)
	case reflect.Array:
		return copied, !ownWriter(v.Type()) && c.copyElements(copied, v, depth)
	case reflect.Map:
		return c.copyMap(copied, v, depth)
	case reflect.Struct:
		return c.copyStruct(copied, v, depth)
	}
	return v, false // functions, channels
}

func (c *copier) copySlice(copied, v reflect.Value, depth int) (reflect.Value, bool) {
	if v.IsNil() {
		return v, true
	}
	element := v.Type().Elem()
	fixed := isFixed(element)
	if ownWriter(v.Type()) && !fixed || !c.takes(v.Len()*int(element.Size())) {
		return v, false
	}
	copied.Set(reflect.MakeSlice(v.Type(), v.Len(), v.Len()))
	if fixed && element.Kind() <= reflect.Complex128 { // numbers
		reflect.Copy(copied, v)
		return copied, true
	}
	return copied, c.copyElements(copied, v, depth)
}

func (c *copier) copyElements(copied, v reflect.Value, depth int) bool {
	for i := range v.Len() {
		element, ok := c.copy(v.Index(i), depth-1)
		if !ok {
			return false
		}
		copied.Index(i).Set(element)
	}
	return true
}

func (c *copier) copyMap(copied, v reflect.Value, depth int) (reflect.Value, bool) {
	if v.IsNil() {
		return v, true
	}
	if ownWriter(v.Type()) || !isFixed(v.Type().Key()) {
		return v, false
	}
	copied.Set(reflect.MakeMapWithSize(v.Type(), v.Len()))
	for i := v.MapRange(); i.Next(); {
		key, ok := c.copy(i.Key(), depth-1)
		if !ok {
			return v, false
		}
		value, ok := c.copy(i.Value(), depth-1)
		if !ok {
			return v, false
		}
		copied.SetMapIndex(key, value)
	}
	return copied, true
}

// copyStruct takes the fields that are not exported as they are, so they must be plain.
func (c *copier) copyStruct(copied, v reflect.Value, depth int) (reflect.Value, bool) {
	t := v.Type()
	if ownWriter(t) || isSync(t) {
		return v, false
	}
	copied.Set(v)
	for i := range t.NumField() {
		field := t.Field(i)
		switch {
		case isFixed(field.Type):
			if !c.takes(textSize(v.Field(i))) {
				return v, false
			}
		case !field.IsExported():
			if !v.Field(i).IsZero() || isSync(field.Type) {
				return v, false
			}
		default:
			element, ok := c.copy(v.Field(i), depth-1)
			if !ok {
				return v, false
			}
			copied.Field(i).Set(element)
		}
	}
	return copied, true
}

// isFixed says whether a value of the type is a copy of its own: it refers to nothing, or
// to nothing that ever changes.
func isFixed(t reflect.Type) bool {
	switch t.Kind() {
	case reflect.Bool, reflect.String, reflect.Float32, reflect.Float64, reflect.Complex64, reflect.Complex128,
		reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64,
		reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return true
	case reflect.Array:
		return isFixed(t.Elem())
	case reflect.Struct:
		switch {
		case slices.Contains(unchanging, t), t.PkgPath() == "github.com/shopspring/decimal" && t.Name() == "Decimal":
			return true
		case isSync(t):
			return false
		}
		for i := range t.NumField() {
			if !isFixed(t.Field(i).Type) {
				return false
			}
		}
		return true
	}
	return false
}

// textSize is the size of the strings in a value that is fixed.
func textSize(v reflect.Value) (size int) {
	switch v.Kind() {
	case reflect.String:
		return v.Len()
	case reflect.Array:
		for i := range v.Len() {
			size += textSize(v.Index(i))
		}
	case reflect.Struct:
		for i := range v.NumField() {
			size += textSize(v.Field(i))
		}
	}
	return size
}

// unchanging are types whose values refer to what never changes. (So is shopspring's
// Decimal, by its documentation.)
var unchanging = []reflect.Type{
	reflect.TypeFor[time.Time](), reflect.TypeFor[netip.Addr](), reflect.TypeFor[netip.AddrPort](), reflect.TypeFor[netip.Prefix](),
}

// isSync says whether a type is a lock or the like, of which there must be no copy.
func isSync(t reflect.Type) bool { return t.PkgPath() == "sync" || t.PkgPath() == "sync/atomic" }

// ownWriter says whether values of the type, which refer to something, may say themselves
// how they are written (driver.Valuer, json.Marshaler, the interfaces of pgx), in a way
// that is not known. Any method may be one for that.
func ownWriter(t reflect.Type) bool { return t.NumMethod() > 0 && !isKnown(t) }

// isKnown says whether a type's own way to write itself goes by its fields and elements
// alone. Those of applications may do anything.
func isKnown(t reflect.Type) bool {
	switch t.PkgPath() {
	case "database/sql", "encoding/json", "net", "github.com/lib/pq", "github.com/jackc/pgx/v5/pgtype":
		return true
	}
	return false
}
