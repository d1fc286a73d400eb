package jobs_test

import (
	"os"
	"testing"

	"github.com/pgretry/pgretry/compat/jobs"
	"github.com/pgretry/pgretry/compat/script"
)

func TestMain(m *testing.M) { os.Exit(script.Main(m)) }

func TestTransactionsThatInsertJobs(t *testing.T) { script.Test(t, jobs.Open) }
