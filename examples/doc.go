// Package examples holds small complete programs to copy from, one in each folder.
// Each takes the DSN of a database as its argument or, but for quickstart, from
// DATABASE_URL, and makes one small table there, account, accounts, device or doctor,
// whose rows it resets: use a database for trying things out. Its tests paste them into
// an empty module and run them.
package examples
