-- name: ResetAccount :exec
INSERT INTO account (id, balance) VALUES ($1, $2)
ON CONFLICT (id) DO UPDATE SET balance = EXCLUDED.balance;

-- name: LockAccount :one
SELECT id, balance FROM account WHERE id = $1 FOR UPDATE;

-- name: AddToAccount :exec
UPDATE account SET balance = balance + @amount WHERE id = @id;
