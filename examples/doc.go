// Package examples holds small complete programs to copy from, one in each folder;
// README.md lists them. Each takes the DSN of a database as its argument or, but for
// quickstart, from DATABASE_URL, and makes one small table there, account, accounts,
// device, doctor or wallets, whose rows it resets or adds to: use a database for trying
// things out. Its tests paste each into an empty module and run it.
package examples
