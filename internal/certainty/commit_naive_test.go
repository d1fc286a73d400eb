package certainty

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/lib/pq"

	"github.com/pgretry/pgretry"
)

// naiveConnector resolves COMMITs as one does who knows pg_xact_status and has not
// thought of crashes, failovers and standbys: it asks for the id before COMMIT, and on
// a new connection for the id's status, with the old backend terminated.
type naiveConnector struct{ driver.Connector }

type naiveInner interface {
	driver.Conn
	driver.ConnBeginTx
	driver.ExecerContext
	driver.QueryerContext
	driver.SessionResetter
	driver.Validator
}

type naiveConn struct {
	naiveInner
	connector naiveConnector
}

type naiveTx struct {
	driver.Tx
	conn *naiveConn
}

func openNaive(dsn string, _ ...pgretry.Option) (*sql.DB, error) {
	connector, err := pq.NewConnector(dsn)
	if err != nil {
		return nil, err
	}
	return sql.OpenDB(naiveConnector{connector}), nil
}

func (c naiveConnector) Connect(ctx context.Context) (driver.Conn, error) {
	conn, err := c.Connector.Connect(ctx)
	if err != nil {
		return nil, err
	}
	return &naiveConn{conn.(naiveInner), c}, nil
}

func (c *naiveConn) BeginTx(ctx context.Context, options driver.TxOptions) (driver.Tx, error) {
	tx, err := c.naiveInner.BeginTx(ctx, options)
	if err != nil {
		return nil, err
	}
	return naiveTx{tx, c}, nil
}

// ask queries one row of texts, "" for NULL.
func (c *naiveConn) ask(query string, columns int) ([]string, error) {
	rows, err := c.QueryContext(context.Background(), query, nil)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	values, texts := make([]driver.Value, columns), make([]string, columns)
	if err := rows.Next(values); err != nil {
		return nil, err
	}
	for i, v := range values {
		switch v := v.(type) {
		case nil:
		case []byte:
			texts[i] = string(v)
		default:
			texts[i] = fmt.Sprint(v)
		}
	}
	return texts, nil
}

func (t naiveTx) Commit() error {
	known, err := t.conn.ask(`SELECT pg_backend_pid(), pg_current_xact_id_if_assigned()::text`, 2)
	if err != nil {
		return err
	}
	cause := t.Tx.Commit()
	if _, answered := errors.AsType[*pq.Error](cause); cause == nil || answered {
		return cause
	}
	for limit := time.Now().Add(20 * time.Second); time.Now().Before(limit); {
		status := t.conn.connector.status(known[0], known[1])
		switch status {
		case "committed":
			return nil
		case "aborted":
			return errors.New("rolled back")
		}
		if err := commitPause(context.Background(), 5*time.Millisecond); err != nil {
			return err
		}
	}
	return &pgretry.CommitUnknownError{Cause: cause}
}

func (c naiveConnector) status(pid, xid string) string {
	conn, err := c.Connect(context.Background())
	if err != nil {
		return "" // the server may be on its way back
	}
	defer func() { _ = conn.Close() }()
	answer, err := conn.(*naiveConn).ask(`SELECT pg_xact_status('`+xid+`')`, 1)
	if err != nil {
		return ""
	}
	if answer[0] == "in progress" {
		if _, err := conn.(*naiveConn).ask(`SELECT pg_terminate_backend(`+pid+`)`, 1); err != nil {
			return ""
		}
	}
	return answer[0]
}

// What a resolver that knows no history gets wrong has to happen, or the scenarios
// prove nothing.
func TestCommitsFindOutAResolverThatKnowsNoHistory(t *testing.T) {
	harmless := "a cut after the server got it"
	report := commits(t, CommitConfig{
		Trials: 100, Driver: "naive", Open: openNaive, Bare: true,
		Only: []string{
			harmless,
			"a backend killed with -9, others taking ids",
			"the server killed with -9, others taking ids",
			"a synchronous standby that is gone",
			"a failover to a synchronous standby",
			"a failover to an asynchronous standby",
		},
	})
	for _, s := range report.Results {
		if (s.Wrong == 0) != (s.Scenario == harmless) {
			t.Errorf("%s: %d wrong of %d: %v", s.Scenario, s.Wrong, s.Trials, s.violations)
		}
	}
}
