module github.com/pgretry/pgretry/compat

go 1.26.0

replace github.com/pgretry/pgretry => ../
