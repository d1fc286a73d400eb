package peer

import (
	"context"
	"database/sql"

	"github.com/XSAM/otelsql"
	_ "github.com/jackc/pgx/v5/stdlib" // registers "pgx"
	_ "github.com/lib/pq"              // registers "postgres"
	"go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/trace"
)

func openLibPQ(dsn string) (*Database, error) { return opened(sql.Open("postgres", dsn)) }

func openPGX(dsn string) (*Database, error) { return opened(sql.Open("pgx", dsn)) }

func openOtelsql(dsn string) (*Database, error) { return opened(otelsql.Open("postgres", dsn)) }

func openOtelsqlSDK(dsn string) (*Database, error) {
	sdk := newSDK()
	db, err := opened(otelsql.Open("postgres", dsn, otelsql.WithTracerProvider(sdk.tracer), otelsql.WithMeterProvider(sdk.meter)))
	return sdk.beside(db, err)
}

func opened(db *sql.DB, err error) (*Database, error) {
	if err != nil {
		return nil, err
	}
	return &Database{DB: db}, nil
}

// sdk is OpenTelemetry's, set up as in production, except that nobody receives what is exported.
type sdk struct {
	tracer *trace.TracerProvider
	meter  *metric.MeterProvider
}

func newSDK() sdk {
	return sdk{
		tracer: trace.NewTracerProvider(trace.WithSampler(trace.AlwaysSample()), trace.WithBatcher(nobody{})),
		meter:  metric.NewMeterProvider(metric.WithReader(metric.NewManualReader())),
	}
}

// beside makes the database's Close shut the SDK down.
func (s sdk) beside(db *Database, err error) (*Database, error) {
	if err != nil {
		return nil, err
	}
	db.beside = func() error { return s.tracer.Shutdown(context.Background()) }
	return db, nil
}

// nobody is an exporter that throws spans away.
type nobody struct{}

func (nobody) ExportSpans(context.Context, []trace.ReadOnlySpan) error { return nil }
func (nobody) Shutdown(context.Context) error                          { return nil }
