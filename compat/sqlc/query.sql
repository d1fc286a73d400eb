-- name: Pay :exec
UPDATE account SET balance = balance + sqlc.arg(amount) WHERE id = sqlc.arg(account);

-- name: LockBalance :one
SELECT balance FROM account WHERE id = $1 FOR UPDATE;

-- name: CreateCustomer :one
INSERT INTO customer (name) VALUES ($1) RETURNING *;

-- name: CreatePurchase :one
INSERT INTO purchase (customer_id, item) VALUES ($1, $2) RETURNING *;

-- name: CreatePurchases :many
INSERT INTO purchase (customer_id, item)
SELECT sqlc.arg(customer_id), unnest(sqlc.arg(items)::text[])
RETURNING *;

-- name: ListCustomers :many
SELECT * FROM customer WHERE name LIKE sqlc.arg(prefix)::text || '%' ORDER BY name;

-- name: ListPurchases :many
SELECT * FROM purchase WHERE customer_id = ANY(sqlc.arg(customers)::bigint[]) ORDER BY customer_id, item;

-- name: InsertStock :exec
INSERT INTO stock (sku, quantity)
SELECT unnest(sqlc.arg(skus)::text[]), unnest(sqlc.arg(quantities)::bigint[]);

-- name: UpsertStock :exec
INSERT INTO stock (sku, quantity)
SELECT unnest(sqlc.arg(skus)::text[]), unnest(sqlc.arg(quantities)::bigint[])
ON CONFLICT (sku) DO UPDATE SET quantity = stock.quantity + excluded.quantity;

-- name: AddToStock :execrows
UPDATE stock SET quantity = quantity + sqlc.arg(quantity) WHERE sku LIKE sqlc.arg(prefix)::text || '%';

-- name: ListStock :many
SELECT * FROM stock WHERE sku LIKE sqlc.arg(prefix)::text || '%' ORDER BY sku;

-- name: Quantity :one
SELECT quantity FROM stock WHERE sku = $1;

-- name: InsertSample :exec
INSERT INTO sample (id, small, float, amount, flag, label, raw, at, doc, tags, note)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11);

-- name: LoadSample :one
SELECT * FROM sample WHERE id = $1;
