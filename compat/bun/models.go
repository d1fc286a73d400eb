package bun

import (
	"encoding/json"
	"time"

	"github.com/uptrace/bun"

	"github.com/pgretry/pgretry/compat/script"
)

type account struct {
	bun.BaseModel `bun:"table:account"`

	ID      int64 `bun:",pk"`
	Balance int64 `bun:",notnull"`
}

type customer struct {
	bun.BaseModel `bun:"table:customer"`

	ID        int64      `bun:",pk,autoincrement"`
	Name      string     `bun:",notnull,unique"`
	Purchases []purchase `bun:"rel:has-many,join:id=customer_id"`
}

type purchase struct {
	bun.BaseModel `bun:"table:purchase"`

	ID         int64     `bun:",pk,autoincrement"`
	CustomerID int64     `bun:",notnull"`
	Item       string    `bun:",notnull"`
	Customer   *customer `bun:"rel:belongs-to,join:customer_id=id"`
}

type stock struct {
	bun.BaseModel `bun:"table:stock"`

	SKU      string `bun:"sku,pk"`
	Quantity int64  `bun:",notnull"`
}

type sample struct {
	bun.BaseModel `bun:"table:sample"`

	ID     int64           `bun:",pk"`
	Small  int16           `bun:",notnull"`
	Float  float64         `bun:",notnull"`
	Amount string          `bun:"type:numeric(12,4),notnull"`
	Flag   bool            `bun:",notnull"`
	Label  string          `bun:",notnull"`
	Raw    []byte          `bun:",notnull"`
	At     time.Time       `bun:",notnull"`
	Doc    json.RawMessage `bun:"type:jsonb,notnull"`
	Tags   []string        `bun:",array,notnull"`
	Note   *string
}

func (c customer) row() script.Customer {
	row := script.Customer{ID: c.ID, Name: c.Name}
	for _, p := range c.Purchases {
		row.Purchases = append(row.Purchases, script.Purchase{ID: p.ID, CustomerID: p.CustomerID, Item: p.Item})
	}
	return row
}

func models(rows []script.Stock) []stock {
	list := make([]stock, len(rows))
	for i, row := range rows {
		list[i] = stock{SKU: row.SKU, Quantity: row.Quantity}
	}
	return list
}
