package report

import (
	"fmt"
	"io"
	"os"
	"strconv"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"

	"github.com/pgretry/pgretry/cmd/pgretry/internal/runner"
)

// Progress says where the demo stands: a bar on a terminal, elsewhere a line per run.
type Progress struct {
	out   io.Writer
	bar   *progressbar.ProgressBar
	runs  int
	begun int
	label string
}

// stepsPerRun is how finely the bar moves.
const stepsPerRun = 100

// NewProgress returns the progress of a demo of so many runs, written to out. Without runs there is
// no bar.
func NewProgress(out io.Writer, runs int) *Progress {
	p := &Progress{out: out, runs: runs}
	if file, ok := out.(*os.File); ok && runs > 0 && term.IsTerminal(int(file.Fd())) {
		p.bar = progressbar.NewOptions(runs*stepsPerRun,
			progressbar.OptionSetWriter(out),
			progressbar.OptionSetWidth(24),
			progressbar.OptionSetPredictTime(false),
			progressbar.OptionSetElapsedTime(false),
			progressbar.OptionClearOnFinish(),
		)
	}
	return p
}

// Say writes a line about what is being done.
func (p *Progress) Say(format string, args ...any) error {
	if err := p.clear(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(p.out, format+"\n", args...)
	return err
}

// Begin announces the next run.
func (p *Progress) Begin(workload, side string) error {
	p.begun++
	p.label = fmt.Sprintf("%-14s %-11s", workload, side)
	return p.Observe(runner.Progress{})
}

// Observe shows where the run stands. On anything but a terminal it is silent.
func (p *Progress) Observe(now runner.Progress) error {
	if p.bar == nil {
		return nil
	}
	p.bar.Describe(fmt.Sprintf("%s %6d commits %6d errors", p.label, now.Commits, now.Errors))
	// The last step would finish the bar, and Close does that.
	return p.bar.Set(min((p.begun-1)*stepsPerRun+int(now.Done*stepsPerRun), p.runs*stepsPerRun-1))
}

// End reports a run that is over. On a terminal it is silent: the table will say it.
func (p *Progress) End(result runner.Result) error {
	if p.bar != nil {
		return nil
	}
	width := len(strconv.Itoa(p.runs))
	_, err := fmt.Fprintf(p.out, "[%*d/%d] %s %6d commits %6d errors\n", width, p.begun, p.runs, p.label, result.Commits, result.Errors)
	return err
}

// Close takes the bar away. It may be called again.
func (p *Progress) Close() error {
	err := p.clear()
	p.bar = nil
	return err
}

func (p *Progress) clear() error {
	if p.bar == nil {
		return nil
	}
	return p.bar.Clear()
}
