//go:build !unix

package pgserver

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
)

// Without Unix there are no clusters, and nothing else here is ever called.

func clustersSupported() error {
	return errors.New("throwaway clusters need a Unix system: set " + EnvDSN + " to a server's connection string")
}

type account struct{ name string }

func serverAccount() (*account, error)  { return nil, nil }
func (a *account) String() string       { return "" }
func (a *account) give(string) error    { return nil }
func (a *account) assume(cmd *exec.Cmd) {}

func detach(*exec.Cmd)                {}
func quit(p *os.Process) error        { return p.Kill() }
func suspend(*os.Process) error       { return errors.ErrUnsupported }
func suspended(int) bool              { return true }
func children(int) ([]process, error) { return nil, errors.ErrUnsupported }
func ownFile(fs.FileInfo) bool        { return false }
func bounds() owner                   { return owner{} }
func processStart(int) (string, bool) { return "", false }
func isPostmaster(int, string) bool   { return false }
