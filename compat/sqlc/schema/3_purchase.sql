CREATE TABLE IF NOT EXISTS purchase (
	id          bigserial PRIMARY KEY,
	customer_id bigint NOT NULL REFERENCES customer (id),
	item        text NOT NULL
);
