package pgretrytest

import (
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"time"
	"unsafe"
)

// copied returns a copy of a value that shares nothing with it that can change, but for
// channels and functions.
func copied(v reflect.Value) reflect.Value {
	return copier{make(map[visited]reflect.Value)}.copy(v)
}

// copier remembers what pointers and maps lead to, so that cycles end.
type copier struct{ done map[visited]reflect.Value }

type visited struct {
	at  unsafe.Pointer
	typ reflect.Type
}

func (c copier) copy(v reflect.Value) reflect.Value {
	made := reflect.New(v.Type()).Elem()
	made.Set(v)
	c.detach(made)
	return made
}

// detach replaces what an addressable value leads to by copies.
func (c copier) detach(v reflect.Value) {
	if v.Type() == reflect.TypeFor[time.Time]() {
		return // its location never changes
	}
	switch v.Kind() {
	case reflect.Pointer, reflect.Map:
		c.detachReference(v)
	case reflect.Interface:
		if !v.IsNil() {
			v.Set(c.copy(v.Elem()))
		}
	case reflect.Slice:
		if v.IsNil() {
			return
		}
		list := reflect.MakeSlice(v.Type(), v.Len(), v.Len())
		reflect.Copy(list, v)
		v.Set(list)
		c.detachElements(v)
	case reflect.Array:
		c.detachElements(v)
	case reflect.Struct:
		for i := range v.NumField() {
			c.detach(open(v.Field(i)))
		}
	}
}

func (c copier) detachElements(v reflect.Value) {
	for i := range v.Len() {
		c.detach(v.Index(i))
	}
}

func (c copier) detachReference(v reflect.Value) {
	if v.IsNil() {
		return
	}
	key := visited{v.UnsafePointer(), v.Type()}
	if made, ok := c.done[key]; ok {
		v.Set(made)
		return
	}
	if v.Kind() == reflect.Pointer {
		made := reflect.New(v.Type().Elem())
		c.done[key] = made
		made.Elem().Set(v.Elem())
		v.Set(made)
		c.detach(made.Elem())
		return
	}
	made := reflect.MakeMapWithSize(v.Type(), v.Len())
	c.done[key] = made
	for _, k := range v.MapKeys() {
		made.SetMapIndex(k, c.copy(v.MapIndex(k)))
	}
	v.Set(made)
}

// open returns a field of an addressable struct as if it were exported.
func open(field reflect.Value) reflect.Value {
	return reflect.NewAt(field.Type(), unsafe.Pointer(field.UnsafeAddr())).Elem() //nolint:gosec // of its own type
}

// difference is a place at which two values differ.
type difference struct {
	path   string // from the value, as Go has it, pointers left out
	a, b   string // what is there, in words
	varies bool   // both are times or UUIDs, which may differ each time they are made
}

// maxDepth bounds how deep values are compared, should they lead to themselves.
const maxDepth = 100

// differences compares two values and says where they differ.
func differences(a, b any) []difference {
	if reflect.DeepEqual(a, b) {
		return nil
	}
	var found []difference
	compareValues("", reflect.ValueOf(a), reflect.ValueOf(b), 0, &found)
	slices.SortStableFunc(found, func(x, y difference) int { return strings.Compare(x.path, y.path) })
	return found
}

func compareValues(path string, a, b reflect.Value, depth int, found *[]difference) {
	if !a.IsValid() || !b.IsValid() || a.Type() != b.Type() {
		if a.IsValid() || b.IsValid() {
			*found = append(*found, difference{path: path, a: show(a), b: show(b)})
		}
		return
	}
	if depth > maxDepth || !a.CanInterface() || !b.CanInterface() || isLeaf(a) {
		if !sameLeaf(a, b) {
			*found = append(*found, difference{path, show(a), show(b), isMoment(a) && isMoment(b)})
		}
		return
	}
	switch a.Kind() {
	case reflect.Pointer, reflect.Interface:
		if a.IsNil() || b.IsNil() {
			break
		}
		compareValues(path, a.Elem(), b.Elem(), depth+1, found)
		return
	case reflect.Struct:
		for i := range a.NumField() {
			compareValues(path+"."+a.Type().Field(i).Name, a.Field(i), b.Field(i), depth+1, found)
		}
		return
	case reflect.Slice, reflect.Array:
		if a.Len() != b.Len() || a.Kind() == reflect.Slice && a.IsNil() != b.IsNil() {
			break
		}
		for i := range a.Len() {
			compareValues(fmt.Sprintf("%s[%d]", path, i), a.Index(i), b.Index(i), depth+1, found)
		}
		return
	case reflect.Map:
		if a.Len() != b.Len() || a.IsNil() != b.IsNil() {
			break
		}
		for _, k := range a.MapKeys() {
			compareValues(fmt.Sprintf("%s[%s]", path, show(k)), a.MapIndex(k), b.MapIndex(k), depth+1, found)
		}
		return
	}
	if !sameLeaf(a, b) {
		*found = append(*found, difference{path: path, a: show(a), b: show(b)})
	}
}

// isLeaf is true of what is compared as a whole though it has parts.
func isLeaf(v reflect.Value) bool {
	switch {
	case v.Type() == reflect.TypeFor[time.Time](), isUUIDArray(v.Type()), v.Kind() == reflect.String:
		return true
	case v.Kind() == reflect.Struct: // parts that only DeepEqual can see
		for i := range v.NumField() {
			if !v.Type().Field(i).IsExported() {
				return true
			}
		}
	}
	return v.Kind() == reflect.Slice && v.Type().Elem().Kind() == reflect.Uint8
}

func sameLeaf(a, b reflect.Value) bool {
	if a.CanInterface() && b.CanInterface() {
		if x, ok := a.Interface().(time.Time); ok {
			y, _ := b.Interface().(time.Time)
			return x.Equal(y)
		}
		return reflect.DeepEqual(a.Interface(), b.Interface())
	}
	return show(a) == show(b)
}

func isUUIDArray(typ reflect.Type) bool {
	return typ.Kind() == reflect.Array && typ.Len() == 16 && typ.Elem().Kind() == reflect.Uint8
}

var uuidText = regexp.MustCompile(`^\{?[0-9a-fA-F]{8}-?[0-9a-fA-F]{4}-?[0-9a-fA-F]{4}-?[0-9a-fA-F]{4}-?[0-9a-fA-F]{12}\}?$`)

// isMoment is true of times and of UUIDs, as text, bytes or an array.
func isMoment(v reflect.Value) bool {
	switch {
	case v.Type() == reflect.TypeFor[time.Time](), isUUIDArray(v.Type()):
		return true
	case v.Kind() == reflect.String:
		return uuidText.MatchString(v.String())
	case v.Kind() == reflect.Slice && v.Type().Elem().Kind() == reflect.Uint8:
		return v.Len() == 16 || uuidText.Match(v.Bytes())
	}
	return false
}

// longestShown is how many bytes of a value are shown.
const longestShown = 200

func show(v reflect.Value) string {
	if !v.IsValid() {
		return "nothing"
	}
	text := fmt.Sprintf("%+v", v)
	if v.CanInterface() {
		switch value := v.Interface().(type) {
		case time.Time:
			text = value.Format(time.RFC3339Nano)
		case []byte:
			text = fmt.Sprintf("%q", value)
		default:
			if v.Kind() == reflect.String {
				text = fmt.Sprintf("%q", v.String())
			}
		}
	}
	if len(text) > longestShown {
		text = strings.ToValidUTF8(text[:longestShown], "") + "…"
	}
	return text
}

// onlyVaries says whether all differences are of times and UUIDs.
func onlyVaries(found []difference) bool {
	return !slices.ContainsFunc(found, func(d difference) bool { return !d.varies })
}
