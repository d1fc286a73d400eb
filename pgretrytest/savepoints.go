package pgretrytest

import "github.com/pgretry/pgretry/internal/sqltext"

// savepoints are the names of one attempt's savepoints by those of another's. gorm draws
// them by lot.
type savepoints map[string]string

// same says whether two texts are the same but for the names of savepoints.
func (s savepoints) same(a, b string) bool {
	x, y := sqltext.Analyze(a), sqltext.Analyze(b)
	if x.Savepoint == "" || y.Savepoint == "" || x.Keyword != y.Keyword {
		return a == b
	}
	name, known := s[x.Savepoint]
	if !known || x.Keyword == sqltext.Savepoint {
		s[x.Savepoint] = y.Savepoint
		return true
	}
	return name == y.Savepoint
}
