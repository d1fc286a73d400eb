// Package measure holds the little statistics that the benchmarks need. Everything is a median with
// quartiles: on a machine that does other things as well, means and extremes tell of those.
package measure

import (
	"fmt"
	"math"
	"slices"
)

// Spread is what several measurements of one thing have in common. The zero value is none.
type Spread struct {
	// Median is the middle of the measurements; Low and High are the first and the third quartile.
	Median, Low, High float64
	// N is how many measurements there were.
	N int
}

// Of returns the spread of the values, which may be in any order and are left alone.
func Of(values []float64) Spread {
	sorted := slices.Sorted(slices.Values(values))
	return Spread{
		Median: Quantile(sorted, 0.5), Low: Quantile(sorted, 0.25), High: Quantile(sorted, 0.75),
		N: len(sorted),
	}
}

// Quantile returns the value below which the share q of sorted lies, interpolated between the two
// nearest. q is from 0 to 1. It is 0 for no values.
func Quantile(sorted []float64, q float64) float64 {
	if len(sorted) == 0 {
		return 0
	}
	rank := q * float64(len(sorted)-1)
	below := int(math.Floor(rank))
	if below >= len(sorted)-1 {
		return sorted[len(sorted)-1]
	}
	share := rank - float64(below)
	return sorted[below]*(1-share) + sorted[below+1]*share
}

// Median returns the median of values.
func Median(values []float64) float64 { return Of(values).Median }

// Ratios returns values[i] / base[i] for every round i that both have and in which neither is
// missing, which is what NaN and a base of 0 mean.
func Ratios(values, base []float64) []float64 {
	var ratios []float64
	for i := range min(len(values), len(base)) {
		ratio := values[i] / base[i]
		if !math.IsNaN(ratio) && !math.IsInf(ratio, 0) {
			ratios = append(ratios, ratio)
		}
	}
	return ratios
}

// String returns the median and, of more than one measurement, the quartiles: "0.65 [0.63, 0.68]".
func (s Spread) String() string {
	switch s.N {
	case 0:
		return "–"
	case 1:
		return Short(s.Median)
	}
	return fmt.Sprintf("%s [%s, %s]", Short(s.Median), Short(s.Low), Short(s.High))
}

// Short returns a number with about three significant digits, and none after the point that mean
// nothing: "0.652", "12.3", "5303".
func Short(value float64) string {
	switch size := math.Abs(value); {
	case size == 0:
		return "0"
	case size < 0.001:
		return fmt.Sprintf("%.1e", value)
	case size < 1:
		return fmt.Sprintf("%.3f", value)
	case size < 10:
		return fmt.Sprintf("%.2f", value)
	case size < 100:
		return fmt.Sprintf("%.1f", value)
	}
	return fmt.Sprintf("%.0f", value)
}
