-- +goose NO TRANSACTION
-- +goose Up
CREATE TABLE sample (id bigint PRIMARY KEY, small smallint NOT NULL,
	float double precision NOT NULL, amount numeric(12, 4) NOT NULL, flag boolean NOT NULL,
	label text NOT NULL, raw bytea NOT NULL, at timestamptz NOT NULL, doc jsonb NOT NULL,
	tags text[] NOT NULL, note text);

-- +goose Down
DROP TABLE sample;
