package jobs

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/pgretry/pgretry/compat/script"
)

// channel is the one that says that there are jobs to do. What is said by a transaction
// is heard when it has committed.
const channel = "job_available"

// Enqueue inserts a job, unless there is one with that key, and notifies the clients. The
// lower the priority, the sooner it is done.
func (t Tx) Enqueue(ctx context.Context, kind, key string, priority int, args any) error {
	text, err := json.Marshal(args)
	if err != nil {
		return err
	}
	// The update that changes nothing is River's, for RETURNING to have a row.
	if _, err := t.Exec(ctx, `INSERT INTO job (kind, unique_key, priority, args) VALUES ($1, $2, $3, $4)
		ON CONFLICT (unique_key) DO UPDATE SET kind = job.kind`, kind, key, priority, string(text)); err != nil {
		return err
	}
	return t.notify(ctx)
}

func (t Tx) notify(ctx context.Context) error {
	_, err := t.Exec(ctx, `SELECT pg_notify($1, $2)`, channel, "")
	return err
}

// CreatePurchase inserts a job that is about the purchase.
func (t Tx) CreatePurchase(ctx context.Context, customer int64, item string) (id int64, err error) {
	if id, err = t.Tx.CreatePurchase(ctx, customer, item); err != nil {
		return 0, err
	}
	return id, t.Enqueue(ctx, "deliver", fmt.Sprintf("deliver-%d", id), 1, map[string]any{"purchase": id})
}

// CreateWithPurchases does for each of them.
func (t Tx) CreateWithPurchases(ctx context.Context, name string, items ...string) (c script.Customer, err error) {
	c.Name = name
	if c.ID, err = t.CreateCustomer(ctx, name); err != nil {
		return c, err
	}
	for _, item := range items {
		id, err := t.CreatePurchase(ctx, c.ID, item)
		if err != nil {
			return c, err
		}
		c.Purchases = append(c.Purchases, script.Purchase{ID: id, CustomerID: c.ID, Item: item})
	}
	return c, nil
}
