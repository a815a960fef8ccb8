module example.com/FUNCTION

go 1.24
