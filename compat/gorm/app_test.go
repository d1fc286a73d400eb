package gorm

import (
	"context"
	"os"
	"testing"

	"gorm.io/gorm"

	"github.com/pgretry/pgretry/compat/script"
)

// The cache of prepared statements of a gorm.DB outlives it.
func TestMain(m *testing.M) {
	os.Exit(script.Main(m, "gorm.io/gorm/internal/lru.NewLRU[...].func1"))
}

func TestGorm(t *testing.T) { script.Test(t, Open) }

// With PrepareStmt every statement of gorm's is a prepared one.
func TestGormWithPreparedStatements(t *testing.T) {
	script.Test(t, func(ctx context.Context, driverName, dsn string) (script.App, error) {
		return open(ctx, driverName, dsn, gorm.Config{PrepareStmt: true})
	})
}

// Without its own transactions a write of gorm's is a statement by itself.
func TestGormWithoutTransactionsOfItsOwn(t *testing.T) {
	script.Test(t, func(ctx context.Context, driverName, dsn string) (script.App, error) {
		return open(ctx, driverName, dsn, gorm.Config{SkipDefaultTransaction: true})
	})
}

func TestGormBehindPgBouncer(t *testing.T) { script.TestBehindPgBouncer(t, Open) }
