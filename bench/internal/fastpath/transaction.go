package fastpath

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/pgretry/pgretry/bench/internal/peer"
	"github.com/pgretry/pgretry/bench/internal/relay"
	"github.com/pgretry/pgretry/bench/internal/result"
	"github.com/pgretry/pgretry/bench/internal/target"
)

// Transport is a way to the server.
type Transport struct {
	// Name is "socket", "tcp" or "tcp+1ms".
	Name string
	// Delay is how much longer than TCP's each round trip takes.
	Delay time.Duration
}

// Transports are the ways that a throwaway server offers. Of one that somebody named, tcp stands for
// whatever its connection string says.
func Transports(server *target.Server) []Transport {
	transports := []Transport{{Name: "tcp"}}
	if !server.External() {
		transports = []Transport{{Name: "socket"}, {Name: "tcp"}}
	}
	if server.HasAddress() {
		transports = append(transports, Transport{Name: "tcp+1ms", Delay: time.Millisecond})
	}
	return transports
}

// dsn returns a connection string by that way, and what to close afterwards.
func (t Transport) dsn(schema *target.Schema) (dsn string, leave func() error, err error) {
	leave = func() error { return nil }
	switch {
	case t.Name == "socket":
		return schema.DSN(nil), leave, nil
	case t.Delay == 0:
		return schema.TCP(nil), leave, nil
	}
	address, ok := target.Address(schema.TCP(nil))
	if !ok {
		return "", nil, errors.New("the server's connection string has no address to put a relay before")
	}
	r, err := relay.Start(address, t.Delay)
	if err != nil {
		return "", nil, err
	}
	dsn, err = target.Via(schema.TCP(nil), r.Address())
	if err != nil {
		return "", nil, errors.Join(err, r.Close())
	}
	return dsn, r.Close, nil
}

// transfer is the transaction that is timed: a query for one row and two writes, all with
// parameters, on rows of the system's own.
func transfer(system int) func(context.Context, *sql.Tx) error {
	return func(ctx context.Context, tx *sql.Tx) error {
		var balance int64
		if err := tx.QueryRowContext(ctx, `SELECT balance FROM account WHERE id = $1`, system).Scan(&balance); err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, `UPDATE account SET balance = balance + $1 WHERE id = $2`, 1, system); err != nil {
			return err
		}
		_, err := tx.ExecContext(ctx, `INSERT INTO transfer (account) VALUES ($1)`, system)
		return err
	}
}

// MeasureTransaction times BEGIN, three parameterised statements and COMMIT.
func MeasureTransaction(ctx context.Context, server *target.Server, transport Transport, systems []peer.System, effort Effort) (seen result.Comparison, err error) {
	seen = result.Comparison{Name: transport.Name, Base: peer.LibPQ, Each: effort.Each}
	defer func() {
		if err != nil {
			err = fmt.Errorf("fast path over %s: %w", transport.Name, err)
		}
	}()
	schema, err := server.Schema(ctx)
	if err != nil {
		return seen, err
	}
	defer func() { err = errors.Join(err, schema.Drop()) }()
	var all databases
	defer func() { err = errors.Join(err, all.close()) }()
	check, err := all.open(peer.Named(peer.LibPQ)[0], schema.DSN(nil))
	if err != nil {
		return seen, err
	}
	if _, err := check.ExecContext(ctx, `
		CREATE TABLE account (id integer PRIMARY KEY, balance bigint NOT NULL);
		CREATE TABLE transfer (account integer NOT NULL);
		INSERT INTO account SELECT id, 0 FROM generate_series(1, 10000) AS id; ANALYZE account`); err != nil {
		return seen, fmt.Errorf("create tables: %w", err)
	}
	dsn, leave, err := transport.dsn(schema)
	if err != nil {
		return seen, err
	}
	defer func() { err = errors.Join(err, leave()) }()

	var jobs []job
	for i, system := range systems {
		db, err := all.open(system, dsn)
		if err != nil {
			return seen, err
		}
		work := peer.Work{Name: "transfer", Body: transfer(i + 1)}
		jobs = append(jobs, job{system.ID, func(ctx context.Context) error { return system.Transact(ctx, db.DB, work) }, db})
	}
	if seen.Timings, err = compare(ctx, jobs, effort); err != nil {
		return seen, err
	}
	done := int64((effort.Rounds + 1) * (effort.Each + effort.Warm))
	for i, system := range systems {
		var balance, transfers int64
		if err := check.QueryRowContext(ctx, `SELECT balance, (SELECT count(*) FROM transfer WHERE account = $1) FROM account WHERE id = $1`,
			i+1).Scan(&balance, &transfers); err != nil {
			return seen, fmt.Errorf("check the account: %w", err)
		}
		if balance != done || transfers != done {
			violate(&seen, system.ID, fmt.Sprintf("%d transactions were committed, the database holds %d updates and %d inserts", done, balance, transfers))
		}
	}
	return seen, nil
}

func violate(seen *result.Comparison, system, violation string) {
	if seen.Violations == nil {
		seen.Violations = map[string]string{}
	}
	seen.Violations[system] = violation
}

// MeasureRelay times one round trip over TCP, over a relay that does not delay and over the one that
// does.
func MeasureRelay(ctx context.Context, server *target.Server, delay time.Duration, effort Effort) (seen result.Comparison, err error) {
	seen = result.Comparison{Name: "one round trip", Base: "tcp", Each: effort.Each}
	defer func() {
		if err != nil {
			err = fmt.Errorf("relay: %w", err)
		}
	}()
	schema, err := server.Schema(ctx)
	if err != nil {
		return seen, err
	}
	defer func() { err = errors.Join(err, schema.Drop()) }()
	tcp := schema.TCP(nil)
	address, ok := target.Address(tcp)
	if !ok {
		return seen, errors.New("the server's connection string has no address")
	}
	ways := []struct {
		name  string
		delay time.Duration
	}{{"relay", 0}, {"relay, delayed", delay}}
	dsns := map[string]string{"tcp": tcp}
	names := []string{"tcp"}
	for _, way := range ways {
		r, failed := relay.Start(address, way.delay)
		if failed != nil {
			return seen, failed
		}
		defer func() { err = errors.Join(err, r.Close()) }()
		if dsns[way.name], err = target.Via(tcp, r.Address()); err != nil {
			return seen, err
		}
		names = append(names, way.name)
	}
	var all databases
	defer func() { err = errors.Join(err, all.close()) }()
	var jobs []job
	for _, name := range names {
		db, err := all.open(peer.Named(peer.LibPQ)[0], dsns[name])
		if err != nil {
			return seen, err
		}
		jobs = append(jobs, job{name, func(ctx context.Context) error {
			_, err := db.ExecContext(ctx, `SELECT 1`)
			return err
		}, nil})
	}
	seen.Timings, err = compare(ctx, jobs, effort)
	return seen, err
}
