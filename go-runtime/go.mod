module example.com/layerkit/go-runtime

go 1.24
