// Package engines runs transactions that conflict on engines that cannot be started here:
// Citus, CockroachDB, YugabyteDB. A test for each is behind the build tag dsn and needs the
// address of a database for tests:
//
//	PGRETRY_COCKROACH_DSN=postgres://root@localhost:26257/defaultdb?sslmode=disable \
//		go test -tags dsn -run TestCockroachDB ./engines
//
// Without the tag PostgreSQL is given the same to do.
package engines
