package pgretry

import (
	"context"
	"database/sql"
	"fmt"
	"net/url"
	"testing"

	"github.com/pgretry/pgretry/internal/pgserver"
)

// The primary dies in the middle of a transaction, and the standby takes over: the
// transaction goes on there, and so does a closure.
func TestATransactionSurvivesAFailover(t *testing.T) {
	for _, way := range []string{"replay", "closure"} {
		t.Run(way, func(t *testing.T) {
			t.Setenv(pgserver.EnvDSN, "") // somebody else's server is not to be killed
			primary, err := pgserver.Start(t.Context(), pgserver.WithSettings(map[string]string{"synchronous_commit": "on"}))
			if err != nil {
				t.Fatal(err)
			}
			stopped(t, primary)
			standby, err := primary.NewStandby(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			stopped(t, standby)
			db, err := tested.open(eitherOf(t, primary, standby))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := db.Close(); err != nil {
					t.Error(err)
				}
			})
			// The standby has it before the primary dies.
			if _, err := db.Exec(`ALTER SYSTEM SET synchronous_standby_names = 'standby'`); err != nil {
				t.Fatal(err)
			}
			if _, err := db.Exec(`SELECT pg_reload_conf()`); err != nil {
				t.Fatal(err)
			}
			for yes := false; !yes; {
				if err := db.QueryRow(`SELECT current_setting('synchronous_standby_names') = 'standby'`).Scan(&yes); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := db.Exec(`CREATE TABLE account (id int PRIMARY KEY, balance int); INSERT INTO account VALUES (1, 100), (2, 100)`); err != nil {
				t.Fatal(err)
			}
			failed := false
			body := func(ctx context.Context, tx *sql.Tx) error {
				if _, err := tx.ExecContext(ctx, `UPDATE account SET balance = balance - $1 WHERE id = 1`, 10); err != nil {
					return err
				}
				if !failed {
					failed = true
					if err := primary.Kill(); err != nil {
						return err
					}
					if err := standby.Promote(t.Context()); err != nil {
						return err
					}
				}
				_, err := tx.ExecContext(ctx, `UPDATE account SET balance = balance + $1 WHERE id = 2`, 10)
				return err
			}
			if way == "closure" {
				err = RunInTx(t.Context(), db, nil, body)
			} else {
				err = inTx(t.Context(), db, body)
			}
			var balances string
			if scanErr := db.QueryRow(`SELECT string_agg(balance::text, ' ' ORDER BY id) FROM account`).Scan(&balances); err != nil || scanErr != nil || balances != "90 110" {
				t.Errorf("the transaction gives %v, the balances are %s, %v", err, balances, scanErr)
			}
		})
	}
}

func stopped(t *testing.T, server *pgserver.Server) {
	t.Cleanup(func() {
		if err := server.Stop(); err != nil {
			t.Error(err)
		}
	})
}

// eitherOf returns a DSN that leads to whichever of the servers takes writes.
func eitherOf(t *testing.T, servers ...*pgserver.Server) string {
	t.Helper()
	var hosts, ports, user string
	for i, server := range servers {
		address, err := url.Parse(server.DSN())
		if err != nil {
			t.Fatal(err)
		}
		if i > 0 {
			hosts, ports = hosts+",", ports+","
		}
		hosts, ports, user = hosts+address.Hostname(), ports+address.Port(), address.User.Username()
	}
	return fmt.Sprintf("host=%s port=%s user=%s dbname=postgres sslmode=disable target_session_attrs=read-write", hosts, ports, user)
}
