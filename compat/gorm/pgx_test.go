package gorm

import (
	"context"
	"errors"
	"net/url"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"gorm.io/driver/postgres"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"

	"github.com/pgretry/pgretry"
	"github.com/pgretry/pgretry/compat/script"
	"github.com/pgretry/pgretry/internal/pgserver/pgtest"
)

// What all is compared with is gorm with the driver that it takes by itself.
func TestGormWithItsOwnDriver(t *testing.T) {
	script.TestOverPgx(t, func(ctx context.Context, driverName, dsn string) (script.App, error) {
		switch driverName {
		case "postgres-pgx":
			return openWith(postgres.Open(dsn), gorm.Config{})
		case pgretry.DriverName + "-pgx":
			dialector, err := overPgx(dsn)
			if err != nil {
				return nil, err
			}
			return openWith(dialector, gorm.Config{})
		}
		return Open(ctx, driverName, dsn) // one that aborts
	})
}

type appointment struct {
	ID   int64     `gorm:"autoIncrement:false"`
	Wall time.Time `gorm:"type:timestamp"`
	At   time.Time
}

func TestWithItsOwnDriverGormReadsTimesAndErrorsAsAlone(t *testing.T) {
	for _, zone := range []string{"", "Asia/Shanghai"} {
		t.Run("TimeZone="+zone, func(t *testing.T) {
			dsn := withoutSSLMode(t, pgtest.DSN(t), zone)
			retrying, err := overPgx(dsn)
			if err != nil {
				t.Fatal(err)
			}
			location, err := time.LoadLocation(zone)
			if err != nil {
				t.Fatal(err)
			}
			noon := time.Date(2024, 2, 29, 12, 0, 0, 0, location)
			want := appointment{1, noon, noon.In(time.Local)}
			for i, dialector := range []gorm.Dialector{postgres.Open(dsn), retrying} {
				db := openGorm(t, dialector)
				if i == 0 {
					if err := db.AutoMigrate(&appointment{}); err != nil {
						t.Fatal(err)
					}
				}
				if err := db.Where("true").Delete(&appointment{}).Error; err != nil {
					t.Fatal(err)
				}
				if err := db.Create(&appointment{1, noon, noon}).Error; err != nil {
					t.Fatal(err)
				}
				var got appointment
				if err := db.First(&got).Error; err != nil {
					t.Fatal(err)
				}
				if got.Wall.Format(time.RFC3339) != want.Wall.Format(time.RFC3339) || got.At.Format(time.RFC3339) != want.At.Format(time.RFC3339) {
					t.Errorf("%d: it reads %v, want %v", i, got, want)
				}
				var session string
				if err := db.Raw("SHOW timezone").Scan(&session).Error; err != nil || zone != "" && session != zone {
					t.Errorf("%d: the session's zone is %q, %v", i, session, err)
				}
				var pgErr *pgconn.PgError
				if err := db.Create(&got).Error; !errors.As(err, &pgErr) || pgErr.Code != "23505" || pgErr.ConstraintName != "appointments_pkey" {
					t.Errorf("%d: a duplicate is %#v", i, err)
				}
				var street string
				if err := db.Raw("SELECT ?::jsonb ->> 'street'", map[string]any{"street": "Nanjing Lu"}).Scan(&street).Error; err != nil || street != "Nanjing Lu" {
					t.Errorf("%d: of a map there comes %q, %v", i, street, err)
				}
			}
		})
	}
}

// withoutSSLMode leaves sslmode to the driver. gorm takes the zone as it is written.
func withoutSSLMode(t *testing.T, dsn, zone string) string {
	t.Helper()
	parsed, err := url.Parse(dsn)
	if err != nil {
		t.Fatal(err)
	}
	query := parsed.Query()
	query.Del("sslmode")
	parsed.RawQuery = query.Encode()
	if zone != "" {
		parsed.RawQuery += "&TimeZone=" + zone
	}
	return parsed.String()
}

// openGorm opens gorm, whatever is below, until the test ends.
func openGorm(t *testing.T, dialector gorm.Dialector) *gorm.DB {
	t.Helper()
	db, err := gorm.Open(dialector, &gorm.Config{Logger: logger.Discard})
	if err != nil {
		t.Fatal(err)
	}
	raw, err := db.DB()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := raw.Close(); err != nil {
			t.Error(err)
		}
	})
	return db
}
