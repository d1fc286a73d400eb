package gorm

import (
	"context"
	"database/sql"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/stdlib"
	"gorm.io/driver/postgres"
	"gorm.io/gorm"

	"github.com/pgretry/pgretry"
)

// overPgx is postgres.Open with pgretry between gorm and pgx: the same driver, and a
// TimeZone in the DSN is the one that columns without one are read in, too.
func overPgx(dsn string) (gorm.Dialector, error) {
	config, err := pgx.ParseConfig(dsn)
	if err != nil {
		return nil, err
	}
	zone, err := time.LoadLocation(config.RuntimeParams["TimeZone"]) // UTC, if there is none
	if err != nil {
		return nil, err
	}
	inner := stdlib.GetConnector(*config, stdlib.OptionAfterConnect(func(_ context.Context, conn *pgx.Conn) error {
		conn.TypeMap().RegisterType(&pgtype.Type{
			Name: "timestamp", OID: pgtype.TimestampOID, Codec: &pgtype.TimestampCodec{ScanLocation: zone},
		})
		return nil
	}))
	connector, err := pgretry.NewConnector(inner)
	if err != nil {
		return nil, err
	}
	return postgres.New(postgres.Config{Conn: sql.OpenDB(connector)}), nil
}
