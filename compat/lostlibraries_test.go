package compat

import (
	"context"
	"database/sql"
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/jmoiron/sqlx"
	"github.com/uptrace/bun"
	"github.com/uptrace/bun/dialect/pgdialect"
	"gorm.io/driver/postgres"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"

	"github.com/pgretry/pgretry"
)

// Mark is the row of a table without a key: it takes what is written twice.
type Mark struct {
	bun.BaseModel `bun:"table:mark" gorm:"-"`

	ID int `gorm:"autoIncrement:false"`
}

// TableName is for gorm.
func (Mark) TableName() string { return "mark" }

// writesAlone is how a library writes outside a transaction. Its update puts -id into
// the place of id.
type writesAlone struct {
	create, update func(ctx context.Context, id int) error
}

var loneLibraries = map[string]func(t *testing.T, raw *sql.DB) writesAlone{
	"gorm": func(t *testing.T, raw *sql.DB) writesAlone {
		t.Helper()
		db, err := gorm.Open(postgres.New(postgres.Config{Conn: raw}), &gorm.Config{Logger: logger.Discard, SkipDefaultTransaction: true, TranslateError: true})
		if err != nil {
			t.Fatal(err)
		}
		return writesAlone{
			create: func(ctx context.Context, id int) error { return db.WithContext(ctx).Create(&Mark{ID: id}).Error },
			update: func(ctx context.Context, id int) error {
				return db.WithContext(ctx).Model(&Mark{}).Where("id = ?", id).Updates(map[string]any{"id": gorm.Expr("-id")}).Error
			},
		}
	},
	"sqlx": func(t *testing.T, raw *sql.DB) writesAlone {
		t.Helper()
		db := sqlx.NewDb(raw, "postgres")
		return writesAlone{
			create: func(ctx context.Context, id int) error {
				_, err := db.NamedExecContext(ctx, `INSERT INTO mark VALUES (:id)`, Mark{ID: id})
				return err
			},
			update: func(ctx context.Context, id int) error {
				var got int
				return db.GetContext(ctx, &got, db.Rebind(`UPDATE mark SET id = -id WHERE id = ? RETURNING id`), id)
			},
		}
	},
	"bun": func(t *testing.T, raw *sql.DB) writesAlone {
		t.Helper()
		db := bun.NewDB(raw, pgdialect.New())
		return writesAlone{
			create: func(ctx context.Context, id int) error {
				_, err := db.NewInsert().Model(&Mark{ID: id}).Exec(ctx)
				return err
			},
			update: func(ctx context.Context, id int) error {
				_, err := db.NewUpdate().Model((*Mark)(nil)).Set("id = -id").Where("id = ?", id).Exec(ctx)
				return err
			},
		}
	},
}

// TestALibrarysLoneWriteIsNeverExecutedTwice strikes before and after each message of
// the write and of its answer. An update that is executed twice comes to nothing.
func TestALibrarysLoneWriteIsNeverExecutedTwice(t *testing.T) {
	for name, use := range loneLibraries {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newLine(t)
			id := 0
			for _, updates := range []bool{false, true} {
				seen := map[bool]int{}
				for i, over := 0, false; !over; i++ {
					db := insidePq(t, l.dsn)
					db.SetMaxOpenConns(1)
					writes := use(t, db)
					id++
					write, want := writes.create, id
					if updates {
						execAll(t, l.plain, fmt.Sprintf(`INSERT INTO mark VALUES (%d)`, id))
						write, want = writes.update, -id
					}
					pid := pidOf(t, db)
					struck := l.strikeNth(blows[i%len(blows)], int64(i/2+1))
					err := write(t.Context(), id)
					over = !struck()
					l.forgets(t, pid)
					there := l.count(t, want)
					switch {
					case err == nil && there != 1, there > 1:
						t.Errorf("update %t, message %d: it gives %v, and is there %d times", updates, i/2+1, err, there)
					case err != nil:
						wantLost(t, err)
						seen[there == 1]++
					}
				}
				if seen[false] == 0 || seen[true] == 0 {
					t.Errorf("update %t: of the writes that failed %d are there and %d are not", updates, seen[true], seen[false])
				}
			}
		})
	}
}

// gorm puts a single Create into a transaction, unless it is told not to: that is
// replayed.
func TestGormsOwnTransactionSurvivesALostConnection(t *testing.T) {
	l := newLine(t)
	raw := insidePq(t, l.dsn, pgretry.WithCommitOutcome(pgretry.CommitResolve))
	db, err := gorm.Open(postgres.New(postgres.Config{Conn: raw}), &gorm.Config{Logger: logger.Discard})
	if err != nil {
		t.Fatal(err)
	}
	for id, over := 1, false; !over; id++ {
		if err := raw.Ping(); err != nil {
			t.Fatal(err)
		}
		struck := l.strikeNth(blows[id%len(blows)], int64(id))
		if err := db.WithContext(t.Context()).Create(&Mark{ID: id}).Error; err != nil {
			t.Errorf("message %d: Create gives %v", id, err)
		}
		over = !struck()
		l.proxy.Release()
		if there := l.count(t, id); there != 1 {
			t.Errorf("message %d: the mark is there %d times", id, there)
		}
	}
}

// The transaction of each library's own helper, with what it nests, is struck at each
// message, up to and with COMMIT and its answer.
func TestALibrarysTransactionSurvivesALostConnectionWhereverItIs(t *testing.T) {
	for name, library := range libraries {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			first := newLine(t)
			var moved atomic.Int64
			inLanes(t, first, func(lane int, l *line) {
				for n := lane; ; n += lanes {
					o := library.open(t, pgretry.DriverName, l.dsn+"&pgretry_commit_outcome=resolve")
					cutAtLast(t, o.db)
					if err := o.db.Ping(); err != nil {
						t.Error(err)
						return
					}
					struck := l.strikeNth(blows[n%len(blows)], int64(n+1))
					if err := o.transfer(t.Context(), 1, 2, func() {}); err != nil {
						t.Errorf("message %d: the transaction gives %v", n+1, err)
					}
					moved.Add(1)
					if !struck() {
						return
					}
					l.proxy.Release()
				}
			})
			wantBalance(t, first.plain, 1, 100-int(moved.Load()))
			wantBalance(t, first.plain, 2, 100+int(moved.Load()))
			if moved.Load() < 10 {
				t.Errorf("only %d messages were struck", moved.Load())
			}
		})
	}
}

func TestALibrarysTransactionIsCutInTheMiddle(t *testing.T) {
	for name, library := range libraries {
		t.Run(name, func(t *testing.T) {
			l := newLine(t)
			o := library.open(t, pgretry.DriverName, l.dsn)
			cutAtLast(t, o.db)
			runs := 0
			if err := o.transfer(t.Context(), 1, 2, func() {
				if runs++; l.proxy.CutAll(false) == 0 {
					t.Error("nothing was cut")
				}
			}); err != nil || runs != 1 {
				t.Errorf("the transaction gives %v after %d runs", err, runs)
			}
			wantBalance(t, l.plain, 1, 99)
			wantBalance(t, l.plain, 2, 101)
			wantHidden(t, o.db, "")
		})
	}
}
