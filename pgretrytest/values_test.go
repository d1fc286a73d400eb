package pgretrytest

import (
	"reflect"
	"testing"
	"time"
)

type node struct {
	Name string
	next *node
	list []int
	At   time.Time
	any  any
}

// grown is a value of every shape, changed in place by change.
func grown() (value *node, change func()) {
	inner := &node{Name: "inner", list: []int{1, 2}}
	value = &node{Name: "outer", next: inner, list: []int{3}, At: time.Unix(1, 0), any: map[string][]string{"a": {"b"}}}
	inner.next = value // a circle
	return value, func() {
		inner.Name = "changed"
		inner.list[0] = 9
		value.list[0] = 9
		value.any.(map[string][]string)["a"][0] = "changed"
	}
}

func TestCopySharesNothingThatChanges(t *testing.T) {
	value, change := grown()
	made := copied(reflect.ValueOf(value)).Interface().(*node)
	want, _ := grown()
	if !reflect.DeepEqual(made, want) {
		t.Errorf("the copy is %+v", made)
	}
	change()
	if !reflect.DeepEqual(made, want) {
		t.Errorf("the copy has changed to %+v", made)
	}
	if made.next.next != made {
		t.Error("the circle has become a line")
	}
}

func TestDifferencesNameTheirPlace(t *testing.T) {
	type inner struct {
		ID string
		At time.Time
		N  int
	}
	type outer struct {
		List []inner
		Map  map[string]*inner
	}
	fresh := func() outer {
		return outer{
			List: []inner{{ID: "8f2b4c1e-0f0c-4b53-9a39-c64e51a5e1a1", At: time.Unix(1, 0), N: 1}},
			Map:  map[string]*inner{"a": {N: 2}},
		}
	}
	for name, test := range map[string]struct {
		change func(*outer)
		want   []difference
	}{
		"none":     {func(*outer) {}, nil},
		"a number": {func(o *outer) { o.Map["a"].N = 3 }, []difference{{`.Map["a"].N`, "2", "3", false}}},
		"a time": {
			func(o *outer) { o.List[0].At = time.Unix(2, 0).UTC() },
			[]difference{{".List[0].At", time.Unix(1, 0).Format(time.RFC3339Nano), "1970-01-01T00:00:02Z", true}},
		},
		"the same time elsewhere": {func(o *outer) { o.List[0].At = o.List[0].At.In(time.FixedZone("", 3600)) }, nil},
		"a UUID": {
			func(o *outer) { o.List[0].ID = "00000000-0000-0000-0000-000000000001" },
			[]difference{{".List[0].ID", `"8f2b4c1e-0f0c-4b53-9a39-c64e51a5e1a1"`, `"00000000-0000-0000-0000-000000000001"`, true}},
		},
		"no UUID any more": {
			func(o *outer) { o.List[0].ID = "x" },
			[]difference{{".List[0].ID", `"8f2b4c1e-0f0c-4b53-9a39-c64e51a5e1a1"`, `"x"`, false}},
		},
		"a length": {
			func(o *outer) { o.List = o.List[:0] },
			[]difference{{".List", "[{ID:8f2b4c1e-0f0c-4b53-9a39-c64e51a5e1a1 At:" + time.Unix(1, 0).String() + " N:1}]", "[]", false}},
		},
		"another key": {
			func(o *outer) { o.Map = map[string]*inner{"b": nil} },
			[]difference{{`.Map["a"]`, "", "nothing", false}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			a, b := fresh(), fresh()
			test.change(&b)
			got := differences(a, b)
			for i := range got {
				if i < len(test.want) && test.want[i].a == "" {
					got[i].a = "" // an address
				}
			}
			if !reflect.DeepEqual(got, test.want) {
				t.Errorf("they differ at %+v, want %+v", got, test.want)
			}
		})
	}
}

func TestPointsAreSpreadFromTheFirstToTheLast(t *testing.T) {
	all := make([]*point, 10)
	for i := range all {
		all[i] = &point{call: i}
	}
	for most, want := range map[int][]int{1: {0}, 2: {0, 9}, 4: {0, 3, 6, 9}, 10: {0, 1, 2, 3, 4, 5, 6, 7, 8, 9}, 11: {0, 1, 2, 3, 4, 5, 6, 7, 8, 9}} {
		var got []int
		for _, p := range spread(all, most) {
			got = append(got, p.call)
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("of ten points %d are %v, want %v", most, got, want)
		}
	}
}
