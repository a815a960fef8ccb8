module example.com/feed

go 1.25

require example.com/layerkit/go-runtime v0.1.0-he88ac211c15a
