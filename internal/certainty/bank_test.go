package certainty

import (
	"context"
	"database/sql"
	"errors"
	"flag"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/pgretry/pgretry/internal/pgserver"
)

var (
	bankDuration = flag.Duration("certainty.bank", 7*time.Second, "how long each bank is under fire")
	bankSeed     = flag.Uint64("certainty.bank.seed", 1, "decides transfers and faults of the banks")
)

// bankServer starts a server that the test may break.
func bankServer(t *testing.T) *pgserver.Server {
	t.Helper()
	// Somebody else's server is not to be killed.
	t.Setenv(pgserver.EnvDSN, "")
	server, err := pgserver.Start(t.Context(), pgserver.WithSettings(BankSettings()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Stop(); err != nil {
			t.Error(err)
		}
	})
	return server
}

// underFire runs a bank and checks that it leaves no goroutine.
func underFire(t *testing.T, side BankSide, duration time.Duration) *BankReport {
	t.Helper()
	before := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, before) })
	report, err := Bank(t.Context(), bankServer(t), side, BankConfig{Seed: *bankSeed, Duration: duration, Thorough: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("faults: %s\nerrors: %s\nslowest transfer: %v, recovery: %v\n%s",
		report.FaultsInWords(), report.ErrorsInWords(), report.Slowest, report.Recovery, report.Markdown())
	return report
}

// mustHaveBeenUnderFire fails if the bank had an easy time.
func mustHaveBeenUnderFire(t *testing.T, report *BankReport) {
	t.Helper()
	for _, fault := range []string{
		"cut", "black hole", "backends terminated", "server restarted (fast)", "server restarted (immediate)",
		"server killed", "backend killed", "connections refused", "all connections cut",
	} {
		if report.Faults[fault] == 0 {
			t.Errorf("no fault of the kind %q happened", fault)
		}
	}
	if report.CommittedAfterwards < report.Workers || report.Committed <= report.CommittedAfterwards {
		t.Errorf("%d transfers were committed, %d of them after the last fault", report.Committed, report.CommittedAfterwards)
	}
}

func TestABankUnderFireIsToldTheTruth(t *testing.T) {
	for _, side := range BankSides() {
		if !side.PGRetry() {
			continue
		}
		t.Run(side.Name, func(t *testing.T) {
			report := underFire(t, side, *bankDuration)
			if err := report.Broken(); err != nil {
				t.Error(err)
			}
			mustHaveBeenUnderFire(t, report)
			if answered := report.Committed + report.Failed; report.Unknown > answered/10 {
				t.Errorf("of %d transfers %d are unknown", report.Transfers, report.Unknown)
			}
		})
	}
}

// Without this the test above could pass because nothing happens that matters.
func TestABankUnderFireMisleadsALoopThatRepeatsEverything(t *testing.T) {
	report := underFire(t, BankLibPQ, min(*bankDuration, 10*time.Second))
	if report.Doubled == 0 || report.WrongClaims() == 0 {
		t.Errorf("lib/pq with a blind loop got it right: %+v", report)
	}
	if err := report.Broken(); err == nil || !strings.Contains(err.Error(), "lib/pq, repeating: transfer 0x") {
		t.Errorf("the report says %v", err)
	}
	if report.WrongBalances > 0 || report.Missing > 0 || report.Phantoms > 0 {
		t.Errorf("the server lost something: %v", report.Broken())
	}
	mustHaveBeenUnderFire(t, report)
}

func TestABankThatIsInterruptedLeavesNothing(t *testing.T) {
	before := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, before) })
	server := bankServer(t)
	ctx, cancel := context.WithCancel(t.Context())
	var failure error
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_, failure = Bank(ctx, server, BankDriver, BankConfig{Duration: time.Hour})
	}()
	admin, err := sql.Open("postgres", server.DSN())
	if err != nil {
		t.Fatal(err)
	}
	const banks = `SELECT count(*) FROM pg_namespace WHERE nspname LIKE 'pgretry\_%'`
	for count := 0; count == 0; {
		// The server may be restarting.
		_ = admin.QueryRowContext(t.Context(), banks).Scan(&count)
		select {
		case <-ended:
			t.Fatalf("the bank ended by itself: %v", failure)
		default:
		}
	}
	cancel()
	<-ended
	if !errors.Is(failure, context.Canceled) {
		t.Errorf("an interrupted bank ended with %v", failure)
	}
	var left int
	err = admin.QueryRowContext(t.Context(), banks).Scan(&left)
	if err = errors.Join(err, admin.Close()); err != nil || left > 0 {
		t.Errorf("%d schemas are left, %v", left, err)
	}
}
