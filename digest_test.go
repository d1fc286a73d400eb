package pgretry

import (
	"database/sql/driver"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/pgretry/pgretry/internal/drivertest"
)

type (
	text   string
	flag   bool
	amount float64
	count  int64
)

// digestOf returns the digest of a result with one row per argument.
func digestOf(t *testing.T, names []string, rows ...[]driver.Value) digest {
	t.Helper()
	var s shown
	s.columns(names, nil)
	for _, row := range rows {
		if !s.row(row) {
			t.Fatalf("%#v cannot be compared", row)
		}
	}
	return s.digest
}

func TestDifferentResultsHaveDifferentDigests(t *testing.T) {
	type result struct {
		name  string
		names []string
		rows  [][]driver.Value
	}
	a := []string{"a"}
	instant := time.Unix(1e9, 5)
	one := func(v driver.Value) [][]driver.Value { return [][]driver.Value{{v}} }
	results := []result{
		{"no columns", nil, nil},
		{"a column", a, nil},
		{"a column of another name", []string{"b"}, nil},
		{"two columns", []string{"a", "b"}, nil},
		{"two columns in other order", []string{"b", "a"}, nil},
		{"columns whose names have moved", []string{"ab", ""}, nil},
		{"columns whose names have moved back", []string{"", "ab"}, nil},
		{"two NULLs in a row", []string{"a", "b"}, [][]driver.Value{{nil, nil}}},
		{"two NULLs in two rows", a, [][]driver.Value{{nil}, {nil}}},
		{"ab, c", a, [][]driver.Value{{"ab"}, {"c"}}},
		{"a, bc", a, [][]driver.Value{{"a"}, {"bc"}}},
		{"abc and nothing", a, [][]driver.Value{{"abc"}, {""}}},
		{"bc, a", a, [][]driver.Value{{"bc"}, {"a"}}},
	}
	for _, v := range []driver.Value{
		nil, "", false, true, int64(0), int64(1), int64(-1), 0.0, math.Copysign(0, -1), 1.0, math.NaN(), math.Inf(1), math.Inf(-1),
		[]byte{},
		[]byte{0},
		"\x00", "0", []byte("0"), "NULL", "false", int32(0), int16(0), uint64(0), uint8(0), uint64(math.MaxUint64), float32(0), float32(1),
		int64(math.MinInt64), int64(math.MaxInt64), text(""), text("0"), flag(false), flag(true), amount(0), count(0), shade("0"), shade(nil),
		[]string{},
		[]string(nil),
		[]string{""},
		[]string{"", ""},
		[]string{"ab", "c"},
		[]string{"a", "bc"},
		[2]string{"a", "b"},
		[]text{"a", "b"},
		[][]byte{{1}, {}},
		[][]byte{{}, {1}},
		time.Time{},
		instant.UTC(), instant.Add(1).UTC(), instant.In(time.FixedZone("", 0)), instant.In(time.FixedZone("", 3600)),
		instant.In(time.FixedZone("CET", 3600)), instant.In(time.FixedZone("CET", 7200)), instant.In(time.FixedZone("UTC", 3600)),
	} {
		results = append(results, result{fmt.Sprintf("%T(%#v)", v, v), a, one(v)})
	}
	seen := map[digest]string{}
	for _, r := range results {
		d := digestOf(t, r.names, r.rows...)
		if other, ok := seen[d]; ok {
			t.Errorf("%s has the digest of %s", r.name, other)
		}
		seen[d] = r.name
		if digestOf(t, r.names, r.rows...) != d {
			t.Errorf("%s has not always the same digest", r.name)
		}
	}
}

func TestEqualValuesHaveEqualDigests(t *testing.T) {
	here := time.Date(2026, 1, 2, 3, 4, 5, 6, time.FixedZone("CET", 3600))
	again := time.Date(2026, 1, 2, 3, 4, 5, 6, time.FixedZone("CET", 3600))
	now := time.Now()
	for _, pair := range [][2]driver.Value{
		{math.NaN(), math.NaN()},
		{[]byte("abc"), append(make([]byte, 0, 100), "abc"...)},
		{strings.Repeat("a", 1000), string(make([]byte, 0)) + strings.Repeat("a", 1000)},
		{here, again},
		{now, now.Round(0)}, // without the monotonic clock
		{[]string{"a"}, append(make([]string, 0, 5), "a")},
	} {
		if a := []string{"a"}; digestOf(t, a, pair[:1]) != digestOf(t, a, pair[1:]) {
			t.Errorf("%#v has another digest than %#v", pair[0], pair[1])
		}
	}
}

func TestValuesThatCannotBeComparedAreNotGuessed(t *testing.T) {
	n := 7
	for _, v := range []driver.Value{&n, map[string]int{}, struct{ a int }{1}, []any{&n}, []*int{&n}, func() {}, complex(1, 1)} {
		var s shown
		if s.row([]driver.Value{v}) {
			t.Errorf("%T has a digest", v)
		}
	}
}

func TestErrorsAndCountsHaveDigests(t *testing.T) {
	violation := func(code, constraint string) *drivertest.Error {
		return &drivertest.Error{Code: code, ConstraintName: constraint, Message: "m"}
	}
	failed := func(err error) digest {
		var s shown
		s.failed(err)
		return s.digest
	}
	affected := func(result driver.Result) (d digest) {
		d.addResult(result)
		return d
	}
	seen := map[digest]bool{}
	for _, d := range []digest{
		0, failed(violation("23505", "k")), failed(violation("23505", "l")), failed(violation("23503", "k")), failed(violation("23505", "")),
		failed(errors.New("no")), affected(driver.RowsAffected(0)), affected(driver.RowsAffected(1)), affected(driver.ResultNoRows),
	} {
		if seen[d] {
			t.Errorf("two of them are alike: %d", d)
		}
		seen[d] = true
	}
	other := violation("23505", "k")
	other.Message, other.Detail, other.Line = "another", "Key (id)=(8) already exists.", 9
	if failed(violation("23505", "k")) != failed(other) {
		t.Error("the words of an error count")
	}
	var early, late shown
	late.columns([]string{"a"}, nil)
	early.failed(other)
	late.failed(other)
	if early.digest != late.digest {
		t.Error("it counts whether a statement without rows fails at once or when the first is asked for")
	}
}

// decoded is a result made of bytes, and its canonical form: what the application
// could tell it by.
func decoded(data []byte) (names []string, rows [][]driver.Value, canonical string) {
	next := func(n int) []byte {
		n = min(n, len(data))
		taken := data[:n]
		data = data[n:]
		return taken
	}
	number := func() uint64 {
		var b [8]byte
		copy(b[:], next(8))
		return binary.LittleEndian.Uint64(b[:])
	}
	length := func() int {
		b := next(1)
		if len(b) == 0 {
			return 0
		}
		return int(b[0] % 8)
	}
	var c strings.Builder
	columns := 1 + length()%3
	for range columns {
		name := string(next(length()))
		names = append(names, name)
		fmt.Fprintf(&c, "%q ", name)
	}
	zones := []*time.Location{
		time.UTC, time.FixedZone("CET", 3600), time.FixedZone("", 3600), time.FixedZone("CET", 7200), time.FixedZone("", 0),
	}
	for len(data) > 0 {
		row := make([]driver.Value, columns)
		for i := range row {
			var v driver.Value
			var kind byte
			if b := next(1); len(b) > 0 {
				kind = b[0] % 13
			}
			switch kind {
			case 0:
				v = nil
			case 1:
				v = int64(number())
			case 2:
				v = math.Float64frombits(number())
			case 3:
				v = length()%2 == 0
			case 4:
				v = string(next(length()))
			case 5:
				v = append([]byte{}, next(length())...)
			case 6:
				v = time.Unix(int64(number()>>24), int64(length())).In(zones[length()%len(zones)])
			case 7:
				v = text(next(length()))
			case 8:
				v = int32(number())
			case 9:
				v = []string{string(next(length())), string(next(length()))}
			case 10:
				v = number()
			case 11:
				v = flag(length()%2 == 0)
			case 12:
				v = math.Float32frombits(uint32(number()))
			}
			row[i] = v
			switch v := v.(type) {
			case float64:
				fmt.Fprintf(&c, "float64 %x ", math.Float64bits(v))
			case float32:
				fmt.Fprintf(&c, "float32 %x ", math.Float64bits(float64(v)))
			case time.Time:
				name, offset := v.Zone()
				fmt.Fprintf(&c, "time %d %d %q %d ", v.Unix(), v.Nanosecond(), name, offset)
			default:
				fmt.Fprintf(&c, "%T %q ", v, fmt.Sprintf("%#v", v))
			}
		}
		c.WriteByte('\n')
		rows = append(rows, row)
	}
	return names, rows, c.String()
}

// FuzzDigest makes two results of the input: their digests must be equal if and only
// if the results are.
func FuzzDigest(f *testing.F) {
	f.Fuzz(func(t *testing.T, a, b []byte) {
		names, rows, what := decoded(a)
		otherNames, otherRows, other := decoded(b)
		d, o := digestOf(t, names, rows...), digestOf(t, otherNames, otherRows...)
		if (d == o) != (what == other) {
			t.Errorf("the digests are %x and %x of\n%s\nand\n%s", d, o, what, other)
		}
	})
}

// A row of four columns, as lib/pq returns them.
func BenchmarkDigestRow(b *testing.B) {
	row := []driver.Value{int64(12345), "name 12345", []byte("1763.5714285714285714"), time.Now().UTC()}
	var s shown
	b.ReportAllocs()
	for b.Loop() {
		if !s.row(row) {
			b.Fatal("cannot be compared")
		}
	}
}

// What is made of few different characters must not be equal by accident: the steps of the
// digest have to keep types, lengths and values apart.
func TestValuesThatAreMuchAlikeHaveDifferentDigests(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	const letters = "0110\x00 `a"
	draw := func() (driver.Value, string) {
		b := make([]byte, random.IntN(36))
		for i := range b {
			b[i] = letters[random.IntN(len(letters))]
		}
		switch n := random.IntN(100); n % 5 {
		case 0:
			return b, fmt.Sprintf("bytes %q", b)
		case 1:
			return string(b), fmt.Sprintf("text %q", b)
		case 2:
			return int64(n), fmt.Sprint("number ", n)
		case 3:
			return nil, "NULL"
		}
		at := time.Unix(random.Int64N(20), random.Int64N(20)).UTC()
		return at, at.String()
	}
	for round := range 20 {
		var before shown
		before.row([]driver.Value{int64(round)})
		seen := make(map[digest]string)
		for range 20_000 {
			var values []driver.Value
			var what string
			for range 1 + random.IntN(2) {
				value, name := draw()
				values, what = append(values, value), what+", "+name
			}
			s := before
			s.row(values)
			if other, ok := seen[s.digest]; ok && other != what {
				t.Fatalf("%s and %s are equal", what, other)
			}
			seen[s.digest] = what
		}
	}
}
