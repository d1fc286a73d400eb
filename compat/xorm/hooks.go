package xorm

import (
	"context"
	"strings"

	"xorm.io/xorm/contexts"
)

func (s *stock) note(hook string) {
	if s.noted != nil {
		*s.noted = append(*s.noted, hook+" "+s.SKU)
	}
}

// BeforeInsert is a hook. AfterInsert, which there is too, would be called after COMMIT.
func (s *stock) BeforeInsert() { s.note("before insert") }

// AfterLoad is called for each row that is read.
func (s *stock) AfterLoad() { s.note("after load") }

type notedKey struct{}

// noteStatements is xorm's hook around each statement of a context that asks for it.
type noteStatements struct{}

// BeforeProcess comes before a statement.
func (noteStatements) BeforeProcess(c *contexts.ContextHook) (context.Context, error) {
	return c.Ctx, note(c, "before")
}

// AfterProcess comes after it, and may put another error in the place of its own.
func (noteStatements) AfterProcess(c *contexts.ContextHook) error {
	return note(c, "after")
}

func note(c *contexts.ContextHook, when string) error {
	if noted, ok := c.Ctx.Value(notedKey{}).(*[]string); ok {
		verb, _, _ := strings.Cut(c.SQL, " ")
		*noted = append(*noted, when+" "+verb)
	}
	return c.Err
}
