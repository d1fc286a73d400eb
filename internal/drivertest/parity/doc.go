// Package parity is a conformance suite for drivers that wrap drivers: what an
// application sees through database/sql must be the same with and without the
// wrapper.
//
// A scenario uses a [database/sql.DB] and writes down everything it sees: values
// and their dynamic types, errors and all their fields, column types, the state of
// the pool. It runs once on the bare driver and once on the wrapped one, and the
// two transcripts must be equal. [Run] does so on a real server, [RunScripted] on
// the driver of package drivertest, over every set of optional interfaces, and
// there compares the calls that reach the inner driver too.
//
// A difference that is meant is listed as an [Exception] with its reason. An
// exception that no longer excuses anything fails the test, as does one without a
// reason.
package parity
