package compat

import (
	"context"
	"database/sql"
	"encoding/binary"
	"errors"
	"strings"
	"testing"

	"github.com/pgretry/pgretry"
	"github.com/pgretry/pgretry/internal/faultproxy"
)

func isCommit(m faultproxy.Message) bool { return strings.EqualFold(m.SQL(), "commit") }

// isCommitted matches the server's answer to COMMIT.
func isCommitted(m faultproxy.Message) bool {
	return m.Direction == faultproxy.ToClient && m.Type == 'C' && strings.HasPrefix(string(m.Body), "COMMIT")
}

// asksToCancel matches a request to cancel what another connection is doing.
func asksToCancel(m faultproxy.Message) bool {
	return m.Type == 0 && len(m.Body) >= 4 && binary.BigEndian.Uint32(m.Body) == 80877102
}

// markAndCommit is a transaction that writes one mark.
func markAndCommit(ctx context.Context, db *sql.DB, id int) error {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	if _, err := tx.ExecContext(ctx, `INSERT INTO mark VALUES ($1)`, id); err != nil {
		return err
	}
	return tx.Commit()
}

func TestTheFateOfACommitWithoutAnAnswerIsFound(t *testing.T) {
	everywhere(t, func(t *testing.T, l *line, open inside) {
		db := open(t, l.dsn, pgretry.WithCommitOutcome(pgretry.CommitResolve))
		id := 0
		for what, matches := range map[string]func(faultproxy.Message) bool{"COMMIT": isCommit, "its answer": isCommitted} {
			for _, blow := range append(blows, faultproxy.Action{Kind: faultproxy.Cut, Bytes: 3}) {
				id++
				if err := db.Ping(); err != nil {
					t.Fatal(err)
				}
				before := statsOf(t, db).ResolvedCommits
				struck := l.strike(blow, matches)
				if err := markAndCommit(t.Context(), db, id); err != nil || !struck() {
					t.Errorf("%s, %+v: the transaction gives %v", what, blow, err)
				}
				l.proxy.Release()
				if there := l.count(t, id); there != 1 {
					t.Errorf("%s, %+v: the mark is there %d times", what, blow, there)
				}
				fate := "committed"
				if what == "COMMIT" && !blow.After {
					fate = "aborted"
				}
				// What has come with the answer, or was not needed any more, leaves nothing to find out.
				after := statsOf(t, db).ResolvedCommits
				if resolved := after[fate] - before[fate]; resolved != 1 && (what == "COMMIT" || !blow.After) {
					t.Errorf("%s, %+v: %d were resolved as %s: %v", what, blow, resolved, fate, after)
				}
			}
		}
		if unknown := statsOf(t, db).UnknownCommits; unknown != 0 {
			t.Errorf("%d remain unknown", unknown)
		}
	})
}

// A deferred trigger keeps COMMIT busy when the connection breaks: it is waited for, not
// ended.
func TestACommitThatIsBusyIsWaitedFor(t *testing.T) {
	everywhere(t, func(t *testing.T, l *line, open inside) {
		execAll(t, l.plain,
			`CREATE FUNCTION wait_for_lock() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_advisory_xact_lock(hashtext(current_schema())); RETURN NULL; END $$`,
			`CREATE CONSTRAINT TRIGGER late AFTER INSERT ON mark DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION wait_for_lock()`)
		holder, err := l.plain.BeginTx(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer holder.Rollback()
		if _, err := holder.Exec(`SELECT pg_advisory_xact_lock(hashtext(current_schema()))`); err != nil {
			t.Fatal(err)
		}
		db := open(t, l.dsn, pgretry.WithCommitOutcome(pgretry.CommitResolve))
		asked := make(chan struct{}, 1)
		done := make(chan error, 1)
		go func() { done <- markAndCommit(t.Context(), db, 1) }()
		l.eventually(t, `SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND objid = hashtext(current_schema())::bit(32)::int8::oid)`)
		l.proxy.SetRule(func(m faultproxy.Message) faultproxy.Action {
			if asksToCancel(m) {
				return faultproxy.Action{Kind: faultproxy.Cut} // pgx does so of its own accord
			}
			if strings.HasPrefix(m.SQL(), "SELECT pg_catalog.txid_status") {
				select {
				case asked <- struct{}{}:
				default:
				}
			}
			return faultproxy.Action{}
		})
		if l.proxy.CutAll(false) == 0 {
			t.Error("nothing was cut")
		}
		<-asked
		if err := holder.Rollback(); err != nil {
			t.Fatal(err)
		}
		if err := <-done; err != nil || l.count(t, 1) != 1 {
			t.Errorf("COMMIT gives %v, and the mark is there %d times", err, l.count(t, 1))
		}
		if resolved := statsOf(t, db).ResolvedCommits; resolved["committed"] != 1 {
			t.Errorf("resolved are %v", resolved)
		}
	})
}

func TestAFateThatWasNotAskedForIsUnknown(t *testing.T) {
	everywhere(t, func(t *testing.T, l *line, open inside) {
		db := open(t, l.dsn, pgretry.WithCommitOutcome(pgretry.CommitReport))
		for id, blow := range blows {
			if err := db.Ping(); err != nil {
				t.Fatal(err)
			}
			struck := l.strike(blow, isCommit)
			err := markAndCommit(t.Context(), db, id)
			var unknown *pgretry.CommitUnknownError
			if !struck() || !errors.As(err, &unknown) {
				t.Errorf("%+v: the transaction gives %v", blow, err)
			}
			l.proxy.Release()
			if there := l.count(t, id); there > 1 {
				t.Errorf("%+v: the mark is there %d times", blow, there)
			}
		}
	})
}

// With pgx alone, one in twenty of the COMMITs that end in context.Canceled has taken
// effect.
func TestWhatIsSaidOfACancelledCommitIsTrue(t *testing.T) {
	for name, trials := range map[string]int{"pgx": 300, "pgxpool": 90, "lib/pq with otelsql": 90} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newLine(t)
			db := insides[name](t, l.dsn, pgretry.WithCommitOutcome(pgretry.CommitResolve))
			said := map[string]int{}
			claims := make([]string, trials)
			for id := range trials {
				ctx, cancel := context.WithCancel(t.Context())
				// In turn when COMMIT comes by, when its answer does, and on its own.
				l.proxy.SetRule(func(m faultproxy.Message) faultproxy.Action {
					if id%3 == 0 && isCommit(m) || id%3 == 1 && isCommitted(m) {
						cancel()
					}
					return faultproxy.Action{}
				})
				claims[id] = func() string {
					defer cancel()
					tx, err := db.BeginTx(ctx, nil)
					if err != nil {
						return "not committed"
					}
					defer tx.Rollback()
					if _, err := tx.Exec(`INSERT INTO mark VALUES ($1)`, id); err != nil {
						t.Fatal(err)
					}
					if id%3 == 2 {
						go cancel()
					}
					err = tx.Commit()
					var unknown *pgretry.CommitUnknownError
					switch {
					case err == nil:
						return "committed"
					case errors.As(err, &unknown):
						return "unknown"
					}
					return "not committed"
				}()
				said[claims[id]]++
			}
			l.proxy.SetRule(nil)
			resolved := statsOf(t, db).ResolvedCommits
			if err := db.Close(); err != nil {
				t.Error(err)
			}
			// Whatever was still under way at the server has come to its end.
			l.proxy.CutAll(false)
			l.eventually(t, `SELECT NOT EXISTS (SELECT FROM pg_locks WHERE relation = 'mark'::regclass AND pid <> pg_backend_pid())`)
			for id, claim := range claims {
				there := l.count(t, id)
				if claim == "committed" && there != 1 || claim == "not committed" && there != 0 || there > 1 {
					t.Errorf("trial %d was said to be %s, and is there %d times", id, claim, there)
				}
			}
			t.Logf("said: %v, resolved: %v", said, resolved)
			if said["unknown"] != 0 || said["committed"] == 0 || name == "pgx" && resolved["committed"] == 0 {
				t.Errorf("said: %v, resolved: %v", said, resolved)
			}
		})
	}
}

// With a pool of pgx's, what asks for the fate must not wait for the connection whose
// fate it is.
func TestAFullPoolDoesNotKeepTheFateFromBeingFound(t *testing.T) {
	l := newLine(t)
	db := insidePoolOf(1)(t, l.dsn, pgretry.WithCommitOutcome(pgretry.CommitResolve))
	for id, blow := range blows {
		struck := l.strike(blow, isCommit)
		if err := markAndCommit(t.Context(), db, id); err != nil || !struck() {
			t.Errorf("%+v: the transaction gives %v", blow, err)
		}
		l.proxy.Release()
		if there := l.count(t, id); there != 1 {
			t.Errorf("%+v: the mark is there %d times", blow, there)
		}
	}
}
