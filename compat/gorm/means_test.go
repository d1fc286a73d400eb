package gorm

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"gorm.io/driver/postgres"
	"gorm.io/gorm"

	"github.com/pgretry/pgretry"
	"github.com/pgretry/pgretry/compat/script"
	"github.com/pgretry/pgretry/internal/pgserver/pgtest"
)

type author struct {
	ID    int64
	Name  string `gorm:"unique"`
	Born  int
	Books []book
}

type book struct {
	ID       int64
	AuthorID int64
	Author   *author
	Title    string
}

type settings struct {
	Theme string
	Sizes map[string]int
}

type profile struct {
	ID       int64     `gorm:"autoIncrement:false"`
	Settings *settings `gorm:"serializer:json;type:jsonb"`
}

// below is what gorm is opened with.
type below struct {
	alone, retrying func(dsn string) (gorm.Dialector, error)
}

var bothDrivers = map[string]below{
	"lib/pq": {
		func(dsn string) (gorm.Dialector, error) {
			return postgres.New(postgres.Config{DriverName: "postgres", DSN: dsn}), nil
		},
		func(dsn string) (gorm.Dialector, error) {
			return postgres.New(postgres.Config{DriverName: pgretry.DriverName, DSN: dsn}), nil
		},
	},
	"pgx": {func(dsn string) (gorm.Dialector, error) { return postgres.Open(dsn), nil }, overPgx},
}

// use is a use of gorm in a transaction, which says what it saw of it.
type use func(tx *gorm.DB) (saw []string, err error)

var uses = map[string]use{
	"Save, Updates, FirstOrCreate": writes,
	"Joins, Association":           associations,
	"SavePoint, RollbackTo":        savepoints,
	"FindInBatches":                batches,
	"serializer":                   serializes,
}

func writes(tx *gorm.DB) ([]string, error) {
	a := author{Name: "Woolf"}
	if err := tx.Save(&a).Error; err != nil {
		return nil, err
	}
	a.Born = 1880
	if err := tx.Save(&a).Error; err != nil {
		return nil, err
	}
	byStruct := tx.Model(&a).Updates(author{Born: 1881})
	byMap := tx.Model(&a).Updates(map[string]any{"born": gorm.Expr("born + 1")})
	if err := errors.Join(byStruct.Error, byMap.Error); err != nil {
		return nil, err
	}
	var made, found author
	first := tx.Where(author{Name: "Joyce"}).Attrs(author{Born: 1882}).FirstOrCreate(&made)
	second := tx.Where(author{Name: "Joyce"}).Attrs(author{Born: 1}).FirstOrCreate(&found)
	if err := errors.Join(first.Error, second.Error); err != nil {
		return nil, err
	}
	var all []author
	err := tx.Order("name DESC").Find(&all).Error
	saw := []string{fmt.Sprint(byStruct.RowsAffected, byMap.RowsAffected, first.RowsAffected, second.RowsAffected, made.ID == found.ID)}
	for _, a := range all {
		saw = append(saw, fmt.Sprint(a.Name, a.Born))
	}
	return saw, err
}

func associations(tx *gorm.DB) (saw []string, err error) {
	a := author{Name: "Woolf", Books: []book{{Title: "Orlando"}}}
	if err := tx.Create(&a).Error; err != nil {
		return nil, err
	}
	if err := tx.Model(&a).Association("Books").Append(&book{Title: "The Waves"}, &book{Title: "The Years"}); err != nil {
		return nil, err
	}
	if err := tx.Model(&a).Association("Books").Delete(a.Books[1]); err != nil {
		return nil, err
	}
	saw = append(saw, fmt.Sprint(tx.Model(&a).Association("Books").Count()))
	var joined []book
	err = tx.Joins("Author").Where(`"Author".name = ?`, "Woolf").Order("title").Find(&joined).Error
	for _, b := range joined {
		saw = append(saw, b.Title+" by "+b.Author.Name)
	}
	return saw, err
}

func savepoints(tx *gorm.DB) ([]string, error) {
	kept := tx.Create(&author{Name: "kept"})
	saved := tx.SavePoint("here")
	lost := tx.Create(&author{Name: "lost"})
	double := tx.Create(&author{Name: "kept"}).Error
	back := tx.RollbackTo("here")
	after := tx.Create(&author{Name: "after"})
	var names []string
	read := tx.Model(&author{}).Order("name").Pluck("name", &names)
	return append(names, fmt.Sprint("a duplicate: ", double != nil)),
		errors.Join(kept.Error, saved.Error, lost.Error, back.Error, after.Error, read.Error)
}

func batches(tx *gorm.DB) (saw []string, err error) {
	var list, batch []author
	for i := range 7 {
		list = append(list, author{Name: fmt.Sprintf("author %d", i), Born: 1900 + i})
	}
	if err := tx.CreateInBatches(&list, 3).Error; err != nil {
		return nil, err
	}
	found := tx.Where("born > ?", 1900).FindInBatches(&batch, 4, func(tx *gorm.DB, n int) error {
		for i := range batch {
			batch[i].Born++
		}
		saw = append(saw, fmt.Sprintf("batch %d of %d, the first is %s", n, tx.RowsAffected, batch[0].Name))
		return tx.Save(&batch).Error
	})
	var born int
	err = tx.Model(&author{}).Select("sum(born)").Scan(&born).Error
	return append(saw, fmt.Sprint(found.RowsAffected, born)), errors.Join(found.Error, err)
}

func serializes(tx *gorm.DB) (saw []string, err error) {
	p := profile{1, &settings{"dark", map[string]int{"font": 12}}}
	if err := tx.Create(&p).Error; err != nil {
		return nil, err
	}
	p.Settings.Sizes["margin"] = 3
	if err := tx.Save(&p).Error; err != nil {
		return nil, err
	}
	var found profile
	if err := tx.First(&found, 1).Error; err != nil {
		return nil, err
	}
	var font string
	err = tx.Raw("SELECT settings -> 'Sizes' ->> 'font' FROM profiles").Scan(&font).Error
	return []string{fmt.Sprint(*found.Settings), font}, err
}

// manually is gorm's Transaction by hand.
func manually(db *gorm.DB, work func(tx *gorm.DB) error) error {
	tx := db.Begin()
	if tx.Error != nil {
		return tx.Error
	}
	if err := work(tx); err != nil {
		return errors.Join(err, tx.Rollback().Error)
	}
	return tx.Commit().Error
}

func transaction(db *gorm.DB, work func(tx *gorm.DB) error) error { return db.Transaction(work) }

// begins are the ways to have a transaction.
var begins = map[string]func(*gorm.DB, func(*gorm.DB) error) error{"Transaction": transaction, "Begin": manually}

func TestMoreOfGormIsAsAlone(t *testing.T) {
	for driver, below := range bothDrivers {
		for name, use := range uses {
			for how, begin := range begins {
				t.Run(driver+"/"+name+"/"+how, func(t *testing.T) {
					alone, _ := stage(t, below.alone)
					want, err := inTransaction(alone, begin, use)
					if err != nil || len(want) == 0 {
						t.Fatalf("alone it sees %q, %v", want, err)
					}
					undisturbed, _ := stage(t, below.retrying)
					if got, err := inTransaction(undisturbed, begin, use); err != nil || !slices.Equal(got, want) {
						t.Errorf("it sees\n%q, %v\nwant\n%q", got, err, want)
					}
					wantSameLeft(t, undisturbed, alone)

					disturbed, dsn := stage(t, below.retrying)
					got, runs, err := inDeadlock(t, disturbed, dsn, begin, use)
					if err != nil || !slices.Equal(got, want) || runs < 2 {
						t.Errorf("in a deadlock it sees in %d runs\n%q, %v\nwant\n%q", runs, got, err, want)
					}
					wantSameLeft(t, disturbed, alone)
				})
			}
		}
	}
}

// stage opens gorm on empty tables, and two accounts.
func stage(t *testing.T, open func(dsn string) (gorm.Dialector, error)) (db *gorm.DB, dsn string) {
	t.Helper()
	dsn = pgtest.DSN(t)
	dialector, err := open(dsn)
	if err != nil {
		t.Fatal(err)
	}
	db = openGorm(t, dialector).WithContext(t.Context())
	if err := db.AutoMigrate(&author{}, &book{}, &profile{}, &account{}); err != nil {
		t.Fatal(err)
	}
	if err := db.Create([]account{{1, 100}, {2, 100}}).Error; err != nil {
		t.Fatal(err)
	}
	return db, dsn
}

func pay(tx *gorm.DB, id, amount int64) error {
	return tx.Model(&account{ID: id}).Update("balance", gorm.Expr("balance + ?", amount)).Error
}

func inTransaction(db *gorm.DB, begin func(*gorm.DB, func(*gorm.DB) error) error, use use) (saw []string, err error) {
	err = begin(db, func(tx *gorm.DB) error {
		if err := pay(tx, 1, -1); err != nil {
			return err
		}
		if saw, err = use(tx); err != nil {
			return err
		}
		return pay(tx, 2, 1)
	})
	return saw, err
}

// inDeadlock is inTransaction as a closure, with a rival who locks the accounts in the
// opposite order.
func inDeadlock(t *testing.T, db *gorm.DB, dsn string, begin func(*gorm.DB, func(*gorm.DB) error) error, use use) (saw []string, runs int, err error) {
	t.Helper()
	rival := script.NewRival(t, dsn)
	if err := rival.Begin(t.Context()); err != nil {
		t.Fatal(err)
	}
	err = pgretry.Retry(t.Context(), func(ctx context.Context) error {
		runs++
		saw, err = inTransaction(db.WithContext(ctx), begin, func(tx *gorm.DB) ([]string, error) {
			saw, err := use(tx)
			if err != nil {
				return saw, err
			}
			return saw, rival.Wants(ctx)
		})
		return err
	})
	return saw, runs, errors.Join(err, rival.End())
}

// wantSameLeft wants the same to be in both databases, but for ids.
func wantSameLeft(t *testing.T, got, want *gorm.DB) {
	t.Helper()
	var lefts [2]string
	for i, db := range []*gorm.DB{got, want} {
		var lines []string
		if err := db.Raw(`SELECT 'account ' || id || ' ' || balance FROM account
			UNION ALL SELECT 'author ' || name || ' ' || born FROM authors
			UNION ALL SELECT 'book ' || title || ' ' || coalesce(a.name, '') FROM books b LEFT JOIN authors a ON a.id = b.author_id
			UNION ALL SELECT 'profile ' || id || ' ' || settings FROM profiles ORDER BY 1`).Scan(&lines).Error; err != nil {
			t.Fatal(err)
		}
		lefts[i] = strings.Join(lines, "\n")
	}
	if lefts[0] != lefts[1] {
		t.Errorf("there is left\n%s\nwant\n%s", lefts[0], lefts[1])
	}
}
