package pgretrytest

import (
	"fmt"
	"math/big"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"time"
	"unsafe"
)

// copied returns a copy of a value that shares nothing with it that can change, but for
// channels, functions, what isOpaque, and what references in fields that are not exported
// lead to.
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
	c.detach(made, false)
	return made
}

// detach replaces what an addressable value leads to by copies.
// In hidden ones, references stay what they are.
func (c copier) detach(v reflect.Value, hidden bool) {
	if v.Type() == reflect.TypeFor[time.Time]() { // its location never changes
		return
	}
	if isOpaque(v.Type()) || hidden && isReference(v.Kind()) {
		return
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
		c.detachElements(v, hidden)
	case reflect.Array:
		c.detachElements(v, hidden)
	case reflect.Struct:
		for i := range v.NumField() {
			c.detach(open(v.Field(i)), isHidden(v.Type().Field(i), hidden))
		}
	}
}

func (c copier) detachElements(v reflect.Value, hidden bool) {
	for i := range v.Len() {
		c.detach(v.Index(i), hidden)
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
		c.detach(made.Elem(), false)
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
	times  [2]time.Time
}

// mayVary is true of UUIDs, and of times if each is of its run's own.
func (d difference) mayVary(a, b span) bool {
	return d.varies && (d.times == [2]time.Time{} || a.holds(d.times[0]) && b.holds(d.times[1]))
}

// differences compares two values and says where they differ.
func differences(a, b any) []difference {
	if reflect.DeepEqual(a, b) {
		return nil
	}
	c := comparer{seen: make(map[[2]visited]bool)}
	c.compare("", reflect.ValueOf(a), reflect.ValueOf(b), false)
	slices.SortStableFunc(c.found, func(x, y difference) int { return strings.Compare(x.path, y.path) })
	return c.found
}

// comparer remembers which pointers and maps it has compared, so that cycles end.
type comparer struct {
	seen  map[[2]visited]bool
	found []difference
}

func (c *comparer) compare(path string, a, b reflect.Value, hidden bool) {
	if !a.IsValid() || !b.IsValid() || a.Type() != b.Type() {
		if a.IsValid() || b.IsValid() {
			c.found = append(c.found, difference{path: path, a: show(a), b: show(b)})
		}
		return
	}
	if isOpaque(a.Type()) || hidden && isReference(a.Kind()) && !isBigNumber(a.Type()) {
		return
	}
	if isLeaf(a) || !c.compareParts(path, a, b, hidden) {
		c.compareWhole(path, a, b)
	}
}

func (c *comparer) compareWhole(path string, a, b reflect.Value) {
	if sameLeaf(a, b) {
		return
	}
	d := difference{path: path, a: show(a), b: show(b), varies: isMoment(a) && isMoment(b)}
	if x, ok := a.Interface().(time.Time); ok {
		d.times = [2]time.Time{x, b.Interface().(time.Time)}
	}
	c.found = append(c.found, d)
}

// compareParts is false of values that have no parts to be compared one by one.
func (c *comparer) compareParts(path string, a, b reflect.Value, hidden bool) bool {
	switch a.Kind() {
	case reflect.Pointer, reflect.Interface:
		if a.IsNil() || b.IsNil() {
			return false
		}
		if a.Kind() == reflect.Interface || !c.again(a, b) {
			c.compare(path, a.Elem(), b.Elem(), hidden)
		}
	case reflect.Struct:
		a, b = addressable(a), addressable(b)
		for i := range a.NumField() {
			field := a.Type().Field(i)
			c.compare(path+"."+field.Name, open(a.Field(i)), open(b.Field(i)), isHidden(field, hidden))
		}
	case reflect.Slice, reflect.Array:
		if a.Len() != b.Len() || a.Kind() == reflect.Slice && a.IsNil() != b.IsNil() {
			return false
		}
		for i := range a.Len() {
			c.compare(fmt.Sprintf("%s[%d]", path, i), a.Index(i), b.Index(i), hidden)
		}
	case reflect.Map:
		if a.Len() != b.Len() || a.IsNil() != b.IsNil() {
			return false
		}
		if c.again(a, b) {
			return true
		}
		for _, k := range a.MapKeys() {
			c.compare(fmt.Sprintf("%s[%s]", path, show(k)), a.MapIndex(k), b.MapIndex(k), hidden)
		}
	default:
		return false
	}
	return true
}

// again says whether the two have been compared before.
func (c *comparer) again(a, b reflect.Value) bool {
	pair := [2]visited{{a.UnsafePointer(), a.Type()}, {b.UnsafePointer(), b.Type()}}
	known := c.seen[pair]
	c.seen[pair] = true
	return known
}

// addressable returns a copy of a value whose fields can be opened.
func addressable(v reflect.Value) reflect.Value {
	made := reflect.New(v.Type()).Elem()
	made.Set(v)
	return made
}

// isLeaf is true of what is compared as a whole though it has parts.
func isLeaf(v reflect.Value) bool {
	if v.Type() == reflect.TypeFor[time.Time]() || isUUIDArray(v.Type()) || isBigNumber(v.Type()) {
		return true
	}
	return v.Kind() == reflect.Slice && v.Type().Elem().Kind() == reflect.Uint8
}

func sameLeaf(a, b reflect.Value) bool {
	if x, ok := a.Interface().(time.Time); ok {
		y, _ := b.Interface().(time.Time)
		return x.Equal(y)
	}
	if a.Kind() == reflect.Func {
		return a.Pointer() == b.Pointer()
	}
	return reflect.DeepEqual(a.Interface(), b.Interface())
}

func isUUIDArray(typ reflect.Type) bool {
	return typ.Kind() == reflect.Array && typ.Len() == 16 && typ.Elem().Kind() == reflect.Uint8
}

var uuidText = regexp.MustCompile(`^\{?[0-9a-fA-F]{8}-?[0-9a-fA-F]{4}-?[0-9a-fA-F]{4}-?[0-9a-fA-F]{4}-?[0-9a-fA-F]{12}\}?$`)

// isMoment is true of times and of UUIDs, as text or an array: 16 bytes may be anything.
func isMoment(v reflect.Value) bool {
	switch {
	case v.Type() == reflect.TypeFor[time.Time](), isUUIDArray(v.Type()):
		return true
	case v.Kind() == reflect.String:
		return uuidText.MatchString(v.String())
	case v.Kind() == reflect.Slice && v.Type().Elem().Kind() == reflect.Uint8:
		return uuidText.Match(v.Bytes())
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
		case *big.Int, *big.Rat, *big.Float:
			text = fmt.Sprint(value)
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

// onlyVaries says whether all differences between two runs are of times and UUIDs of their own.
func onlyVaries(found []difference, first, second span) bool {
	return !slices.ContainsFunc(found, func(d difference) bool { return !d.mayVary(first, second) })
}
