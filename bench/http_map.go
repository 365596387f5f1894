// A minimal server for the same requests with Go's net/http: a map with a lock.
//
//	http_map HOST:PORT      (PUT and GET /v1/KEY)
package main

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
)

func main() {
	var lock sync.RWMutex
	values := map[string][]byte{}
	handle := func(w http.ResponseWriter, r *http.Request) {
		key := strings.TrimPrefix(r.URL.Path, "/v1/")
		switch r.Method {
		case http.MethodGet:
			lock.RLock()
			value, found := values[key]
			lock.RUnlock()
			if !found {
				http.Error(w, "key not found", http.StatusNotFound)
				return
			}
			w.Header().Set("Content-Type", "text/plain")
			w.Write(value)
		case http.MethodPut:
			value, err := io.ReadAll(r.Body)
			if err != nil {
				http.Error(w, err.Error(), http.StatusBadRequest)
				return
			}
			lock.Lock()
			values[key] = value
			lock.Unlock()
			w.WriteHeader(http.StatusCreated)
		}
	}
	listening, err := net.Listen("tcp", os.Args[1])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println("listening at", listening.Addr())
	http.Serve(listening, http.HandlerFunc(handle))
}
