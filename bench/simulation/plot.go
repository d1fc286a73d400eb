package main

import (
	"bytes"
	"fmt"
	"image/color"
	"os"
	"path/filepath"
	"strconv"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/font"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"
)

const plotWidth, plotHeight = 8 * vg.Inch, 5 * vg.Inch

// colors are those of the strategies, in their order: such as the colour-blind can tell from each
// other (after Okabe and Ito).
var colors = [...]uint32{0x7f7f7f, 0x000000, 0x009e73, 0x0072b2, 0x56b4e9, 0xe69f00, 0xd55e00}

// plotAll draws what was measured as SVG files in dir, which is made if need be.
func plotAll(dir string, results []result) error {
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return fmt.Errorf("make the directory of the plots: %w", err)
	}
	if err := plotFile(
		filepath.Join(dir, "backoff-time.svg"), "Time until all clients have changed one row", "seconds", results,
		func(o outcome, _ int) float64 { return o.completion.Seconds() },
	); err != nil {
		return err
	}
	return plotFile(
		filepath.Join(dir, "backoff-calls.svg"), "Calls that it takes", "calls per client", results,
		func(o outcome, clients int) float64 { return float64(o.calls) / float64(clients) },
	)
}

func plotFile(file, title, unit string, results []result, value func(o outcome, clients int) float64) error {
	picture, err := picture(title, unit, results, value)
	if err != nil {
		return fmt.Errorf("draw %s: %w", filepath.Base(file), err)
	}
	if err := os.WriteFile(file, picture, 0o666); err != nil {
		return fmt.Errorf("save a plot: %w", err)
	}
	return nil
}

func picture(title, unit string, results []result, value func(o outcome, clients int) float64) ([]byte, error) {
	p := plot.New()
	p.Title.Text, p.X.Label.Text, p.Y.Label.Text = title, "clients", unit
	for _, text := range []*font.Font{
		&p.Title.TextStyle.Font, &p.X.Label.TextStyle.Font, &p.Y.Label.TextStyle.Font,
		&p.X.Tick.Label.Font, &p.Y.Tick.Label.Font, &p.Legend.TextStyle.Font,
	} {
		text.Variant = "Sans"
	}
	p.X.Scale, p.Y.Scale = plot.LogScale{}, plot.LogScale{}
	p.Y.Tick.Marker = plot.TickerFunc(ticks)
	p.X.Tick.Marker = plot.TickerFunc(ticks)
	p.Add(plotter.NewGrid())
	p.Legend.Top, p.Legend.Left = true, true
	p.Legend.TextStyle.Font.Size = vg.Points(9)
	for i, s := range strategies {
		points := make(plotter.XYs, len(results))
		for j, r := range results {
			points[j] = plotter.XY{X: float64(r.clients), Y: value(r.outcomes[i], r.clients)}
		}
		line, marks, err := plotter.NewLinePoints(points)
		if err != nil {
			return nil, err
		}
		hex := colors[i%len(colors)]
		line.Color = color.RGBA{R: uint8(hex >> 16), G: uint8(hex >> 8), B: uint8(hex), A: 0xff}
		line.Width = vg.Points(1.5)
		marks.Color, marks.Shape = line.Color, shape(i)
		p.Add(line, marks)
		p.Legend.Add(s.name, line, marks)
	}
	// A logarithmic axis needs some length.
	if p.X.Min == p.X.Max {
		p.X.Min, p.X.Max = p.X.Min/2, p.X.Max*2
	}
	if p.Y.Min == p.Y.Max {
		p.Y.Min, p.Y.Max = p.Y.Min/2, p.Y.Max*2
	}
	canvas := vgsvg.New(plotWidth, plotHeight)
	whole := draw.New(canvas)
	whole.FillPolygon(color.White, []vg.Point{{}, {X: plotWidth}, {X: plotWidth, Y: plotHeight}, {Y: plotHeight}})
	p.Draw(draw.Crop(whole, vg.Points(8), -vg.Points(16), vg.Points(8), -vg.Points(8)))
	var svg bytes.Buffer
	if _, err := canvas.WriteTo(&svg); err != nil {
		return nil, err
	}
	// Few machines have the font that the text was measured with; these are as wide.
	return bytes.ReplaceAll(svg.Bytes(),
		[]byte("font-family:Liberation Sans;"),
		[]byte("font-family:Liberation Sans,Arial,Helvetica,sans-serif;")), nil
}

// shape is the mark of a strategy.
func shape(i int) draw.GlyphDrawer {
	shapes := [...]draw.GlyphDrawer{
		draw.CircleGlyph{},
		draw.CrossGlyph{},
		draw.TriangleGlyph{},
		draw.SquareGlyph{},
		draw.RingGlyph{},
		draw.BoxGlyph{},
		draw.PyramidGlyph{},
	}
	return shapes[i%len(shapes)]
}

// ticks are at 1, 2 and 5 times the powers of ten.
func ticks(low, high float64) []plot.Tick {
	var marks []plot.Tick
	for power := 1e-3; power <= high; power *= 10 {
		for _, factor := range []float64{1, 2, 5} {
			if at := factor * power; at >= low*0.999 && at <= high*1.001 {
				marks = append(marks, plot.Tick{Value: at, Label: strconv.FormatFloat(at, 'g', 5, 64)})
			}
		}
	}
	return marks
}
