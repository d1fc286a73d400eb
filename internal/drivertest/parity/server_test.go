package parity_test

import (
	"database/sql"
	"database/sql/driver"
	"os"
	"testing"

	"github.com/lib/pq"

	"github.com/pgretry/pgretry/internal/drivertest/parity"
	"github.com/pgretry/pgretry/internal/pgserver/pgtest"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Main(m)) }

// libPQ opens one schema through lib/pq, bare and through wrap.
func libPQ(t *testing.T, wrap func(driver.Connector) driver.Connector) parity.Opener {
	t.Helper()
	dsn := pgtest.DSN(t)
	connector := func(t *testing.T) driver.Connector {
		t.Helper()
		c, err := pq.NewConnector(dsn)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	return parity.Opener{
		Raw:     func(t *testing.T) *sql.DB { return sql.OpenDB(connector(t)) },
		Wrapped: func(t *testing.T) *sql.DB { return sql.OpenDB(wrap(connector(t))) },
		CopyIn:  true,
	}
}

func bare(c driver.Connector) driver.Connector { return c }

func TestABareDriverEqualsItselfOnAServer(t *testing.T) {
	parity.Run(t, libPQ(t, bare))
}

func TestAFaithfulWrapperPassesOnAServer(t *testing.T) {
	parity.Run(t, libPQ(t, flaws{}.wrap))
}

func TestAnUnfaithfulWrapperIsCaughtOnAServer(t *testing.T) {
	for _, c := range []struct {
		name     string
		flaws    flaws
		scenario string
	}{
		{"loses scan types", flaws{losesScanType: true}, "column types and values"},
		{"loses further result sets", flaws{losesResultSets: true}, "several statements"},
		{"wraps errors", flaws{wrapsErrors: true}, "server errors"},
		{"wraps errors of rows", flaws{wrapsErrorsOfRows: true}, "errors in mid result"},
		{"hides errors of rows", flaws{hidesErrorsOfRows: true}, "query row"},
		{"swallows affected rows", flaws{swallowsAffected: true}, "exec results"},
		{"ignores transaction options", flaws{ignoresOptions: true}, "isolation levels"},
		{"loses the argument checker", flaws{losesArgumentChecker: true}, "arguments"},
		{"prepares everything", flaws{preparesEverything: true}, "several statements"},
		{"leaks statements", flaws{leaksStatements: true}, "prepared statements in transactions"},
		{"hides the real connection", flaws{hidesRaw: true}, "raw connections"},
		{"says an aborted block committed", flaws{commitsAborted: true}, "aborted blocks"},
		{"hands out bytes of the row before", flaws{copiesBytesLate: true}, "scan destinations"},
	} {
		t.Run(c.name, func(t *testing.T) {
			differences := parity.Compare(t, libPQ(t, c.flaws.wrap), nil, parity.Selection{Scenario: c.scenario})
			if len(differences) == 0 {
				t.Errorf("not caught by scenario %q", c.scenario)
			}
			for _, d := range differences {
				t.Log(d)
			}
		})
	}
}
