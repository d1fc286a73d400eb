DROP TABLE stock, customer, account;
