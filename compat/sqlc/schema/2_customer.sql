CREATE TABLE IF NOT EXISTS customer (
	id   bigserial PRIMARY KEY,
	name text NOT NULL UNIQUE
);
