module github.com/pgretry/pgretry/bench

go 1.26.0

replace github.com/pgretry/pgretry => ../
