package pgretrytest

import (
	"fmt"
	"reflect"
	"strings"
)

// results are the variables that a closure fills.
type results struct {
	pointers []reflect.Value
	began    []reflect.Value
	varies   map[string]bool // the places where runs that nothing disturbed differ
}

func newResults(pointers []any) *results {
	r := &results{varies: make(map[string]bool)}
	for _, pointer := range pointers {
		v := reflect.ValueOf(pointer)
		r.pointers = append(r.pointers, v)
		r.began = append(r.began, copied(v.Elem()))
	}
	return r
}

// reset gives the variables the values that they had at first.
func (r *results) reset() {
	for i, pointer := range r.pointers {
		pointer.Elem().Set(copied(r.began[i]))
	}
}

// values returns copies of what is in the variables.
func (r *results) values() []any {
	list := make([]any, len(r.pointers))
	for i, pointer := range r.pointers {
		list[i] = copied(pointer.Elem()).Interface()
	}
	return list
}

// learn notes where times and UUIDs differ between two runs that nothing disturbed.
func (r *results) learn(first, second *record) (learned []string) {
	for i := range first.results {
		for _, d := range differences(first.results[i], second.results[i]) {
			if place := r.place(i) + d.path; d.mayVary(first.took, second.took) && !r.varies[place] {
				r.varies[place] = true
				learned = append(learned, place)
			}
		}
	}
	return learned
}

// compare says where two sets of results differ, in lines.
func (r *results) compare(undisturbed, got []any) string {
	var text strings.Builder
	for i := range undisturbed {
		for _, d := range differences(undisturbed[i], got[i]) {
			if place := r.place(i) + d.path; !d.varies || !r.varies[place] {
				fmt.Fprintf(&text, "%s is %s, undisturbed %s\n", place, d.b, d.a)
			}
		}
	}
	return text.String()
}

func (r *results) place(i int) string {
	return fmt.Sprintf("result %d (%s)", i+1, r.pointers[i].Type().Elem())
}
