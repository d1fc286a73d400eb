package pgretrytest

import (
	"context"
	"database/sql"
	"math/big"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"
)

type node struct {
	Name string
	Next *node
	list []int
	At   time.Time
	Any  any
}

// grown is a value of every shape, changed in place by change.
func grown() (value *node, change func()) {
	inner := &node{Name: "inner", list: []int{1, 2}}
	value = &node{Name: "outer", Next: inner, list: []int{3}, At: time.Unix(1, 0), Any: map[string][]string{"a": {"b"}}}
	inner.Next = value // a circle
	return value, func() {
		inner.Name = "changed"
		inner.list[0] = 9
		value.list[0] = 9
		value.Any.(map[string][]string)["a"][0] = "changed"
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
	if made.Next.Next != made {
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
	var none [2]time.Time
	for name, test := range map[string]struct {
		change func(*outer)
		want   []difference
	}{
		"none":     {func(*outer) {}, nil},
		"a number": {func(o *outer) { o.Map["a"].N = 3 }, []difference{{`.Map["a"].N`, "2", "3", false, none}}},
		"a time": {
			func(o *outer) { o.List[0].At = time.Unix(2, 0).UTC() },
			[]difference{{".List[0].At", time.Unix(1, 0).Format(time.RFC3339Nano), "1970-01-01T00:00:02Z", true, [2]time.Time{time.Unix(1, 0), time.Unix(2, 0).UTC()}}},
		},
		"the same time elsewhere": {func(o *outer) { o.List[0].At = o.List[0].At.In(time.FixedZone("", 3600)) }, nil},
		"a UUID": {
			func(o *outer) { o.List[0].ID = "00000000-0000-0000-0000-000000000001" },
			[]difference{{".List[0].ID", `"8f2b4c1e-0f0c-4b53-9a39-c64e51a5e1a1"`, `"00000000-0000-0000-0000-000000000001"`, true, none}},
		},
		"no UUID any more": {
			func(o *outer) { o.List[0].ID = "x" },
			[]difference{{".List[0].ID", `"8f2b4c1e-0f0c-4b53-9a39-c64e51a5e1a1"`, `"x"`, false, none}},
		},
		"a length": {
			func(o *outer) { o.List = o.List[:0] },
			[]difference{{".List", "[{ID:8f2b4c1e-0f0c-4b53-9a39-c64e51a5e1a1 At:" + time.Unix(1, 0).String() + " N:1}]", "[]", false, none}},
		},
		"another key": {
			func(o *outer) { o.Map = map[string]*inner{"b": nil} },
			[]difference{{`.Map["a"]`, "", "nothing", false, none}},
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

// What a type hides behind references is its own affair, but for the numbers of decimals.
func TestHiddenReferencesAreSharedAndNotCompared(t *testing.T) {
	type config struct{ db *sql.DB }
	type entity struct {
		config
		Type   reflect.Type
		Ctx    context.Context //nolint:containedctx // as gorm has it
		Lock   *sync.Mutex
		Do     func()
		hooks  map[string]func()
		amount *big.Int
		marks  []int
	}
	do := func() {}
	fresh := func() *entity {
		return &entity{
			config: config{new(sql.DB)}, Type: reflect.TypeFor[int](), Ctx: context.WithoutCancel(t.Context()), Lock: new(sync.Mutex), Do: do,
			hooks: map[string]func(){"": do}, amount: big.NewInt(5), marks: []int{1},
		}
	}
	a := fresh()
	made := copied(reflect.ValueOf(a)).Interface().(*entity)
	if made.db != a.db || made.Type != a.Type || made.Ctx != a.Ctx || made.Lock != a.Lock || made.amount != a.amount {
		t.Errorf("the copy is %+v, of %+v", made, a)
	}
	b := fresh()
	a.Lock.Lock()
	if found := differences(a, b); len(found) > 0 {
		t.Errorf("they differ at %+v", found)
	}
	b.amount.SetInt64(6)
	b.marks[0] = 2
	if found := differences(a, b); len(found) != 2 || found[0].path != ".amount" || found[0].b != "6" || found[1].path != ".marks[0]" {
		t.Errorf("they differ at %+v", found)
	}
}

func TestTimesOfARunLieInIt(t *testing.T) {
	run := span{time.Date(2024, 5, 6, 7, 8, 9, 0, time.UTC), time.Date(2024, 5, 6, 7, 8, 10, 0, time.UTC)}
	for text, want := range map[string]bool{
		"timestamptz 2024-05-06 07:08:09.123456+00": true, "timestamptz 2024-05-06 12:53:09.5+05:45": true,
		"timestamptz 2024-05-07 07:08:09.123456+00": false, "timestamptz infinity": false, "timestamptz 2024-05-06 07:08:12+00": false,
		"timestamp 2024-05-06 12:53:10": true, "timestamp 2024-05-06 12:58:10": false, "timestamp 2024-05-08 07:08:09": false,
		"date 2024-05-06": true, "date 2024-05-08": false,
		"timetz 09:08:09+02": true, "timetz 09:08:09+01": false, "time 23:53:09": true, "time 23:54:09": false,
		"NULL": false,
	} {
		typ, value, _ := strings.Cut(text, " ")
		if got := run.holdsText(typ, value); got != want {
			t.Errorf("%s: %t", text, got)
		}
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
