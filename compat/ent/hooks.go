package ent

import (
	"context"
	"fmt"

	"github.com/pgretry/pgretry/compat/ent/model"
	"github.com/pgretry/pgretry/compat/ent/model/hook"
	"github.com/pgretry/pgretry/compat/script"
)

// notes is the context's key of what the hook notes, a *[]string.
type notes struct{}

// noting is a hook that notes each mutation of stock before it and after it.
func noting(next model.Mutator) model.Mutator {
	return hook.StockFunc(func(ctx context.Context, m *model.StockMutation) (model.Value, error) {
		noted, ok := ctx.Value(notes{}).(*[]string)
		if !ok {
			return next.Mutate(ctx, m)
		}
		sku, _ := m.ID()
		*noted = append(*noted, fmt.Sprint("before ", m.Op(), " ", sku))
		value, err := next.Mutate(ctx, m)
		if err == nil {
			*noted = append(*noted, fmt.Sprint("after ", m.Op(), " ", sku))
		}
		return value, err
	})
}

// Hooked creates, which the hook notes.
func (t tx) Hooked(ctx context.Context, stock script.Stock) (noted []string, err error) {
	err = t.client.Stock.Create().SetID(stock.SKU).SetQuantity(stock.Quantity).
		Exec(context.WithValue(ctx, notes{}, &noted))
	return noted, err
}
