package pgserver

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func TestOwnerIsMoreThanAProcessID(t *testing.T) {
	self := bounds()
	self.PID = os.Getpid()
	self.Started, _ = processStart(self.PID)
	if self.Started == "" || self.Boot == "" {
		t.Fatalf("this process is only known as %+v", self)
	}
	tests := []struct {
		name   string
		change func(*owner)
		alive  bool
	}{
		{"itself", func(*owner) {}, true},
		{"an earlier process with the same id", func(o *owner) { o.Started = "1" }, false},
		{"the same id before the last boot", func(o *owner) { o.Boot = "0" }, false},
		{"a process of another container", func(o *owner) { o.Namespace, o.PID = "pid:[1]", 1<<30 }, true},
	}
	for _, test := range tests {
		o := self
		test.change(&o)
		if o.alive() != test.alive {
			t.Errorf("%s: alive is %t", test.name, !test.alive)
		}
	}
}

func TestProcessThatNobodyWaitedForIsGone(t *testing.T) {
	cmd := exec.Command("sleep", "600")
	check(t, cmd.Start())
	if !running(cmd.Process.Pid) {
		t.Error("a process that runs is not seen")
	}
	check(t, cmd.Process.Kill())
	eventually(t, "the process was gone", func() bool { return !running(cmd.Process.Pid) })
	_ = cmd.Wait() // says that it was killed
}

func TestStopRemovesTheSharedMemoryOfAPostmasterThatWasKilled(t *testing.T) {
	for name, kill := range map[string]func(*Server) error{
		"by us":            (*Server).Kill,
		"by somebody else": func(s *Server) error { return syscall.Kill(s.PID(), syscall.SIGKILL) },
	} {
		t.Run(name, func(t *testing.T) {
			ownTemp(t)
			server := must(Start(t.Context(), WithLogf(t.Logf)))(t)
			lock := strings.Split(string(must(os.ReadFile(filepath.Join(server.Dir(), "data", "postmaster.pid")))(t)), "\n")
			id := strings.Fields(lock[6])[1]
			if !sharedMemoryExists(t, id) {
				t.Fatalf("there is no shared memory %s", id)
			}
			check(t, kill(server))
			check(t, server.Stop())
			if sharedMemoryExists(t, id) {
				t.Errorf("shared memory %s is still there", id)
			}
		})
	}
}

func sharedMemoryExists(t *testing.T, id string) bool {
	t.Helper()
	for line := range strings.Lines(string(must(os.ReadFile("/proc/sysvipc/shm"))(t))) {
		if strings.Fields(line)[1] == id {
			return true
		}
	}
	return false
}
