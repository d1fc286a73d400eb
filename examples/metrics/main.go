// Metrics serves pgretry's metrics to Prometheus at /metrics. It lets two transfers
// deadlock, fetches the page itself, and prints the lines about pgretry but for the
// histograms' buckets. To go on serving:
//
//	go run . -listen 127.0.0.1:9464 "$DATABASE_URL"
package main

import (
	"bufio"
	"context"
	"database/sql"
	"errors"
	"flag"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"strings"

	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/exporters/prometheus"
	"go.opentelemetry.io/otel/sdk/metric"

	"github.com/pgretry/pgretry"
)

func main() {
	listen := flag.String("listen", "", "`address` at which to go on serving; without it a free port, until all is printed")
	flag.Parse()
	dsn := os.Getenv("DATABASE_URL")
	if flag.NArg() > 0 {
		dsn = flag.Arg(0)
	}
	exporter, err := prometheus.New(prometheus.WithoutScopeInfo()) // shorter lines
	if err != nil {
		log.Fatal(err)
	}
	otel.SetMeterProvider(metric.NewMeterProvider(metric.WithReader(exporter)))
	db, err := sql.Open(pgretry.DriverName, dsn)
	if err != nil {
		log.Fatal(err)
	}
	defer db.Close()
	collide(context.Background(), db)

	address := *listen
	if address == "" {
		address = "127.0.0.1:0"
	}
	listener, err := net.Listen("tcp", address)
	if err != nil {
		log.Fatal(err)
	}
	http.Handle("/metrics", promhttp.Handler())
	served := make(chan error)
	go func() { served <- http.Serve(listener, nil) }()
	response, err := http.Get(fmt.Sprintf("http://%s/metrics", listener.Addr()))
	if err != nil {
		log.Fatal(err)
	}
	lines := bufio.NewScanner(response.Body)
	for lines.Scan() {
		if line := lines.Text(); strings.HasPrefix(line, "pgretry_") && !strings.Contains(line, "_bucket{") {
			fmt.Println(line)
		}
	}
	if err := errors.Join(lines.Err(), response.Body.Close()); err != nil {
		log.Fatal(err)
	}
	if *listen != "" {
		fmt.Printf("serving http://%s/metrics\n", listener.Addr())
		log.Fatal(<-served)
	}
}
