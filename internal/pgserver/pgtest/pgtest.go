// Package pgtest gives the tests of a package a PostgreSQL server of their own.
//
// A package's TestMain hands over to [Main]. The server starts when the first test asks for it, serves all tests of
// the package, and ends with them, whatever ends them. Each test works in a schema of its own:
//
//	func TestMain(m *testing.M) { os.Exit(pgtest.Main(m)) }
//
//	func TestSomething(t *testing.T) {
//		db, err := sql.Open("postgres", pgtest.DSN(t))
//		…
//	}
//
// Tests fail, and never skip, when there is no server; the message says what to install. See package pgserver for
// where one is looked for.
package pgtest

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/pgretry/pgretry/internal/pgserver"
)

// dropLimit is how long a test's schema may take to go.
const dropLimit = 30 * time.Second

// deathLimit is how long a signal may take to end the process.
const deathLimit = 5 * time.Second

// sharedServer is the server of one test binary, started on first use.
type sharedServer struct {
	start func() (*pgserver.Server, error)
	end   func() error
}

// shared is set by Main, before any test runs.
var shared *sharedServer

func newSharedServer(opts []pgserver.Option) *sharedServer {
	ctx, cancel := context.WithCancel(context.Background())
	start := sync.OnceValues(func() (*pgserver.Server, error) {
		if err := ctx.Err(); err != nil {
			return nil, fmt.Errorf("the tests are over: %w", err)
		}
		return pgserver.Start(ctx, opts...)
	})
	return &sharedServer{
		start: start,
		end: func() error {
			cancel() // a start under way fails, one that was never asked for does not happen
			server, err := start()
			if err != nil {
				return nil //nolint:nilerr // the tests that asked have failed with it
			}
			return server.Stop()
		},
	}
}

// Main runs the tests of a package with one server for all of them, started with opts, and returns the exit code. The
// server is stopped when the tests are done, on an interrupt or SIGTERM before the process dies of it, and, by the
// server's guard, when the process ends in any other way.
func Main(m *testing.M, opts ...pgserver.Option) (code int) {
	shared = newSharedServer(opts)
	defer func() {
		if err := shared.end(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = max(code, 1)
		}
	}()

	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	done, watched := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(watched)
		select {
		case s := <-signals:
			dieOf(s)
		case <-done:
		}
	}()
	defer func() {
		signal.Stop(signals)
		close(done)
		<-watched
	}()
	return m.Run()
}

// dieOf stops the server and lets the signal do what it does to a process that does not catch it.
func dieOf(s os.Signal) {
	if err := shared.end(); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	signal.Reset(s)
	self, err := os.FindProcess(os.Getpid())
	if err == nil {
		err = self.Signal(s)
	}
	if err == nil {
		time.Sleep(deathLimit)
	}
	os.Exit(1) // the system cannot send it, or was told to ignore it
}

// Server returns the server that all tests of the package share. Tests must not stop, restart or kill
// it: they start one of their own for that, with [pgserver.Start].
func Server(tb testing.TB) *pgserver.Server {
	tb.Helper()
	if shared == nil {
		tb.Fatal("pgtest: the package's TestMain has to call pgtest.Main")
	}
	server, err := shared.start()
	if err != nil {
		tb.Fatal(err)
	}
	return server
}

// DSN returns a connection string, in URL form, to a new and empty schema of the shared server. The schema is the
// search_path of whoever connects with it, and is dropped when the test ends, with sessions that still hold locks in
// it terminated.
func DSN(tb testing.TB) string {
	tb.Helper()
	schema, err := Server(tb).NewSchema(context.Background())
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), dropLimit)
		defer cancel()
		if err := schema.Drop(ctx); err != nil {
			tb.Error(err)
		}
	})
	return schema.DSN
}
