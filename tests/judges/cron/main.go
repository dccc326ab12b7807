// Judges cron schedules as KEDA's cron scaler does: the parser that it makes of robfig/cron v3, and
// the zone by time.LoadLocation.
//
// Reads lines of JSON, {"spec": …, "zone": …, "from": UNIX SECONDS, "count": N}, and answers each
// with one: {"error": …} where KEDA refuses, else {"next": [UNIX SECONDS…]}, in order, fewer where
// the schedule ends.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"time"
	_ "time/tzdata"

	"github.com/robfig/cron/v3"
)

type question struct {
	Spec  string `json:"spec"`
	Zone  string `json:"zone"`
	From  int64  `json:"from"`
	Count int    `json:"count"`
}

type answer struct {
	Error string  `json:"error,omitempty"`
	Next  []int64 `json:"next"`
}

func judge(q question) (a answer) {
	// Its parser panics on a zone with nothing behind it; KEDA turns that into an error.
	defer func() {
		if r := recover(); r != nil {
			a = answer{Error: fmt.Sprint(r)}
		}
	}()
	parser := cron.NewParser(cron.Minute | cron.Hour | cron.Dom | cron.Month | cron.Dow)
	schedule, err := parser.Parse(q.Spec)
	if err != nil {
		return answer{Error: err.Error()}
	}
	location, err := time.LoadLocation(q.Zone)
	if err != nil {
		return answer{Error: err.Error()}
	}
	a.Next = []int64{}
	at := time.Unix(q.From, 0).In(location)
	for range q.Count {
		if at = schedule.Next(at); at.IsZero() {
			break
		}
		a.Next = append(a.Next, at.Unix())
	}
	return a
}

func main() {
	in := bufio.NewScanner(os.Stdin)
	in.Buffer(nil, 1<<20)
	out := bufio.NewWriter(os.Stdout)
	defer out.Flush()
	for in.Scan() {
		var q question
		if err := json.Unmarshal(in.Bytes(), &q); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		line, _ := json.Marshal(judge(q))
		fmt.Fprintln(out, string(line))
	}
}
