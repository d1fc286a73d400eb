// Package schema tells ent what there is.
package schema

import (
	"entgo.io/ent"
	"entgo.io/ent/schema/field"
)

// Wallet is a row of the table wallets.
type Wallet struct{ ent.Schema }

// Fields are its columns besides the id.
func (Wallet) Fields() []ent.Field {
	return []ent.Field{field.Int("balance")}
}
