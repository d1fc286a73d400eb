package ent_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"

	entsql "entgo.io/ent/dialect/sql"
	"github.com/lib/pq"

	"github.com/pgretry/pgretry"
	"github.com/pgretry/pgretry/compat/ent/model"
	"github.com/pgretry/pgretry/compat/ent/model/account"
	"github.com/pgretry/pgretry/internal/pgserver/pgtest"
)

// add adds to a balance in one of the ways that ent has.
type add func(ctx context.Context, tx *model.Tx, id, amount int64) error

func byID(ctx context.Context, tx *model.Tx, id, amount int64) error {
	return tx.Account.UpdateOneID(id).AddBalance(amount).Exec(ctx)
}

func where(ctx context.Context, tx *model.Tx, id, amount int64) error {
	return tx.Account.Update().Where(account.ID(id)).AddBalance(amount).Exec(ctx)
}

// transfer calls locked when it has its first lock.
func transfer(ctx context.Context, client *model.Client, add add, from, to int64, locked func()) error {
	tx, err := client.Tx(ctx)
	if err != nil {
		return err
	}
	if err := add(ctx, tx, from, -1); err != nil {
		return errors.Join(err, tx.Rollback())
	}
	locked()
	if err := add(ctx, tx, to, 1); err != nil {
		return errors.Join(err, tx.Rollback())
	}
	return tx.Commit()
}

// collide makes two transfers in opposite directions wait for each other once.
func collide(transfer func(from, to int64, locked func()) error) (errs []error) {
	var met, done sync.WaitGroup
	met.Add(2)
	errs = make([]error, 2)
	for i := range errs {
		done.Go(func() {
			meet := sync.OnceFunc(func() {
				met.Done()
				met.Wait()
			})
			errs[i] = transfer(int64(1+i), int64(2-i), meet)
		})
	}
	done.Wait()
	return errs
}

// After UpdateOneID ent reads the row, and so the application has seen a balance that
// the other side of a deadlock changes: only closures may see another one.
func TestADeadlockOfUpdatesByIDIsHiddenInClosuresOnly(t *testing.T) {
	for name, c := range map[string]struct {
		add      add
		closures bool
		surfaced int
	}{
		"UpdateOneID":             {byID, false, 1},
		"UpdateOneID in closures": {byID, true, 0},
		"Update with Where":       {where, false, 0},
	} {
		t.Run(name, func(t *testing.T) {
			driver, err := entsql.Open(pgretry.DriverName, pgtest.DSN(t))
			if err != nil {
				t.Fatal(err)
			}
			client := model.NewClient(model.Driver(driver))
			t.Cleanup(func() {
				if err := client.Close(); err != nil {
					t.Error(err)
				}
			})
			if err := client.Schema.Create(t.Context()); err != nil {
				t.Fatal(err)
			}
			for id := range int64(2) {
				if err := client.Account.Create().SetID(id + 1).SetBalance(100).Exec(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			surfaced := 0
			for _, err := range collide(func(from, to int64, locked func()) error {
				if !c.closures {
					return transfer(t.Context(), client, c.add, from, to, locked)
				}
				return pgretry.Retry(t.Context(), func(ctx context.Context) error {
					return transfer(ctx, client, c.add, from, to, locked)
				})
			}) {
				var server *pq.Error
				switch {
				case err == nil:
				case errors.As(err, &server) && server.Code == "40P01" && strings.Contains(server.Hint, "the replay showed something else"):
					surfaced++
				default:
					t.Error(err)
				}
			}
			if surfaced != c.surfaced {
				t.Errorf("%d deadlocks surfaced, want %d", surfaced, c.surfaced)
			}
		})
	}
}
