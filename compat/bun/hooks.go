package bun

import (
	"context"
	"fmt"

	"github.com/uptrace/bun"

	"github.com/pgretry/pgretry/compat/script"
)

var (
	_ bun.QueryHook             = noting{}
	_ bun.BeforeAppendModelHook = (*stock)(nil)
	_ bun.AfterInsertHook       = (*stock)(nil)
)

// notes is the context's key of what the hooks note, a *[]string.
type notes struct{}

func note(ctx context.Context, values ...any) {
	if noted, ok := ctx.Value(notes{}).(*[]string); ok {
		*noted = append(*noted, fmt.Sprint(values...))
	}
}

// noting is a hook that notes each query before it and after it.
type noting struct{}

// BeforeQuery notes it.
func (noting) BeforeQuery(ctx context.Context, e *bun.QueryEvent) context.Context {
	note(ctx, "before ", e.Operation())
	return ctx
}

// AfterQuery notes its error.
func (noting) AfterQuery(ctx context.Context, e *bun.QueryEvent) {
	note(ctx, "after ", e.Operation(), ": ", e.Err)
}

// BeforeAppendModel notes a row that is about to become text.
func (s *stock) BeforeAppendModel(ctx context.Context, _ bun.Query) error {
	note(ctx, "appending ", s.SKU)
	return nil
}

// AfterInsert notes that rows were inserted.
func (*stock) AfterInsert(ctx context.Context, _ *bun.InsertQuery) error {
	note(ctx, "inserted")
	return nil
}

// Hooked inserts, which the hooks of the model and of the database note.
func (t tx) Hooked(ctx context.Context, s script.Stock) (noted []string, err error) {
	err = t.InsertStock(context.WithValue(ctx, notes{}, &noted), []script.Stock{s})
	return noted, err
}
