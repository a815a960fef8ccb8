module line

go 1.24
