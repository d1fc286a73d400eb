package pgretry

import "context"

type (
	nameKey        struct{}
	idempotenceKey struct{}
	withoutReplay  struct{}
)

// ContextWithName returns a context under which transactions have the name: on
// spans, in events, in the log. Names should be few and say what is done, such
// as "transfer".
func ContextWithName(ctx context.Context, name string) context.Context {
	return context.WithValue(ctx, nameKey{}, name)
}

func nameFrom(ctx context.Context) string {
	name, _ := ctx.Value(nameKey{}).(string)
	return name
}

// ContextWithIdempotence returns a context with the caller's word that a closure
// run under it may be run again even if it has committed something: that its
// writes are such that doing them twice is the same as doing them once. Without
// it that is [ErrAlreadyCommitted]. Loops inside the closure inherit the word.
func ContextWithIdempotence(ctx context.Context) context.Context {
	return context.WithValue(ctx, idempotenceKey{}, true)
}

func idempotenceFrom(ctx context.Context) bool {
	word, _ := ctx.Value(idempotenceKey{}).(bool)
	return word
}

// ContextWithoutReplay returns a context under which the driver replays nothing by
// itself: a transaction begun under it, or a statement executed under it outside a
// transaction, is passed through, and its conflicts are returned. [RunInTx] and
// [Retry] do not mind: they were asked for.
func ContextWithoutReplay(ctx context.Context) context.Context {
	return context.WithValue(ctx, withoutReplay{}, true)
}

func withoutReplayFrom(ctx context.Context) bool {
	word, _ := ctx.Value(withoutReplay{}).(bool)
	return word
}
