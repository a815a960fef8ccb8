module example.com/feed

go 1.25

require example.com/layerkit/go-runtime v0.1.0-h7247ada9876a
