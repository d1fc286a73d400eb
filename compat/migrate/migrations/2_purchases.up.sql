BEGIN;
ALTER TABLE customer ADD CONSTRAINT customer_name_key UNIQUE (name);
CREATE TABLE purchase (id bigserial PRIMARY KEY,
	customer_id bigint NOT NULL REFERENCES customer (id), item text NOT NULL);
COMMIT;
