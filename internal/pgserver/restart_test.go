//go:build unix

package pgserver

import (
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// durable makes a commit mean something.
func durable() Option {
	return WithSettings(map[string]string{"synchronous_commit": "on", "full_page_writes": "on"})
}

func TestRestartKeepsDataPortAndSocket(t *testing.T) {
	for name, mode := range map[string]ShutdownMode{"fast": Fast, "immediate": Immediate} {
		t.Run(name, func(t *testing.T) {
			ownTemp(t)
			server := start(t, durable())
			db := connect(t, server.DSN())
			execute(t, db, "create table t as select 'committed' as v")
			open := must(db.Begin())(t)
			execute(t, open, "insert into t values ('not committed')")
			before := server.PID()

			check(t, server.Restart(t.Context(), mode))
			if err := open.Commit(); err == nil {
				t.Error("a transaction survived")
			}
			for _, dsn := range []string{server.DSN(), server.SocketDSN()} {
				if got := query(t, connect(t, dsn), "select string_agg(v, ', ') from t"); got != "committed" {
					t.Errorf("the table holds %s", got)
				}
			}
			if server.PID() == before || running(before) {
				t.Error("the postmaster is still the same")
			}
			if pid := must(postmasterPID(filepath.Join(server.Dir(), "data")))(t); pid != server.PID() {
				t.Errorf("the postmaster is process %d, and said to be %d", pid, server.PID())
			}
			if recovered := logSays(t, server, "database system was not properly shut down"); recovered != (mode == Immediate) {
				t.Errorf("it recovered as after a crash: %t", recovered)
			}
		})
	}
}

func logSays(t *testing.T, server *Server, message string) bool {
	t.Helper()
	return strings.Contains(string(must(os.ReadFile(filepath.Join(server.Dir(), "log")))(t)), message)
}

func TestRestartWithoutAModeLeavesTheServerAlone(t *testing.T) {
	ownTemp(t)
	server := start(t)
	if err := server.Restart(t.Context(), 0); err == nil {
		t.Error("there is no error")
	}
	check(t, answers(server.DSN()))
}

func TestRestartWaitsForItsPort(t *testing.T) {
	ownTemp(t)
	waiting := make(chan struct{}, 1)
	server := start(t)
	server.cluster.logf = func(format string, args ...any) {
		t.Logf(format, args...)
		if strings.Contains(format, "waiting") {
			waiting <- struct{}{}
		}
	}
	check(t, server.Kill())
	taken := must(net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(server.cluster.port))))(t)
	defer taken.Close() //nolint:errcheck // of no interest here

	ctx, cancel := context.WithCancel(t.Context())
	restarted := make(chan error)
	go func() { restarted <- server.Restart(ctx, Fast) }()
	<-waiting
	cancel()
	if err := <-restarted; !errors.Is(err, context.Canceled) {
		t.Errorf("the error is not the context's: %v", err)
	}
	if running(server.PID()) {
		t.Error("the server is not down")
	}

	go func() { restarted <- server.Restart(t.Context(), Fast) }()
	<-waiting
	check(t, taken.Close())
	check(t, <-restarted)
	check(t, answers(server.DSN()))
}

func TestRestartThatIsNotWaitedForLeavesTheServerDown(t *testing.T) {
	ownTemp(t)
	server := start(t)
	db := connect(t, server.DSN())
	// A fast shutdown waits for every session to notice, and none does while it is suspended.
	conn := must(db.Conn(t.Context()))(t)
	defer conn.Close()
	var backend int
	check(t, conn.QueryRowContext(t.Context(), "select pg_backend_pid()").Scan(&backend))
	check(t, suspend(must(os.FindProcess(backend))(t)))
	eventually(t, "the session was suspended", func() bool { return suspended(backend) })

	ctx, cancel := context.WithCancel(t.Context())
	restarted := make(chan error)
	go func() { restarted <- server.Restart(ctx, Fast) }()
	eventually(t, "the server shut down", func() bool { return logSays(t, server, "received fast shutdown request") })
	cancel()
	if err := <-restarted; !errors.Is(err, context.Canceled) {
		t.Errorf("the error is not the context's: %v", err)
	}
	if running(server.PID()) {
		t.Error("the server is not down")
	}
	check(t, server.Restart(t.Context(), Fast))
	check(t, answers(server.DSN()))
}

func TestStopEndsWhatIsUnderWay(t *testing.T) {
	tests := map[string]func(*Server) error{
		"restarts": func(s *Server) error { return s.Restart(context.Background(), Immediate) },
		"kills":    func(s *Server) error { return errors.Join(s.Kill(), s.Restart(context.Background(), Fast)) },
		"standbys": func(s *Server) error {
			standby, err := s.NewStandby(context.Background())
			if err != nil {
				return err
			}
			return standby.Stop()
		},
	}
	for name, disturb := range tests {
		t.Run(name, func(t *testing.T) {
			ownTemp(t) // checks what is left
			server := must(Start(t.Context(), WithLogf(t.Logf)))(t)
			var disturbers sync.WaitGroup
			once := make(chan struct{}, 1)
			signal := func() {
				select {
				case once <- struct{}{}:
				default:
				}
			}
			for range 3 {
				disturbers.Go(func() {
					defer signal()
					for {
						if err := disturb(server); err != nil {
							if !errors.Is(err, ErrStopped) {
								t.Errorf("the error does not say that the server was stopped: %v", err)
							}
							return
						}
						if server.PID() == 0 {
							t.Error("there is no postmaster")
						}
						signal()
					}
				})
			}
			<-once
			check(t, server.Stop())
			if exists(server.Dir()) || running(server.PID()) {
				t.Error("Stop returned before the server was gone")
			}
			disturbers.Wait()
			if err := server.Promote(t.Context()); !errors.Is(err, ErrStopped) {
				t.Errorf("after Stop: %v", err)
			}
		})
	}
}

func TestOrdinaryUserCanCauseFaults(t *testing.T) {
	base := ownTemp(t)
	cmd := exec.Command("")
	cmd.Env = append(os.Environ(), childMode+"=faults")
	cmd.Stderr = os.Stderr
	asOrdinaryUser(t, base)(cmd)
	check(t, cmd.Run())
}

func TestRestartHonoursAContextThatIsOver(t *testing.T) {
	ownTemp(t)
	server := start(t)
	ctx, cancel := context.WithDeadline(t.Context(), time.Unix(0, 0))
	defer cancel()
	if err := server.Restart(ctx, Fast); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the error is not the context's: %v", err)
	}
	check(t, answers(server.DSN()))
}
