module github.com/pgretry/pgretry/examples

go 1.26.0

replace github.com/pgretry/pgretry => ../
