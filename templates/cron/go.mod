module example.com/FUNCTION

go 1.24

require example.com/layerkit/go-runtime RUNTIME_VERSION
