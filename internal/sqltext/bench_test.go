package sqltext

import "testing"

const (
	ormSelect = `SELECT "users"."id", "users"."name", "users"."email", "users"."created_at" FROM "users" INNER JOIN "orders" ON "orders"."user_id" = "users"."id" WHERE "users"."active" = $1 AND "orders"."total" > $2 ORDER BY "users"."id" ASC LIMIT $3`
	ormInsert = `INSERT INTO "orders" ("created_at", "updated_at", "user_id", "total") VALUES (now(), $1, $2, $3) ON CONFLICT ("id") DO UPDATE SET "total" = "excluded"."total" RETURNING "id"`
	ormUpdate = `UPDATE "orders" SET "total" = $1, "updated_at" = $2 WHERE "id" = $3`
)

func BenchmarkAnalyze(b *testing.B) {
	for name, text := range map[string]string{"select": ormSelect, "insert": ormInsert, "update": ormUpdate} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(int64(len(text)))
			for b.Loop() {
				Analyze(text)
			}
		})
	}
}

func BenchmarkCacheHit(b *testing.B) {
	cache := NewCache(1000, 10_000)
	b.ReportAllocs()
	for b.Loop() {
		cache.Analyze(ormSelect)
	}
}

func BenchmarkCacheHitParallel(b *testing.B) {
	cache := NewCache(1000, 10_000)
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			cache.Analyze(ormSelect)
		}
	})
}
