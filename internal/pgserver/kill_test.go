//go:build unix

package pgserver

import (
	"os"
	"os/exec"
	"strconv"
	"testing"
)

func TestWhatWasCommittedSurvivesAKill(t *testing.T) {
	ownTemp(t)
	server := start(t, durable())
	db := connect(t, server.DSN())
	execute(t, db, "create table t (v text)")
	execute(t, db, "insert into t values ('committed')")
	open := must(db.Begin())(t)
	execute(t, open, "insert into t values ('not committed')")
	// One that computes does not notice the postmaster's end.
	busy := make(chan error)
	go func() {
		_, err := db.Exec("select count(*) from generate_series(1, 1000000000000)")
		busy <- err
	}()
	eventually(t, "a session was busy", func() bool {
		return query(t, db, "select count(*) from pg_stat_activity where state = 'active' and query like '%generate_series%' and pid <> pg_backend_pid()") == "1"
	})
	processes := must(children(server.PID()))(t)
	if len(processes) < 5 {
		t.Fatalf("the server has only %d processes", len(processes))
	}

	check(t, server.Kill())
	if err := <-busy; err == nil {
		t.Error("the busy session survived")
	}
	if running(server.PID()) {
		t.Error("the postmaster still runs")
	}
	for _, process := range processes {
		if process.runs() {
			t.Errorf("process %d still runs", process.pid)
		}
	}
	if err := answers(server.DSN()); err == nil {
		t.Error("something answers")
	}
	check(t, server.Kill()) // again

	for range 2 {
		check(t, server.Restart(t.Context(), Fast))
		if got := query(t, db, "select string_agg(v, ', ') from t"); got != "committed" {
			t.Errorf("the table holds %s", got)
		}
		check(t, server.Kill())
	}
	if !logSays(t, server, "database system was not properly shut down") {
		t.Error("the server did not recover as after a crash")
	}
}

func TestServerRecoversByItselfWhenABackendIsKilled(t *testing.T) {
	ownTemp(t)
	server := start(t, durable())
	db := connect(t, server.DSN())
	execute(t, db, "create table t as select 'committed' as v")
	witness, victim := must(db.Begin())(t), must(db.Begin())(t)
	execute(t, witness, "insert into t values ('not committed')")
	var backend int
	check(t, victim.QueryRow("select pg_backend_pid()").Scan(&backend))
	postmaster := server.PID()

	check(t, server.KillBackend(backend))
	if running(backend) {
		t.Error("the backend still runs")
	}
	eventually(t, "the server recovered", func() bool {
		return logSays(t, server, "all server processes terminated; reinitializing") && answers(server.DSN()) == nil
	})
	for name, tx := range map[string]interface{ Commit() error }{"the victim": victim, "the witness": witness} {
		if err := tx.Commit(); err == nil {
			t.Errorf("the transaction of %s survived", name)
		}
	}
	if got := query(t, db, "select string_agg(v, ', ') from t"); got != "committed" {
		t.Errorf("the table holds %s", got)
	}
	if server.PID() != postmaster || !running(postmaster) {
		t.Error("the postmaster is not the same")
	}
	check(t, server.Restart(t.Context(), Fast))
	check(t, answers(server.DSN()))
}

func TestOnlyTheServersProcessesAreKilled(t *testing.T) {
	ownTemp(t)
	server, other := start(t), start(t)
	innocent := exec.Command("sleep", "600")
	check(t, innocent.Start())
	foreign, err := strconv.Atoi(query(t, connect(t, other.DSN()), "select pg_backend_pid()"))
	check(t, err)
	for name, pid := range map[string]int{
		"ourselves": os.Getpid(), "our child": innocent.Process.Pid, "the postmaster": server.PID(),
		"another server's backend": foreign, "init": 1, "a group": 0, "all": -1,
	} {
		if err := server.KillBackend(pid); err == nil {
			t.Errorf("%s: no error", name)
		}
		if pid > 0 && !running(pid) {
			t.Errorf("%s: killed", name)
		}
	}
	check(t, innocent.Process.Kill())
	_ = innocent.Wait() // says that it was killed

	backend := must(children(server.PID()))(t)[0].pid
	check(t, server.Kill())
	if err := server.KillBackend(backend); err == nil {
		t.Error("a process of a server that is down was killed")
	}
}
