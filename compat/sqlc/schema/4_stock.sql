CREATE TABLE IF NOT EXISTS stock (
	sku      text PRIMARY KEY,
	quantity bigint NOT NULL
);
