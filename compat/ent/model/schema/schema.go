// Package schema describes the application's tables to ent.
package schema

import (
	"entgo.io/ent"
	"entgo.io/ent/dialect"
	"entgo.io/ent/dialect/entsql"
	"entgo.io/ent/schema"
	"entgo.io/ent/schema/edge"
	"entgo.io/ent/schema/field"
	"github.com/lib/pq"
)

// table names a table, which ent would put in the plural.
func table(name string) []schema.Annotation {
	return []schema.Annotation{entsql.Annotation{Table: name}}
}

// column is a column's type.
func column(name string) map[string]string { return map[string]string{dialect.Postgres: name} }

// Account is the table account.
type Account struct{ ent.Schema }

// Annotations names the table.
func (Account) Annotations() []schema.Annotation { return table("account") }

// Fields are its columns.
func (Account) Fields() []ent.Field {
	return []ent.Field{field.Int64("id"), field.Int64("balance")}
}

// Customer is the table customer.
type Customer struct{ ent.Schema }

// Annotations names the table.
func (Customer) Annotations() []schema.Annotation { return table("customer") }

// Fields are its columns.
func (Customer) Fields() []ent.Field {
	return []ent.Field{field.Int64("id"), field.String("name").Unique()}
}

// Edges are what it has bought.
func (Customer) Edges() []ent.Edge {
	return []ent.Edge{edge.To("purchases", Purchase.Type)}
}

// Purchase is the table purchase.
type Purchase struct{ ent.Schema }

// Annotations names the table.
func (Purchase) Annotations() []schema.Annotation { return table("purchase") }

// Fields are its columns.
func (Purchase) Fields() []ent.Field {
	return []ent.Field{field.Int64("id"), field.Int64("customer_id"), field.String("item")}
}

// Edges are who has bought it.
func (Purchase) Edges() []ent.Edge {
	return []ent.Edge{edge.From("customer", Customer.Type).Ref("purchases").Field("customer_id").Unique().Required()}
}

// Stock is the table stock.
type Stock struct{ ent.Schema }

// Annotations names the table.
func (Stock) Annotations() []schema.Annotation { return table("stock") }

// Fields are its columns; its primary key is not called id.
func (Stock) Fields() []ent.Field {
	return []ent.Field{field.String("id").StorageKey("sku"), field.Int64("quantity")}
}

// Sample is the table sample.
type Sample struct{ ent.Schema }

// Annotations names the table.
func (Sample) Annotations() []schema.Annotation { return table("sample") }

// Fields are its columns.
func (Sample) Fields() []ent.Field {
	return []ent.Field{
		field.Int64("id"),
		field.Int16("small"),
		field.Float("float"),
		field.String("amount").SchemaType(column("numeric(12,4)")),
		field.Bool("flag"),
		field.Text("label"),
		field.Bytes("raw"),
		field.Time("at"),
		field.String("doc").SchemaType(column("jsonb")),
		field.Other("tags", pq.StringArray{}).SchemaType(column("text[]")),
		field.Text("note").Optional().Nillable(),
	}
}
