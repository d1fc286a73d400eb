CREATE TABLE IF NOT EXISTS account (
    id      integer PRIMARY KEY,
    balance integer NOT NULL
);
