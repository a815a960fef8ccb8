module example.com/layerkit/bench-runtime

go 1.25

require example.com/layerkit/go-runtime v0.0.0

replace example.com/layerkit/go-runtime => ../../go-runtime
