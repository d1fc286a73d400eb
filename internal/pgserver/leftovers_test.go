//go:build unix

package pgserver

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

func TestLeftoversOfAKilledRunAreSwept(t *testing.T) {
	for _, mode := range []string{"serve unguarded", "serve restarted unguarded"} {
		t.Run(mode, func(t *testing.T) {
			ownTemp(t)
			c := startChild(t, mode, nil)
			c.murder(t)
			if !running(c.report.PID) || !exists(c.report.Dir) {
				t.Fatal("there are no leftovers")
			}
			start(t)
			if running(c.report.PID) {
				t.Error("the postmaster still runs")
			}
			if exists(c.report.Dir) {
				t.Error("the directory is still there")
			}
		})
	}
}

func TestKilledRunLeavesNothingForLong(t *testing.T) {
	for _, mode := range []string{"serve", "serve restarted", "serve killed"} {
		t.Run(mode, func(t *testing.T) {
			ownTemp(t)
			c := startChild(t, mode, nil)
			c.murder(t)
			eventually(t, "the directory was removed", func() bool { return !exists(c.report.Dir) })
			if running(c.report.PID) {
				t.Error("the directory was removed from under the postmaster")
			}
			eventually(t, "the guard ended", func() bool { return len(processesMentioning(t, c.report.Dir)) == 0 })
		})
	}
}

func TestServersOfLiveProcessesAreLeftAlone(t *testing.T) {
	ownTemp(t)
	c := startChild(t, "serve", nil)
	start(t)
	check(t, answers(c.report.DSN))
	check(t, c.stdin.Close())
	check(t, c.Wait())
}

func TestProcessesThatStartAtOnceDoNotDisturbEachOther(t *testing.T) {
	base := ownTemp(t)
	for i := range 5 {
		leftover(t, base, fmt.Sprint(i), deadOwner(t))
	}
	var cycles []*exec.Cmd
	for range 3 {
		cmd := exec.Command(must(os.Executable())(t))
		cmd.Env = append(os.Environ(), childMode+"=cycle")
		cmd.Stderr = os.Stderr
		check(t, cmd.Start())
		cycles = append(cycles, cmd)
	}
	for _, cmd := range cycles {
		if err := cmd.Wait(); err != nil {
			t.Errorf("a process was disturbed: %v", err)
		}
	}
}

func TestOnlyAbandonedDirectoriesAreSwept(t *testing.T) {
	base := ownTemp(t)
	alive := fmt.Sprintf(`{"pid":%d}`, os.Getpid())
	if self := bounds(); self.Boot != "" {
		started, _ := processStart(os.Getpid())
		alive = fmt.Sprintf(`{"pid":%d,"started":%q,"boot":%q,"namespace":%q}`, os.Getpid(), started, self.Boot, self.Namespace)
	}
	tests := []struct {
		name, record string
		age          time.Duration
		swept        bool
	}{
		{"dead owner", deadOwner(t), 0, true},
		{"live owner", alive, 24 * time.Hour, false},
		{"no record yet", "", 0, false},
		{"no record for long", "", time.Hour, true},
		{"broken record", `{"pid":`, 0, false},
		{"broken record for long", `{"pid":`, time.Hour, true},
	}
	dirs := map[string]string{}
	for i, test := range tests {
		dir := leftover(t, base, fmt.Sprint(i), test.record)
		then := time.Now().Add(-test.age)
		check(t, os.Chtimes(dir, then, then))
		dirs[test.name] = dir
	}
	sweep(t.Context(), base, t.Logf)
	for _, test := range tests {
		if exists(dirs[test.name]) == test.swept {
			t.Errorf("%s: swept is %t", test.name, !test.swept)
		}
		check(t, os.RemoveAll(dirs[test.name]))
	}
}

func TestLeftoversOfOtherUsersAreNoConcern(t *testing.T) {
	base := ownTemp(t)
	dir := leftover(t, base, "1", deadOwner(t))
	foreign := dir
	if os.Geteuid() == 0 {
		check(t, os.Chown(dir, 65534, 65534))
	} else {
		foreign = "/" // what belongs to others, for one who cannot give anything away
	}
	if abandoned(foreign) {
		t.Errorf("%s is taken for ours", foreign)
	}
	sweep(t.Context(), base, t.Logf)
	if os.Geteuid() == 0 && !exists(dir) {
		t.Error("somebody else's directory was removed")
	}
	check(t, os.RemoveAll(dir))
}

func TestInnocentProcessWithThePostmastersIDSurvives(t *testing.T) {
	base := ownTemp(t)
	innocent := exec.Command("sleep", "600")
	check(t, innocent.Start())
	dir := leftover(t, base, "1", deadOwner(t))
	dataDir := filepath.Join(dir, "data")
	check(t, os.Mkdir(dataDir, 0o700))
	lock := fmt.Sprintf("%d\n%s\n1700000000\n5432\n", innocent.Process.Pid, dataDir)
	check(t, os.WriteFile(filepath.Join(dataDir, "postmaster.pid"), []byte(lock), 0o600))
	sweep(t.Context(), base, t.Logf)
	if exists(dir) {
		t.Error("the leftover is still there")
	}
	if !running(innocent.Process.Pid) {
		t.Error("the process was killed")
	}
	check(t, innocent.Process.Kill())
	_ = innocent.Wait() // says that it was killed
}

// leftover makes a directory like that of a cluster, with an owner's record unless that is empty.
func leftover(t *testing.T, base, name, record string) string {
	t.Helper()
	dir := filepath.Join(base, dirPrefix+name)
	check(t, os.Mkdir(dir, 0o700))
	if record != "" {
		check(t, os.WriteFile(filepath.Join(dir, ownerFile), []byte(record), 0o600))
	}
	return dir
}

// deadOwner returns the record of a process that is gone.
func deadOwner(t *testing.T) string {
	t.Helper()
	cmd := exec.Command("true")
	check(t, cmd.Run())
	self := bounds()
	return fmt.Sprintf(`{"pid":%d,"started":"1","boot":%q,"namespace":%q}`, cmd.Process.Pid, self.Boot, self.Namespace)
}
