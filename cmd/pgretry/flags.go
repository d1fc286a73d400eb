package main

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/pgretry/pgretry/internal/workload"
)

// The types below are flag values whose errors say what is allowed. The flag package puts the flag's
// name and the value before them.

// countValue is a whole number within bounds.
type countValue struct {
	value    *int
	min, max int
}

func (v countValue) String() string { return strconv.Itoa(*v.value) }
func (v countValue) Type() string   { return "number" }

func (v countValue) Set(s string) error {
	n, err := strconv.Atoi(s)
	if err != nil || n < v.min || n > v.max {
		return fmt.Errorf("want a whole number from %d to %d", v.min, v.max)
	}
	*v.value = n
	return nil
}

// durationValue is a duration within bounds, in whole milliseconds.
type durationValue struct {
	value    *time.Duration
	min, max time.Duration
}

func (v durationValue) String() string { return v.value.String() }
func (v durationValue) Type() string   { return "duration" }

func (v durationValue) Set(s string) error {
	d, err := time.ParseDuration(s)
	if err != nil || d < v.min || d > v.max || d%time.Millisecond != 0 {
		return fmt.Errorf("want a duration from %v to %v in whole milliseconds, such as 500ms or 3s", v.min, v.max)
	}
	*v.value = d
	return nil
}

// seedValue is any unsigned number of 64 bits.
type seedValue struct{ value *uint64 }

func (v seedValue) String() string { return strconv.FormatUint(*v.value, 10) }
func (v seedValue) Type() string   { return "number" }

func (v seedValue) Set(s string) error {
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		return errors.New("want a whole number from 0 to 18446744073709551615")
	}
	*v.value = n
	return nil
}

// workloadsValue collects names of workloads from commas and repetitions.
type workloadsValue struct{ names *[]string }

func (v workloadsValue) String() string { return strings.Join(*v.names, ",") }
func (v workloadsValue) Type() string   { return "names" }

func (v workloadsValue) Set(s string) error {
	names := strings.Split(s, ",")
	if slices.Contains(names, "") {
		return fmt.Errorf("want names separated by commas, from %s", strings.Join(workload.Names(), ", "))
	}
	if _, err := workload.Select(0, names); err != nil {
		return err
	}
	*v.names = append(*v.names, names...)
	return nil
}
