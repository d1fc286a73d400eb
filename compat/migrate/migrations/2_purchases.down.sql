DROP TABLE purchase;
ALTER TABLE customer DROP CONSTRAINT customer_name_key;
