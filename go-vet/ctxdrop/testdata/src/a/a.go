package a

import (
	"context"
	"net/http"
	"time"
)

func use(context.Context) {}

func dropped(ctx context.Context) {
	use(context.Background()) // want `context.Background\(\) drops ctx`
	use(context.TODO())       // want `context.TODO\(\) drops ctx`
	use(ctx)
}

func handler(w http.ResponseWriter, r *http.Request) {
	use(context.Background()) // want `drops r.Context\(\)`
}

func literal(ctx context.Context) {
	func() {
		use(context.Background()) // want `drops ctx`
	}()
}

func none() { use(context.Background()) }

func blank(_ context.Context) { use(context.Background()) }

func usual(ctx context.Context) {
	if ctx == nil {
		ctx = context.Background()
	}
	use(ctx)
}

func cleanup(ctx context.Context) {
	defer func() {
		use(context.Background())
	}()
	<-ctx.Done()
	stop, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	use(stop)
}

func selected(ctx context.Context, work chan int) {
	for {
		select {
		case <-ctx.Done():
			use(context.Background())
			return
		case <-work:
			use(context.Background()) // want `drops ctx`
		}
	}
}

func beside(ctx context.Context) {
	go func() { use(context.Background()) }()
}

func allowed(ctx context.Context) {
	//layerkit:allow ctxdrop the ledger outlives its callers
	use(context.Background())
	//layerkit:allow ctxdrop
	use(context.Background()) // want `drops ctx`
	//layerkit:allow ctxgo another pass
	use(context.Background()) // want `drops ctx`
}

type values struct {
	context.Context
	from context.Context
}

func onlyValues(ctx context.Context) context.Context {
	return &values{Context: context.Background(), from: ctx}
}

type hooks struct{ credentials func() }

func kept(ctx context.Context, h *hooks) func() {
	h.credentials = func() { use(context.Background()) }
	_ = hooks{credentials: func() { use(context.Background()) }}
	local := func() {
		use(context.Background()) // want `drops ctx`
	}
	local()
	return func() {
		use(context.Background())
		func(ctx context.Context) {
			use(context.Background()) // want `drops ctx`
		}(nil)
	}
}

func startMonitor(context.Context) {}

func release(context.Context) {}

func runAtShutdown(context.Context) {}

func exitProcess(context.Context) {}

func sendRelease(ctx context.Context) { use(context.Background()) }

func quiet(request *http.Request) *http.Request {
	return request.WithContext(context.Background())
}

func lives(ctx context.Context) {
	startMonitor(context.Background())
	release(context.Background())
	runAtShutdown(context.Background())
	exitProcess(context.Background())
	defer use(context.Background())
	go use(context.Background())
	own, cancel := context.WithCancel(context.Background())
	defer cancel()
	use(own)
	late, stop := context.WithTimeout(context.Background(), time.Second) // want `drops ctx`
	defer stop()
	use(late)
}

type config struct{}

func copyConfig(to, from context.Context) context.Context { return to }

func configOf(context.Context) config { return config{} }

type service struct{}

type maker struct{}

func (maker) NewService(context.Context) (*service, error) { return nil, nil }

type holder struct {
	service *service
	maker   maker
}

func (h *holder) carriesOver(ctx context.Context, isAsync bool) (*service, error) {
	detached := context.Background()
	detached = copyConfig(detached, ctx)
	use(detached)
	use(copyConfig(context.Background(), ctx))
	if configOf(ctx) != configOf(context.Background()) {
		use(ctx)
	}
	if isAsync {
		ctx = context.Background()
	}
	var err error
	h.service, err = h.maker.NewService(context.Background())
	if err != nil {
		return h.maker.NewService(context.Background())
	}
	local, err := h.maker.NewService(context.Background()) // want `drops ctx`
	fresh := context.Background()                          // want `drops ctx`
	use(fresh)
	return local, err
}

func onClose(func()) {}

func only(func()) {}

func registers(ctx context.Context) {
	onClose(func() { use(context.Background()) })
	only(func() {
		use(context.Background()) // want `drops ctx`
	})
}

func explains(ctx context.Context) {
	// A fresh context, so that the block is marked in full on shutdown.
	use(context.Background())
	// TODO: pass ctx?
	use(context.Background()) // want `drops ctx`
	// Nothing about it.
	use(context.Background()) // want `drops ctx`
	// A context of some kind.
	use(context.TODO()) // want `drops ctx`
}

func shutdownAll() func(context.Context) {
	return func(ctx context.Context) { use(context.Background()) }
}

func stops(ctx context.Context) (func(), context.Context) {
	stop := func() { use(context.Background()) }
	return stop, ctx
}
