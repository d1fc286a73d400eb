package certainty

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/pgretry/pgretry/internal/faultproxy"
	"github.com/pgretry/pgretry/internal/pgserver"
)

// bankChaos does harm to the sessions of a bank.
type bankChaos struct {
	bank   *bank
	server *pgserver.Server

	mu     sync.Mutex // the proxy's connections meet in rule
	random *rand.Rand
	count  map[string]int
}

func newBankChaos(b *bank, server *pgserver.Server) *bankChaos {
	return &bankChaos{
		bank: b, server: server,
		random: rand.New(rand.NewPCG(b.config.Seed, 1<<63)),
		count:  make(map[string]int),
	}
}

// counts returns how often each fault happened.
func (c *bankChaos) counts() map[string]int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.count)
}

func (c *bankChaos) note(fault string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.count[fault]++
}

func (c *bankChaos) chance(n int) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.random.IntN(n)
}

// bankDisruption is a fault that takes more than a message.
type bankDisruption struct {
	name string
	do   func(context.Context) error
}

func (c *bankChaos) disruptions() []bankDisruption {
	return []bankDisruption{
		{"backends terminated", c.terminate},
		{"server restarted (fast)", c.restart(pgserver.Fast)},
		{"all connections cut", func(context.Context) error { c.bank.proxy.CutAll(c.chance(2) == 0); return nil }},
		{"backends terminated", c.terminate},
		{"server restarted (immediate)", c.restart(pgserver.Immediate)},
		{"connections refused", c.refuse},
		{"backends terminated", c.terminate},
		{"server killed", c.kill},
		{"backend killed", c.killBackend},
	}
}

// run does harm for as long as the bank's configuration says, and leaves the server and
// the proxy as they should be.
func (c *bankChaos) run(ctx context.Context) (err error) {
	end := time.Now().Add(c.bank.config.Duration)
	c.bank.proxy.SetRule(c.rule)
	defer func() {
		c.bank.proxy.SetRule(nil)
		c.bank.proxy.Refuse(false)
		c.bank.proxy.Release()
	}()
	disruptions := c.disruptions()
	for round := 0; ; round++ {
		// In order, so that even a short run has one of each.
		for _, d := range disruptions {
			calm := 200*time.Millisecond + time.Duration(c.chance(300))*time.Millisecond
			must := c.bank.config.Thorough && round == 0
			if left := time.Until(end); !must && left < calm {
				return c.wait(ctx, left)
			}
			if err := c.wait(ctx, calm); err != nil {
				return err
			}
			if err := d.do(ctx); err != nil {
				if ctx.Err() != nil {
					return context.Cause(ctx)
				}
				return fmt.Errorf("certainty: %s: %w", d.name, err)
			}
			c.note(d.name)
		}
	}
}

// wait lets the messages' faults do their work and now and then lets go what they hold.
func (c *bankChaos) wait(ctx context.Context, d time.Duration) error {
	if err := commitPause(ctx, d); err != nil {
		return err
	}
	c.bank.proxy.Release()
	return nil
}

// rule decides what happens to a message. Around COMMIT more happens than elsewhere.
func (c *bankChaos) rule(m faultproxy.Message) faultproxy.Action {
	one := 400 // in so many messages something happens
	if m.SQL() == "COMMIT" || m.Type == 'C' && m.Direction == faultproxy.ToClient && bytes.HasPrefix(m.Body, []byte("COMMIT")) {
		one = 50
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.random.IntN(one) > 0 {
		return faultproxy.Action{}
	}
	action := faultproxy.Action{After: c.random.IntN(2) == 0, Reset: c.random.IntN(2) == 0}
	if !action.After {
		action.Bytes = c.random.IntN(len(m.Body) + 5)
	}
	switch c.random.IntN(12) {
	case 0, 1:
		action.Kind = faultproxy.BlackHole
		c.count["black hole"]++
	case 2:
		action.Kind = faultproxy.Stall
		c.count["stalled"]++
	case 3, 4:
		c.count["message delayed"]++
		return faultproxy.Action{Kind: faultproxy.Delay, Wait: time.Duration(1+c.random.IntN(20)) * time.Millisecond}
	case 5:
		c.count["message split"]++
		return faultproxy.Action{Kind: faultproxy.Split, Bytes: 1 + c.random.IntN(3)}
	default:
		action.Kind = faultproxy.Cut
		c.count["cut"]++
	}
	return action
}

// terminate ends a few sessions of the application, whatever they are doing.
func (c *bankChaos) terminate(ctx context.Context) error {
	some := 1 + c.chance(4)
	// After a crash the server may break connections that it has just accepted.
	return commitAwait(ctx, func() (bool, error) {
		_, err := c.bank.admin.ExecContext(ctx, `
			SELECT pg_terminate_backend(pid) FROM pg_stat_activity
			WHERE application_name = $1 ORDER BY random() LIMIT $2`, c.bank.application, some)
		return err == nil, err
	})
}

// refuse makes the server look as if it were not there.
func (c *bankChaos) refuse(ctx context.Context) error {
	c.bank.proxy.Refuse(true)
	defer c.bank.proxy.Refuse(false)
	c.bank.proxy.CutAll(c.chance(2) == 0)
	return commitPause(ctx, time.Duration(50+c.chance(250))*time.Millisecond)
}

// restart does not leave a server down that an interruption found so.
func (c *bankChaos) restart(mode pgserver.ShutdownMode) func(context.Context) error {
	return func(ctx context.Context) error { return c.server.Restart(context.WithoutCancel(ctx), mode) }
}

// kill takes the server's parent process away and starts another one, which recovers
// from the crash.
func (c *bankChaos) kill(ctx context.Context) error {
	if err := c.server.Kill(); err != nil {
		return err
	}
	return c.restart(pgserver.Immediate)(ctx)
}

// killBackend makes the server end all sessions and recover by itself.
func (c *bankChaos) killBackend(ctx context.Context) error {
	err := commitAwait(ctx, func() (bool, error) {
		var pid int
		err := c.bank.admin.QueryRowContext(ctx, `
			SELECT pid FROM pg_stat_activity WHERE application_name = $1 ORDER BY random() LIMIT 1`, c.bank.application).Scan(&pid)
		if err == nil {
			err = c.server.KillBackend(pid) // which may have ended by itself
		}
		return err == nil, err
	})
	return errors.Join(err, c.bank.answers(ctx))
}
