package pgretry

import (
	"database/sql/driver"
	"math/big"
	"net/netip"
	"reflect"
	"time"
	"unsafe"
)

// argumentDepth bounds how far an argument refers to others, and so those that refer to
// themselves.
const argumentDepth = 64

// valueSize is the size of what a value points to.
func valueSize(value driver.Value) int {
	switch value := value.(type) {
	case nil, bool, int64, float64:
		return 0
	case string:
		return len(value)
	case []byte:
		return len(value)
	case time.Time:
		return int(unsafe.Sizeof(value))
	}
	v := reflect.ValueOf(value)
	return int(v.Type().Size()) + referredSize(v, argumentDepth)
}

// referredSize is the size of what a value refers to.
func referredSize(v reflect.Value, depth int) (size int) {
	if depth == 0 {
		return 0
	}
	switch v.Kind() {
	case reflect.String:
		return v.Len()
	case reflect.Pointer, reflect.Interface:
		if !v.IsNil() {
			size = int(v.Elem().Type().Size()) + referredSize(v.Elem(), depth-1)
		}
	case reflect.Slice, reflect.Array:
		if v.Kind() == reflect.Slice {
			size = v.Len() * int(v.Type().Elem().Size())
		}
		if hasText := v.Type().Elem().Kind() == reflect.String; hasText || refers(v.Type().Elem()) {
			for i := range v.Len() {
				size += referredSize(v.Index(i), depth-1)
			}
		}
	case reflect.Map:
		for i := v.MapRange(); i.Next(); {
			size += int(i.Key().Type().Size()) + referredSize(i.Key(), depth-1)
			size += int(i.Value().Type().Size()) + referredSize(i.Value(), depth-1)
		}
	case reflect.Struct:
		for i := range v.NumField() {
			size += referredSize(v.Field(i), depth-1)
		}
	}
	return size
}

// copyValue makes a value independent of the caller's memory. It is false if the
// value's type does not allow that.
func (j *journal) copyValue(value *driver.Value) bool {
	switch v := (*value).(type) {
	case nil, bool, int64, float64, string, time.Time:
		return true
	case []byte:
		if len(v) == 0 {
			return true // nil stays nil, and there is nothing to change in the other
		}
		first := len(j.arena)
		j.arena = append(j.arena, v...)
		*value = j.arena[first:len(j.arena):len(j.arena)]
		return true
	}
	copied, ok := copyOther(reflect.ValueOf(*value), argumentDepth)
	if ok {
		*value = copied.Interface()
	}
	return ok
}

// copyOther copies values that some drivers take as they are, pgx for one: named types,
// other numbers, and slices, maps, pointers and structures of all these.
func copyOther(v reflect.Value, depth int) (_ reflect.Value, ok bool) {
	if depth == 0 {
		return v, false
	}
	if !refers(v.Type()) {
		return v, true
	}
	copied := reflect.New(v.Type()).Elem()
	switch v.Kind() {
	case reflect.Pointer, reflect.Interface:
		if v.IsNil() {
			return v, true
		}
		c, ok := copyOther(v.Elem(), depth-1)
		if !ok {
			return v, false
		}
		if v.Kind() == reflect.Pointer {
			copied.Set(reflect.New(v.Type().Elem()))
			copied.Elem().Set(c)
		} else {
			copied.Set(c)
		}
	case reflect.Slice:
		if v.IsNil() {
			return v, true
		}
		copied.Set(reflect.MakeSlice(v.Type(), v.Len(), v.Len()))
		if !refers(v.Type().Elem()) {
			reflect.Copy(copied, v)
			return copied, true
		}
		return copied, copyElements(copied, v, depth)
	case reflect.Array:
		return copied, copyElements(copied, v, depth)
	case reflect.Map:
		if v.IsNil() {
			return v, true
		}
		copied.Set(reflect.MakeMapWithSize(v.Type(), v.Len()))
		for i := v.MapRange(); i.Next(); {
			if refers(i.Key().Type()) {
				return v, false
			}
			c, ok := copyOther(i.Value(), depth-1)
			if !ok {
				return v, false
			}
			copied.SetMapIndex(i.Key(), c)
		}
	case reflect.Struct:
		copied.Set(v)
		for i := range v.NumField() {
			if !copyField(copied, i, depth-1) {
				return v, false
			}
		}
	default: // functions, channels
		return v, v.IsZero()
	}
	return copied, true
}

func copyElements(copied, v reflect.Value, depth int) bool {
	for i := range v.Len() {
		c, ok := copyOther(v.Index(i), depth-1)
		if !ok {
			return false
		}
		copied.Index(i).Set(c)
	}
	return true
}

// copyField makes a field of a structure, which is a copy already, refer to nothing of
// the caller's. A type may compare the pointers that it hides, so a field that is not
// exported may be no more than a slice of numbers or a big number (the one of
// shopspring's Decimal).
func copyField(of reflect.Value, i, depth int) bool {
	field := of.Field(i)
	if !refers(field.Type()) {
		return true
	}
	if !of.Type().Field(i).IsExported() {
		plain := field.Kind() == reflect.Slice && !refers(field.Type().Elem())
		if field.Type() != reflect.TypeFor[*big.Int]() && !plain && !field.IsZero() {
			return false
		}
		field = reflect.NewAt(field.Type(), unsafe.Pointer(field.UnsafeAddr())).Elem() // as if it were
	}
	c, ok := copyOther(field, depth)
	if ok {
		field.Set(c)
	}
	return ok
}

// refers says whether values of the type may share memory that can change.
func refers(t reflect.Type) bool {
	switch t.Kind() {
	case reflect.Bool, reflect.String, reflect.Float32, reflect.Float64, reflect.Complex64, reflect.Complex128,
		reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64,
		reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return false
	case reflect.Array:
		return refers(t.Elem())
	case reflect.Struct:
		switch t {
		case reflect.TypeFor[time.Time](), reflect.TypeFor[netip.Addr](), reflect.TypeFor[netip.AddrPort](), reflect.TypeFor[netip.Prefix]():
			return false // what they refer to never changes
		}
		for i := range t.NumField() {
			if refers(t.Field(i).Type) {
				return true
			}
		}
		return false
	}
	return true
}
