CREATE TABLE IF NOT EXISTS account (
	id      bigint PRIMARY KEY,
	balance bigint NOT NULL
);
