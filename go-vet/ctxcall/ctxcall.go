// Package ctxcall finds calls over a network, to a database or of a program that take no context
// where one is at hand: they go on when their caller has given up.
package ctxcall

import (
	"go/ast"

	"golang.org/x/tools/go/analysis"

	"example.com/layerkit/go-vet/internal/at"
)

// Analyzer is the pass.
var Analyzer = &analysis.Analyzer{
	Name: "ctxcall",
	Doc:  "find http, sql, net and exec calls without a context in functions that have one",
	URL:  "https://pkg.go.dev/context",
	Run:  run,
}

// instead is what to call for each call.
var instead = map[string]string{
	"net.Dial":               "(&net.Dialer{}).DialContext",
	"net.DialTimeout":        "(&net.Dialer{Timeout: ...}).DialContext",
	"net.Dialer.Dial":        "DialContext",
	"net.LookupHost":         "net.DefaultResolver.LookupHost",
	"net.LookupIP":           "net.DefaultResolver.LookupIP",
	"net.LookupAddr":         "net.DefaultResolver.LookupAddr",
	"net.LookupCNAME":        "net.DefaultResolver.LookupCNAME",
	"net.LookupTXT":          "net.DefaultResolver.LookupTXT",
	"net.LookupSRV":          "net.DefaultResolver.LookupSRV",
	"net.LookupMX":           "net.DefaultResolver.LookupMX",
	"crypto/tls.Dial":        "(&tls.Dialer{Config: ...}).DialContext",
	"crypto/tls.Dialer.Dial": "DialContext",
	"os/exec.Command":        "exec.CommandContext",
	"net/http.NewRequest":    "http.NewRequestWithContext",
}

func init() {
	for _, name := range []string{"Get", "Head", "Post", "PostForm"} {
		instead["net/http."+name] = "http.NewRequestWithContext and Do"
		instead["net/http.Client."+name] = "http.NewRequestWithContext and Do"
	}
	for kind, names := range map[string][]string{
		"DB":   {"Begin", "Exec", "Ping", "Prepare", "Query", "QueryRow"},
		"Tx":   {"Exec", "Prepare", "Query", "QueryRow", "Stmt"},
		"Stmt": {"Exec", "Query", "QueryRow"},
	} {
		for _, name := range names {
			to := name + "Context"
			if name == "Begin" {
				to = "BeginTx"
			}
			instead["database/sql."+kind+"."+name] = to
		}
	}
}

func run(pass *analysis.Pass) (any, error) {
	at.Functions(pass, func(f *at.Function) {
		name := f.Context(pass.TypesInfo)
		if name == "" || f.IsDefer {
			return
		}
		var found []*ast.CallExpr
		getsContext, isDaemon := givesRequest(pass, f), watchesDone(f)
		at.Own(f.Body, func(node ast.Node) bool {
			if selector, ok := node.(*ast.SelectorExpr); ok && selector.Sel.Name == "SysProcAttr" {
				isDaemon = true // in a session or group of its own: it is to live on
			}
			call, ok := node.(*ast.CallExpr)
			if !ok {
				return true
			}
			getsContext = getsContext || takesBoth(pass, call)
			callee := at.Callee(pass.TypesInfo, call)
			switch full := at.Name(callee); {
			case full == "net/http.Request.WithContext" || full == "net/http.Request.Clone":
				getsContext = true
			case instead[full] != "" && callee.Pkg() != pass.Pkg:
				found = append(found, call)
			}
			return true
		})
		for _, call := range found {
			full := at.Name(at.Callee(pass.TypesInfo, call))
			if (full == "net/http.NewRequest" && getsContext) || (full == "os/exec.Command" && isDaemon) {
				continue
			}
			at.Report(pass, call, "%s takes no context, and %s is at hand: use %s",
				full, name, instead[full])
		}
	})
	return nil, nil
}

// watchesDone says whether the function waits for the end of a context somewhere: then it ends by
// itself what it started.
func watchesDone(f *at.Function) bool {
	found := false
	ast.Inspect(f.Body, func(node ast.Node) bool {
		if call, ok := at.Received(node).(*ast.CallExpr); ok {
			selector, ok := call.Fun.(*ast.SelectorExpr)
			found = found || (ok && selector.Sel.Name == "Done")
		}
		return !found
	})
	return found
}

// takesBoth says whether a call gets a request and a context: it will put the one into the other.
func takesBoth(pass *analysis.Pass, call *ast.CallExpr) bool {
	request, context := false, false
	for _, argument := range call.Args {
		if kind := pass.TypesInfo.TypeOf(argument); kind != nil {
			request = request || at.IsNamed(kind, "net/http", "Request")
			context = context || at.IsContext(kind)
		}
	}
	return request && context
}

// givesRequest says whether the function returns a request: who sends it gives it the context.
func givesRequest(pass *analysis.Pass, f *at.Function) bool {
	if f.Type.Results == nil {
		return false
	}
	for _, field := range f.Type.Results.List {
		if at.IsNamed(pass.TypesInfo.TypeOf(field.Type), "net/http", "Request") {
			return true
		}
	}
	return false
}
