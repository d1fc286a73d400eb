// Command pgretry shows on a real server what github.com/pgretry/pgretry does.
//
//	go run ./cmd/pgretry demo
//
// runs transactions that deadlock or fail to serialize, first with lib/pq, then with the same code
// and only the driver's name changed, then with pgretry.RunInTx, and prints what the application
// saw. With --faults it breaks connections and servers instead, and compares what the application was
// told with what is in the database. "pgretry demo --help" lists the flags.
//
// It exits with 0 if pgretry kept its promise, 1 if it did not or the demo could not be run, 2 if
// the command line is wrong, and 130 if it was interrupted.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
)

const (
	exitFailure     = 1
	exitUsage       = 2
	exitInterrupted = 130
)

var errInterrupted = errors.New("interrupted")

// usageError is a mistake in the command line.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

// cleanupError says what could not be removed. It is shown even after an interruption, which makes
// other errors meaningless.
type cleanupError struct{ error }

func (e cleanupError) Unwrap() error { return e.error }

func main() {
	ctx, cancel := context.WithCancelCause(context.Background())
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	go func() {
		<-signals
		cancel(errInterrupted)
	}()
	// A reader that goes away must not kill this process before it has stopped its server: with a
	// handler, writing to a closed pipe is an ordinary error.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// run is the whole command without the process around it. The cause of a cancelled ctx should be
// errInterrupted.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	root := newRootCommand()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	_, wrongUsage := errors.AsType[usageError](err)
	switch {
	case errors.Is(err, errInterrupted), ctx.Err() != nil:
		if left, ok := errors.AsType[cleanupError](err); ok {
			fmt.Fprintf(stderr, "pgretry: %v\n", left)
		}
		fmt.Fprintln(stderr, "pgretry: interrupted")
		return exitInterrupted
	case wrongUsage:
		fmt.Fprintf(stderr, "pgretry: %v (see \"pgretry demo --help\")\n", err)
		return exitUsage
	default:
		fmt.Fprintf(stderr, "pgretry: %v\n", err)
		return exitFailure
	}
}

func newRootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "pgretry",
		Short: "See PostgreSQL transactions survive deadlocks and serialization failures",
		Long: `pgretry shows on a real server what the Go driver github.com/pgretry/pgretry does.

Start with "pgretry demo": it needs PostgreSQL's binaries or, without them, the network to fetch
them, and about a minute and a half.`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usageError{fmt.Errorf("there is no command %q: choose demo or version", args[0])}
			}
			return nil
		},
		RunE:          func(command *cobra.Command, _ []string) error { return command.Help() },
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	root.AddCommand(newDemoCommand(), newVersionCommand(), newUnpackCommand())
	return root
}

// noArguments refuses arguments with a sentence that says where they may belong.
func noArguments(command *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usageError{fmt.Errorf("%s takes flags only, not the argument %q", command.CommandPath(), args[0])}
	}
	return nil
}
