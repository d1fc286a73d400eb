package pgserver

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
)

const (
	// standbySignal is the file, in a data directory, that makes a server a standby.
	standbySignal = "standby.signal"
	// standbyName is what a standby calls itself at its primary.
	standbyName = "standby"
)

// NewStandby starts a standby of the server: a cluster of its own, with its own port and its own Stop, made from a copy
// of this server's and kept up to date by streaming replication. It returns when the standby accepts connections, for
// reading, and streams.
//
// Its application_name is "standby", for synchronous_standby_names, which the caller sets if commits shall wait for
// it, and should reset before the standby goes. Its settings are those given to Start for this server, then those given
// here; what ALTER SYSTEM changed does not pass on. Another primary_conninfo, with another application_name or a way
// through a proxy, can be set here. A replication slot makes the server keep its log until the standby's Stop, so that a
// standby can be away for long.
//
// The defaults of wal_level and the like suffice; tablespaces are not copied, and make it fail. The standby of a standby
// needs full_page_writes on the primary.
//
// The context bounds the start alone. If anything goes wrong, nothing is left behind. The error is [ErrStopped] after
// [Server.Stop] and [ErrExternal] for an external server.
func (s *Server) NewStandby(ctx context.Context, opts ...Option) (*Server, error) {
	o, err := resolve(opts)
	if err != nil {
		return nil, err
	}
	c, err := s.startStandby(ctx, o)
	if err != nil {
		return nil, fmt.Errorf("start a standby: %w", err)
	}
	return newServer(c), nil
}

func (s *Server) startStandby(ctx context.Context, o *options) (_ *cluster, err error) {
	primary := s.cluster
	if primary == nil {
		return nil, ErrExternal
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(primary.life, cancel)()
	defer func() {
		if err != nil && primary.life.Err() != nil {
			err = fmt.Errorf("%w: %w", ErrStopped, err)
		}
	}()

	settings := maps.Clone(primary.settings)
	delete(settings, "primary_conninfo") // the primary may itself be a standby
	delete(settings, "primary_slot_name")
	maps.Copy(settings, o.settings)
	o.settings = settings
	c := newCluster(o, primary.binDir, primary.account)
	fill := func(ctx context.Context) error {
		slot, err := primary.reserve(ctx)
		if err != nil {
			return err
		}
		c.gone = func() {
			if err := primary.release(slot); err != nil {
				c.logf("pgserver: %v", err)
			}
		}
		return c.copyFrom(ctx, primary, slot)
	}
	if err := c.start(ctx, fill); err != nil {
		return nil, err
	}
	limited, cancelLimited := context.WithTimeout(ctx, startLimit)
	defer cancelLimited()
	if err := c.awaitStreaming(limited); err != nil {
		return nil, errors.Join(err, c.destroy())
	}
	return c, nil
}

// reserve makes the primary keep its log from now on, for a standby, and returns the name of the replication slot.
func (c *cluster) reserve(ctx context.Context) (slot string, err error) {
	db, err := c.connect()
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	if err := holds(ctx, db, "select current_setting('max_wal_senders')::int > 0"); err != nil {
		return "", fmt.Errorf("the server sends its log to nobody: %w", err)
	}
	slot = standbyName + "_" + strings.ToLower(rand.Text())
	if _, err := db.ExecContext(ctx, "select pg_create_physical_replication_slot($1, true)", slot); err != nil {
		return "", fmt.Errorf("create a replication slot: %w", err)
	}
	return slot, nil
}

// release drops a replication slot, if the primary runs: what it would keep for ever is of no use any more.
func (c *cluster) release(slot string) (err error) {
	p := c.latest()
	select {
	case <-p.exited:
		return nil
	default:
	}
	ctx, cancel := context.WithTimeout(c.life, stopLimit)
	defer cancel()
	db, err := c.connect()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	err = c.await(ctx, p, "the replication slot is dropped", func() error {
		// The primary may not have noticed yet that the standby is gone.
		for _, query := range []string{
			"select pg_terminate_backend(active_pid) from pg_replication_slots where slot_name = $1 and active",
			"select pg_drop_replication_slot(slot_name) from pg_replication_slots where slot_name = $1 and not active",
		} {
			if _, err := db.ExecContext(ctx, query, slot); err != nil {
				return err
			}
		}
		return holds(ctx, db, "select not exists (select from pg_replication_slots where slot_name = $1)", slot)
	})
	if c.life.Err() != nil {
		return nil // the primary is going, and the slot with it
	}
	return err
}

// copyFrom fills the data directory with a copy of the primary's that is set up as its standby.
func (c *cluster) copyFrom(ctx context.Context, primary *cluster, slot string) error {
	// The standby fetches the log itself.
	if err := c.copyData(ctx, primary); err != nil {
		return err
	}
	// It overrides postgresql.conf. A name in synchronous_standby_names would make commits wait for ever after a
	// promotion.
	if err := os.Truncate(filepath.Join(c.dataDir(), "postgresql.auto.conf"), 0); err != nil {
		return fmt.Errorf("reset the settings: %w", err)
	}
	if err := c.makeStandby(); err != nil {
		return err
	}
	settings := maps.Clone(throwaway)
	settings["primary_conninfo"] = fmt.Sprintf("host=%s port=%d user=%s application_name=%s",
		quoteValue(primary.socketDir()), primary.port, superuser, standbyName)
	settings["primary_slot_name"] = slot
	settings["wal_retrieve_retry_interval"] = "100ms" // the default of 5s is long when primaries come and go
	maps.Copy(settings, c.settings)
	return c.configure(settings)
}

// makeStandby makes the cluster a standby when it is started next.
func (c *cluster) makeStandby() error {
	signal := filepath.Join(c.dataDir(), standbySignal)
	err := os.WriteFile(signal, nil, 0o600)
	if err == nil {
		err = c.account.give(signal)
	}
	if err != nil {
		return fmt.Errorf("make the cluster a standby: %w", err)
	}
	return nil
}

func (c *cluster) awaitStreaming(ctx context.Context) (err error) {
	db, err := c.connect()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	return c.await(ctx, c.latest(), "the standby streams", func() error {
		return holds(ctx, db, "select exists (select from pg_stat_wal_receiver where status = 'streaming')")
	})
}

// Promote makes a standby the primary of a new timeline, and returns when it accepts writes. Its former primary is
// neither told nor needed, and runs on if it runs. Promoting a server that is no standby is an error.
//
// If the context ends first, the promotion may happen nevertheless. The error is [ErrStopped] after [Server.Stop] and
// [ErrExternal] for an external server.
func (s *Server) Promote(ctx context.Context) error {
	return s.inTurn(ctx, "promote the standby", func(ctx context.Context, c *cluster) (err error) {
		db, err := c.connect()
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, db.Close()) }()
		if err := holds(ctx, db, "select pg_promote(wait => false)"); err != nil {
			return err
		}
		return c.await(ctx, c.latest(), "the server accepts writes", func() error {
			return holds(ctx, db, "select not pg_is_in_recovery()")
		})
	})
}

// holds returns an error unless the query says true.
func holds(ctx context.Context, db *sql.DB, query string, args ...any) error {
	var yes bool
	if err := db.QueryRowContext(ctx, query, args...).Scan(&yes); err != nil {
		return fmt.Errorf("%s: %w", query, err)
	}
	if !yes {
		return fmt.Errorf("%s: it says no", query)
	}
	return nil
}
