package compat

import (
	"database/sql"
	"flag"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/stdlib"

	"github.com/pgretry/pgretry"
	"github.com/pgretry/pgretry/internal/certainty"
	"github.com/pgretry/pgretry/internal/pgserver/pgtest"
)

var (
	commits     = flag.Int("certainty.commits", 150, "COMMITs to disturb with pgx inside, at least a few per scenario")
	commitsOnly = flag.String("certainty.commits.only", "", "scenarios, separated by semicolons; all if empty")
	loneWrites  = flag.Int("certainty.lone", 400, "statements outside transactions to cut off with pgx inside")
)

func overPGX(dsn string, options ...pgretry.Option) (*sql.DB, error) {
	connector, err := pgretry.WrapDriver(stdlib.GetDefaultDriver(), options...).OpenConnector(dsn)
	if err != nil {
		return nil, err
	}
	return sql.OpenDB(connector), nil
}

func TestWithPGXInsideWhatIsToldOfACommitIsTrue(t *testing.T) {
	config := certainty.CommitConfig{Trials: *commits, Driver: "pgx", Open: overPGX, Outcome: "resolve", Logf: t.Logf}
	if *commitsOnly != "" {
		config.Only = strings.Split(*commitsOnly, ";")
	}
	report, err := certainty.Commits(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Log("\n" + report.Markdown())
	if err := report.Broken(); err != nil {
		t.Error(err)
	}
}

func TestWithPGXInsideNoLoneWriteIsExecutedTwice(t *testing.T) {
	report, err := certainty.LoneWrites(t.Context(), certainty.LoneConfig{
		Trials: *loneWrites, Driver: "pgx in pgretry", Open: overPGX, DSN: pgtest.DSN(t),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Log("\n" + report.Markdown())
	if err := report.Broken(); err != nil {
		t.Error(err)
	}
}
