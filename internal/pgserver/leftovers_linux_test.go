package pgserver

import (
	"os"
	"os/exec"
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
