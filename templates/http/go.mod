module example.com/FUNCTION

go 1.25

require example.com/layerkit/go-runtime RUNTIME_VERSION
