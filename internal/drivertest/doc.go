// Package drivertest is a scripted database driver for tests and benchmarks.
//
// A [Driver] answers every call of database/sql with a plain default, unless a
// rule says otherwise: an error, a panic, a wait, a result. Each optional
// interface of database/sql/driver can be switched on and off by itself
// ([Features]); one that is off is absent from the dynamic type, so that type
// assertions fail as they would on a driver that never had it. The driver keeps a
// log of the calls it received, notes violations of the driver contract, and
// counts what is still open:
//
//	d := drivertest.New()
//	d.Fail(drivertest.Exec, &drivertest.Error{Code: "40P01"}).Matching("UPDATE").At(2)
//	db := sql.OpenDB(d.Connector())
//
// It needs nothing but the standard library.
package drivertest

//go:generate go run gen/main.go -out variants.go
