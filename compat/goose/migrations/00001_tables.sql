-- +goose Up
CREATE TABLE account (id bigint PRIMARY KEY, balance bigint NOT NULL);
CREATE TABLE customer (id bigserial PRIMARY KEY, name text NOT NULL);
CREATE TABLE stock (sku text PRIMARY KEY, quantity bigint NOT NULL);

-- +goose StatementBegin
CREATE FUNCTION nothing() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	NULL;
END $$;
-- +goose StatementEnd

-- +goose Down
DROP FUNCTION nothing;
DROP TABLE stock, customer, account;
