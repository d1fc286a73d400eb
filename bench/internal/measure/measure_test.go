package measure_test

import (
	"math"
	"slices"
	"testing"

	"github.com/pgretry/pgretry/bench/internal/measure"
)

func TestASpreadIsMedianAndQuartiles(t *testing.T) {
	for _, test := range []struct {
		values []float64
		want   measure.Spread
		text   string
	}{
		{nil, measure.Spread{}, "–"},
		{[]float64{0.5}, measure.Spread{Median: 0.5, Low: 0.5, High: 0.5, N: 1}, "0.500"},
		{[]float64{3, 1}, measure.Spread{Median: 2, Low: 1.5, High: 2.5, N: 2}, "2.00 [1.50, 2.50]"},
		{[]float64{50, 10, 40, 20, 30}, measure.Spread{Median: 30, Low: 20, High: 40, N: 5}, "30.0 [20.0, 40.0]"},
		{[]float64{1, 1, 1, 1, 1000}, measure.Spread{Median: 1, Low: 1, High: 1, N: 5}, "1.00 [1.00, 1.00]"},
	} {
		given := slices.Clone(test.values)
		got := measure.Of(test.values)
		if got != test.want || got.String() != test.text {
			t.Errorf("%v: got %+v %q, want %+v %q", test.values, got, got, test.want, test.text)
		}
		if !slices.Equal(given, test.values) {
			t.Errorf("%v became %v", given, test.values)
		}
	}
}

func TestRatiosAreOfEqualRounds(t *testing.T) {
	for _, test := range []struct{ values, base, want []float64 }{
		{[]float64{1, 4}, []float64{2, 2}, []float64{0.5, 2}},
		{[]float64{1, 4, 9}, []float64{2}, []float64{0.5}},
		{[]float64{1, 4, math.NaN()}, []float64{0, 2, 1}, []float64{2}},
		{nil, []float64{1}, nil},
	} {
		if got := measure.Ratios(test.values, test.base); !slices.Equal(got, test.want) {
			t.Errorf("%v / %v: got %v, want %v", test.values, test.base, got, test.want)
		}
	}
}

func TestNumbersHaveThreeDigits(t *testing.T) {
	for value, want := range map[float64]string{
		0: "0", 0.00012: "1.2e-04", 0.0123: "0.012", 0.6521: "0.652", 1.234: "1.23", 12.34: "12.3", 123.4: "123", 53031: "53031",
	} {
		if got := measure.Short(value); got != want {
			t.Errorf("%v: got %s, want %s", value, got, want)
		}
	}
}
