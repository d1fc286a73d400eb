//go:build unix

package pgserver

import (
	"database/sql"
	"fmt"
	"strings"
	"testing"
)

// startStandby starts a standby that is stopped when the test ends.
func startStandby(t *testing.T, primary *Server, opts ...Option) *Server {
	t.Helper()
	standby := must(primary.NewStandby(t.Context(), append(opts, WithLogf(t.Logf))...))(t)
	t.Cleanup(func() { check(t, standby.Stop()) })
	return standby
}

func TestStandbyFollowsItsPrimary(t *testing.T) {
	ownTemp(t)
	primary := start(t, durable())
	p := connect(t, primary.DSN())
	execute(t, p, "create table t as select 'before' as v")
	standby := startStandby(t, primary)
	if standby.DSN() == primary.DSN() || standby.Dir() == primary.Dir() || standby.PID() == primary.PID() || standby.External() {
		t.Error("the standby is not a cluster of its own")
	}
	if standby.Version() != primary.Version() || standby.BinDir() != primary.BinDir() {
		t.Errorf("the standby's version is %s in %s", standby.Version(), standby.BinDir())
	}
	s := connect(t, standby.DSN())
	if got := query(t, s, "select pg_is_in_recovery()::text || ' ' || string_agg(v, ', ') from t"); got != "true before" {
		t.Errorf("the standby says %s", got)
	}

	// A commit that waits until the standby shows it proves that it goes by its name.
	execute(t, p, "alter system set synchronous_standby_names = 'standby'")
	execute(t, p, "select pg_reload_conf()")
	eventually(t, "the standby was synchronous", func() bool {
		return query(t, p, "select count(*) from pg_stat_replication where application_name = 'standby' and sync_state = 'sync'") == "1"
	})
	execute(t, p, "set synchronous_commit = remote_apply; insert into t values ('after')")
	if got := query(t, s, "select string_agg(v, ', ') from t"); got != "before, after" {
		t.Errorf("the standby's table holds %s", got)
	}
}

func TestStandbyFollowsItsPrimaryThroughFaultsOfBoth(t *testing.T) {
	ownTemp(t)
	primary := start(t, durable())
	standby := startStandby(t, primary)
	p, s := connect(t, primary.DSN()), connect(t, standby.DSN())
	execute(t, p, "create table t (v int)")
	for i, fault := range []func() error{
		func() error { return primary.Restart(t.Context(), Fast) },
		func() error { return primary.Restart(t.Context(), Immediate) },
		func() error { return standby.Restart(t.Context(), Fast) },
		standby.Kill,
		func() error { return standby.Restart(t.Context(), Fast) },
		primary.Kill,
		func() error { return primary.Restart(t.Context(), Fast) },
	} {
		check(t, fault())
		if !running(primary.PID()) || !running(standby.PID()) {
			continue
		}
		// Sessions from before the fault are in the pool yet.
		eventually(t, "the primary could be written to", func() bool {
			_, err := p.Exec(fmt.Sprintf("insert into t values (%d)", i))
			return err == nil
		})
		eventually(t, "the standby followed", func() bool {
			var last sql.NullInt64
			return s.QueryRow("select max(v) from t").Scan(&last) == nil && last.Int64 == int64(i)
		})
	}
}

func TestStandbyHasItsPrimarysSettingsAndItsOwn(t *testing.T) {
	ownTemp(t)
	primary := start(t, WithSettings(map[string]string{"deadlock_timeout": "5s", "work_mem": "1MB", "app.who": "primary"}))
	execute(t, connect(t, primary.DSN()), "alter system set lock_timeout = '7s'")
	standby := startStandby(t, primary, WithSettings(map[string]string{"work_mem": "2MB", "app.who": "standby", "fsync": "on"}))
	db := connect(t, standby.DSN())
	for name, want := range map[string]string{
		"deadlock_timeout": "5s", "work_mem": "2MB", "app.who": "standby", "lock_timeout": "0",
		"fsync": "on", "synchronous_commit": "off",
	} {
		if got := query(t, db, "select current_setting($1)", name); got != want {
			t.Errorf("%s is %s, not %s", name, got, want)
		}
	}
}

func TestPromotedStandbyIsAPrimaryOfANewTimeline(t *testing.T) {
	ownTemp(t)
	primary := start(t, durable())
	p := connect(t, primary.DSN())
	execute(t, p, "create table t as select 'before' as v")
	standby := startStandby(t, primary)
	s := connect(t, standby.DSN())
	if _, err := s.Exec("insert into t values ('too early')"); err == nil {
		t.Error("the standby can be written to")
	}

	check(t, standby.Promote(t.Context()))
	execute(t, s, "insert into t values ('in the standby')")
	check(t, standby.Restart(t.Context(), Fast))
	execute(t, connect(t, standby.DSN()), "insert into t values ('after a restart')")
	const timeline = "select substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)"
	if old, now := query(t, p, timeline), query(t, connect(t, standby.DSN()), timeline); old != "00000001" || now != "00000002" {
		t.Errorf("timelines: %s and %s", old, now)
	}
	if got := query(t, p, "select string_agg(v, ', ') from t"); got != "before" {
		t.Errorf("the old primary's table holds %s", got)
	}
	if got := query(t, connect(t, standby.DSN()), "select string_agg(v, ', ') from t"); got != "before, in the standby, after a restart" {
		t.Errorf("the new primary's table holds %s", got)
	}
	// It outlives the other.
	check(t, primary.Stop())
	check(t, answers(standby.DSN()))
}

func TestPromotionAfterThePrimarysDeathLosesNoSynchronousCommit(t *testing.T) {
	ownTemp(t)
	primary := start(t, durable())
	standby := startStandby(t, primary)
	p := connect(t, primary.DSN())
	execute(t, p, "alter system set synchronous_standby_names = 'standby'")
	execute(t, p, "select pg_reload_conf()")
	eventually(t, "the standby was synchronous", func() bool {
		return query(t, p, "select count(*) from pg_stat_replication where sync_state = 'sync'") == "1"
	})
	execute(t, p, "create table t as select 'committed' as v")
	check(t, primary.Kill())
	check(t, standby.Promote(t.Context()))
	if got := query(t, connect(t, standby.DSN()), "select string_agg(v, ', ') from t"); got != "committed" {
		t.Errorf("the table holds %s", got)
	}
}

func TestOnlyAStandbyCanBePromoted(t *testing.T) {
	ownTemp(t)
	server := start(t)
	if err := server.Promote(t.Context()); err == nil || !strings.Contains(err.Error(), "recovery is not in progress") {
		t.Errorf("the error is %v", err)
	}
	check(t, answers(server.DSN()))
}

func TestPrimaryKeepsItsLogForAStandbyUntilThatIsStopped(t *testing.T) {
	ownTemp(t)
	primary := start(t)
	standby := startStandby(t, primary)
	db := connect(t, primary.DSN())
	// Otherwise it would keep all of it, for ever.
	if got := query(t, db, "select count(*) from pg_replication_slots where active"); got != "1" {
		t.Errorf("the standby uses %s replication slots", got)
	}
	check(t, standby.Kill())
	execute(t, db, "create table t (v int)")
	for range 3 {
		execute(t, db, "insert into t values (1)")
		execute(t, db, "select pg_switch_wal()")
		execute(t, db, "checkpoint")
	}
	check(t, standby.Restart(t.Context(), Fast))
	eventually(t, "the standby caught up", func() bool {
		var n int
		return connect(t, standby.DSN()).QueryRow("select count(*) from t").Scan(&n) == nil && n == 3
	})
	if got := query(t, db, "select count(*) from pg_replication_slots"); got != "1" {
		t.Errorf("there are %s replication slots", got)
	}
	check(t, standby.Stop())
	if got := query(t, db, "select count(*) from pg_replication_slots"); got != "0" {
		t.Errorf("there are %s replication slots after Stop", got)
	}
}

func TestStandbyThatCannotBeLeavesNothing(t *testing.T) {
	base := ownTemp(t)
	primary := start(t, WithSettings(map[string]string{"max_wal_senders": "0"}))
	standby, err := primary.NewStandby(t.Context())
	if err == nil {
		check(t, standby.Stop())
		t.Fatal("there is a standby without replication")
	}
	if !strings.Contains(err.Error(), "max_wal_senders") {
		t.Errorf("the error does not say what failed: %v", err)
	}
	if dirs := clusterDirs(t, base); len(dirs) != 1 {
		t.Errorf("there are %v", dirs)
	}
	if got := query(t, connect(t, primary.DSN()), "select count(*) from pg_replication_slots"); got != "0" {
		t.Errorf("there are %s replication slots", got)
	}
}
