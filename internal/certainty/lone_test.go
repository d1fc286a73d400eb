package certainty

import (
	"database/sql/driver"
	"errors"
	"flag"
	"testing"

	"go.uber.org/goleak"

	"github.com/pgretry/pgretry"
	"github.com/pgretry/pgretry/internal/pgserver"
)

var loneTrials = flag.Int("certainty.lone", 250, "how many lone writes are cut")

// loneWrites runs lone writes on a server of their own.
func loneWrites(t *testing.T, config LoneConfig) *LoneReport {
	t.Helper()
	before := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, before) })
	server, err := pgserver.Start(t.Context(), pgserver.WithSettings(map[string]string{"synchronous_commit": "on"}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Stop(); err != nil {
			t.Error(err)
		}
	})
	config.DSN = server.DSN()
	report, err := LoneWrites(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Log("\n" + report.Markdown())
	return report
}

func TestALoneWriteThatIsCutIsNeverDoubledAndToldTruly(t *testing.T) {
	report := loneWrites(t, LoneConfig{Trials: *loneTrials})
	if err := report.Broken(); err != nil {
		t.Error(err)
	}
	if report.Applied[2]+report.Applied[3] > 0 {
		t.Errorf("applied %v times", report.Applied)
	}
	if report.Applied[0] == 0 || report.Affirmed == 0 || report.Open == 0 {
		t.Errorf("the cuts were not all over the exchange: %+v", report)
	}
	if report.Trials != *loneTrials {
		t.Errorf("%d trials, want %d", report.Trials, *loneTrials)
	}
}

// Without this the test above could pass because no cut matters.
func TestALoneWriteThatIsCutIsTripledByLibPQ(t *testing.T) {
	report := loneWrites(t, LoneConfig{Trials: *loneTrials, Driver: "lib/pq alone", Open: openLibPQ, Bare: true})
	if report.Applied[2] == 0 || report.Applied[3] == 0 {
		t.Errorf("applied %v times", report.Applied)
	}
	if report.Wrong == 0 || report.Broken() == nil {
		t.Errorf("nothing is wrong with that: %+v", report)
	}
}

func TestFalseClaimsAboutALoneWriteAreFoundOut(t *testing.T) {
	lost := &pgretry.ConnectionLostError{Cause: driver.ErrBadConn}
	for _, test := range []struct {
		name    string
		told    error
		applied int
		bare    bool
		wrong   bool
	}{
		{"done", nil, 1, false, false},
		{"invented", nil, 0, false, true},
		{"doubled", nil, 2, false, true},
		{"lost, done", lost, 1, false, false},
		{"lost, not done", lost, 0, false, false},
		{"lost, doubled", lost, 2, false, true},
		{"bad connection, not done", driver.ErrBadConn, 0, false, false},
		{"bad connection, done", driver.ErrBadConn, 1, false, true},
		{"bad connection of a bare driver, done", driver.ErrBadConn, 1, true, false},
		{"bad connection of a bare driver, tripled", driver.ErrBadConn, 3, true, true},
		{"another error of a bare driver, done", errors.New("duplicate key"), 1, true, true},
		{"rolled back, done", &pgretry.ConnectionLostError{Cause: driver.ErrBadConn, RolledBack: true}, 1, false, true},
	} {
		report := &LoneReport{}
		report.add(loneCut{}, test.told, test.applied, test.bare)
		if (report.Wrong == 1) != test.wrong || (report.Broken() != nil) != test.wrong {
			t.Errorf("%s: %d wrong, and the report says %v", test.name, report.Wrong, report.Broken())
		}
	}
}
