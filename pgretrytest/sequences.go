package pgretrytest

import (
	"context"
	"fmt"
	"strings"

	"github.com/pgretry/pgretry/internal/abort"
)

// sequences is where the sequences of a database stand. A rollback does not take back
// the numbers that were drawn, so they are set back for each attempt.
type sequences struct {
	on    abort.Session
	query string // for where they stand, "" if there is none
	began map[string]string
}

// listSequences is a query for the sequences that can be read and set. CASE keeps the server
// from asking for the privileges of what is no sequence, which is an error.
const listSequences = `SELECT c.oid::text, pg_catalog.quote_ident(n.nspname) || '.' || pg_catalog.quote_ident(c.relname)
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE CASE WHEN c.relkind = 'S' AND c.relpersistence <> 't' AND pg_catalog.has_schema_privilege(n.oid, 'USAGE')
	THEN pg_catalog.has_sequence_privilege(c.oid, 'SELECT') AND pg_catalog.has_sequence_privilege(c.oid, 'UPDATE') END%s
ORDER BY 1`

func (r *reader) sequences(ctx context.Context, on abort.Session) (*sequences, error) {
	list, err := on.Query(ctx, fmt.Sprintf(listSequences, r.condition))
	if err != nil {
		return nil, fmt.Errorf("list the sequences: %w", err)
	}
	parts := make([]string, len(list))
	for i, row := range list {
		parts[i] = fmt.Sprintf(`SELECT '%s', last_value::text || ', ' || is_called::text FROM %s`, *row[0], *row[1])
	}
	s := &sequences{on: on, query: strings.Join(parts, " UNION ALL ")}
	s.began, err = s.stand(ctx)
	return s, err
}

// stand returns the arguments of setval by the sequences' identifiers.
func (s *sequences) stand(ctx context.Context) (map[string]string, error) {
	if s.query == "" {
		return nil, nil
	}
	list, err := s.on.Query(ctx, s.query)
	if err != nil {
		return nil, fmt.Errorf("read the sequences: %w", err)
	}
	found := make(map[string]string)
	for _, row := range list {
		found[*row[0]] = *row[1]
	}
	return found, nil
}

// setBack sets the sequences to where they stood at first.
func (s *sequences) setBack(ctx context.Context) error {
	now, err := s.stand(ctx)
	if err != nil {
		return err
	}
	for id, began := range s.began {
		if now[id] != began {
			if err := s.on.Exec(ctx, fmt.Sprintf(`SELECT pg_catalog.setval(%s::pg_catalog.oid::pg_catalog.regclass, %s)`, id, began)); err != nil {
				return fmt.Errorf("set a sequence back: %w", err)
			}
		}
	}
	return nil
}

// forgetIn has a session forget the numbers that it drew in advance.
func (s *sequences) forgetIn(ctx context.Context, session abort.Session) error {
	if s.query == "" {
		return nil
	}
	if err := session.Exec(ctx, `DISCARD SEQUENCES`); err != nil {
		return fmt.Errorf("discard the sequences: %w", err)
	}
	return nil
}
