package report

import (
	"bytes"
	"fmt"
	"image/color"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/font"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"

	"github.com/pgretry/pgretry/bench/internal/measure"
	"github.com/pgretry/pgretry/bench/internal/peer"
	"github.com/pgretry/pgretry/bench/internal/result"
)

// Plot is a picture beside the tables.
type Plot struct {
	// Section is where it belongs: a workload or sectionFastPath.
	Section string
	// Title says what it shows, File is its name in the directory of the results.
	Title, File string
}

const sectionFastPath = "fast path"

// Plots draws what there is to draw as SVG files in dir.
func Plots(dir string, r *result.Results) ([]Plot, error) {
	var drawn []Plot
	save := func(p Plot, width, height vg.Length, paint func(draw.Canvas) error) error {
		canvas := vgsvg.New(width, height)
		whole := draw.New(canvas)
		whole.FillPolygon(color.White, []vg.Point{
			{}, {X: width}, {X: width, Y: height}, {Y: height},
		})
		if err := paint(whole); err != nil {
			return fmt.Errorf("draw %s: %w", p.File, err)
		}
		var picture bytes.Buffer
		if _, err := canvas.WriteTo(&picture); err != nil {
			return fmt.Errorf("draw %s: %w", p.File, err)
		}
		// Few machines have the font that the text was measured with; these are as wide.
		svg := bytes.ReplaceAll(picture.Bytes(), []byte("font-family:Liberation Sans;"), []byte("font-family:Liberation Sans,Arial,Helvetica,sans-serif;"))
		if err := os.WriteFile(filepath.Join(dir, p.File), svg, 0o666); err != nil {
			return fmt.Errorf("draw %s: %w", p.File, err)
		}
		drawn = append(drawn, p)
		return nil
	}
	for _, c := range r.FastPath {
		p := Plot{sectionFastPath, "Time of a transaction over " + c.Name + ", as a multiple of lib/pq's", "fastpath-" + fileName(c.Name) + ".svg"}
		height := vg.Length(len(c.Timings))*0.3*vg.Inch + 1.1*vg.Inch
		if err := save(p, 8*vg.Inch, height, func(canvas draw.Canvas) error { return bars(canvas, p.Title, c) }); err != nil {
			return nil, err
		}
	}
	var names []string
	for _, cell := range r.Contention {
		if !slices.Contains(names, cell.Workload) {
			names = append(names, cell.Workload)
		}
	}
	for _, name := range names {
		p := Plot{name, name + ": throughput by workers, as a multiple of what the application reaches that takes its locks in order", "contention-" + fileName(name) + ".svg"}
		panels := panelsOf(r.Contention, name)
		rows, columns := grid(len(panels))
		width := vg.Length(columns)*3.6*vg.Inch + 2.2*vg.Inch
		height := max(vg.Length(rows)*2.9*vg.Inch, 3.4*vg.Inch)
		if err := save(p, width, height, func(canvas draw.Canvas) error { return contentionPlot(canvas, panels) }); err != nil {
			return nil, err
		}
	}
	return drawn, nil
}

func fileName(name string) string { return strings.NewReplacer("/", "-", "+", "-").Replace(name) }

// style is how a system is drawn everywhere.
type style struct {
	color  color.Color
	dashes []vg.Length
	width  vg.Length
	glyph  draw.GlyphDrawer
}

// styleOf gives each system a colour that the colour-blind can tell from the others (after Okabe and
// Ito) and a shape; ours are thick, limits dashed.
func styleOf(system string) style {
	rgb := func(hex uint32) color.Color {
		return color.RGBA{R: uint8(hex >> 16), G: uint8(hex >> 8), B: uint8(hex), A: 0xff}
	}
	dash := []vg.Length{vg.Points(5), vg.Points(3)}
	styles := map[string]style{
		peer.LibPQ:        {rgb(0x7f7f7f), nil, 1, draw.CircleGlyph{}},
		"otelsql":         {rgb(0xb8a9c9), nil, 1, draw.RingGlyph{}},
		"otelsql-sdk":     {rgb(0x8c6bb1), nil, 1, draw.PlusGlyph{}},
		peer.PGX:          {rgb(0x56b4e9), nil, 1, draw.SquareGlyph{}},
		peer.Loop:         {rgb(0x0072b2), nil, 1.5, draw.TriangleGlyph{}},
		"crdb":            {rgb(0x009e73), nil, 1.5, draw.CrossGlyph{}},
		peer.Pgretry:      {rgb(0xe69f00), nil, 2.5, draw.BoxGlyph{}},
		peer.RunInTx:      {rgb(0xd55e00), nil, 2.5, draw.PyramidGlyph{}},
		peer.PgretrySDK:   {rgb(0xcc79a7), nil, 2, draw.RingGlyph{}},
		peer.RunInTxSDK:   {rgb(0xa6446f), nil, 2, draw.RingGlyph{}},
		peer.PgretryPGX:   {rgb(0xc9b400), nil, 2, draw.CrossGlyph{}},
		peer.OrderedLimit: {rgb(0x000000), dash, 1, draw.PlusGlyph{}},
		peer.OneWorker:    {rgb(0x666666), []vg.Length{vg.Points(1), vg.Points(3)}, 1.5, draw.CrossGlyph{}},
	}
	if s, ok := styles[system]; ok {
		return s
	}
	return style{rgb(0xd55e00), dash, 2, draw.CircleGlyph{}}
}

func newPlot(title string) *plot.Plot {
	p := plot.New()
	sans := font.Font{Typeface: "Liberation", Variant: "Sans"}
	p.Title.Text = title
	for _, text := range []*font.Font{
		&p.Title.TextStyle.Font, &p.X.Label.TextStyle.Font, &p.Y.Label.TextStyle.Font,
		&p.X.Tick.Label.Font, &p.Y.Tick.Label.Font, &p.Legend.TextStyle.Font,
	} {
		size := text.Size
		*text = sans
		text.Size = size
	}
	p.Title.TextStyle.Font.Size, p.Title.Padding = vg.Points(11), vg.Points(8)
	p.X.Label.TextStyle.Font.Size, p.Y.Label.TextStyle.Font.Size = vg.Points(10), vg.Points(10)
	return p
}

// bars draws the ratios to the base, the base on top.
func bars(canvas draw.Canvas, title string, c result.Comparison) error {
	p := newPlot(title)
	p.X.Min = 0
	names := make([]string, len(c.Timings))
	for i, timing := range c.Timings {
		at := len(c.Timings) - 1 - i
		spread := measure.Of(ratios(c, timing.System, c.Base))
		names[at] = label(timing.System)
		bar, err := plotter.NewBarChart(plotter.Values{spread.Median}, vg.Points(13))
		if err != nil {
			return err
		}
		bar.Horizontal, bar.XMin = true, float64(at)
		bar.Color, bar.LineStyle.Width = styleOf(timing.System).color, 0
		interval, err := plotter.NewXErrorBars(quartiles{{spread, float64(at)}})
		if err != nil {
			return err
		}
		texts, err := plotter.NewLabels(plotter.XYLabels{
			XYs: plotter.XYs{{X: max(spread.High, spread.Median), Y: float64(at)}}, Labels: []string{"  " + measure.Short(spread.Median)},
		})
		if err != nil {
			return err
		}
		texts.TextStyle[0].Font.Variant = "Sans"
		texts.Offset = vg.Point{Y: -vg.Points(4)}
		p.Add(bar, interval, texts)
		p.X.Max = max(p.X.Max, spread.High*1.12)
	}
	p.NominalY(names...)
	p.Y.Padding = vg.Points(24) // fonts that stand in for the one measured with may be wider
	p.Draw(draw.Crop(canvas, vg.Points(8), -vg.Points(12), vg.Points(8), -vg.Points(8)))
	return nil
}

// quartiles are points with error bars from the first to the third quartile.
type quartiles []struct {
	spread measure.Spread
	y      float64
}

func (q quartiles) Len() int { return len(q) }

func (q quartiles) XY(i int) (x, y float64) { return q[i].spread.Median, q[i].y }

func (q quartiles) XError(i int) (low, high float64) {
	return q[i].spread.Low - q[i].spread.Median, q[i].spread.High - q[i].spread.Median
}

// panel is the cells of a workload that differ in nothing but workers.
type panel struct {
	timeout, think time.Duration
	cells          []result.Cell
}

func panelsOf(cells []result.Cell, workload string) []*panel {
	var panels []*panel
	for _, cell := range cells {
		if cell.Workload != workload {
			continue
		}
		i := slices.IndexFunc(panels, func(p *panel) bool { return p.timeout == cell.DeadlockTimeout && p.think == cell.Think })
		if i < 0 {
			i = len(panels)
			panels = append(panels, &panel{timeout: cell.DeadlockTimeout, think: cell.Think})
		}
		panels[i].cells = append(panels[i].cells, cell)
	}
	return panels
}

func grid(panels int) (rows, columns int) {
	columns = min(2, panels)
	return (panels + columns - 1) / max(1, columns), columns
}

// lowest is where the scale of throughput ends: less is drawn there.
const lowest = 0.001

func contentionPlot(canvas draw.Canvas, panels []*panel) error {
	rows, columns := grid(len(panels))
	legend := plot.NewLegend()
	legend.TextStyle.Font.Variant = "Sans"
	legend.TextStyle.Font.Size = vg.Points(10)
	legend.Top, legend.Left, legend.Padding = true, true, vg.Points(4)
	legend.ThumbnailWidth = vg.Points(28)
	seen := map[string]bool{}

	tiles := make([][]*plot.Plot, rows)
	for i := range tiles {
		tiles[i] = make([]*plot.Plot, columns)
	}
	for i, panel := range panels {
		p := newPlot(fmt.Sprintf("deadlock_timeout %s, think time %s", panel.timeout, panel.think))
		p.X.Label.Text, p.Y.Label.Text = "workers", "× locks in order"
		p.Y.Scale, p.Y.Tick.Marker = plot.LogScale{}, plot.LogTicks{Prec: -1}
		p.Y.Min, p.Y.Max = lowest, 2
		var workers []plot.Tick
		for _, cell := range panel.cells {
			workers = append(workers, plot.Tick{Value: math.Log2(float64(cell.Workers)), Label: fmt.Sprint(cell.Workers)})
		}
		p.X.Tick.Marker = plot.ConstantTicks(workers)
		grid := plotter.NewGrid()
		grid.Vertical.Width = 0
		p.Add(grid)
		for _, system := range peer.All() {
			points := curve(panel.cells, system.ID)
			if len(points) == 0 {
				continue
			}
			line, dots, err := plotter.NewLinePoints(points)
			if err != nil {
				return err
			}
			s := styleOf(system.ID)
			line.Color, line.Width, line.Dashes = s.color, vg.Points(float64(s.width)), s.dashes
			dots.GlyphStyle = draw.GlyphStyle{Color: s.color, Radius: vg.Points(3), Shape: s.glyph}
			p.Add(line, dots)
			for _, point := range points {
				p.Y.Max = max(p.Y.Max, point.Y*1.5)
			}
			if !seen[system.ID] {
				seen[system.ID] = true
				legend.Add(system.Label, line, dots)
			}
		}
		// Added plotters stretch the axes to their data; a single number of workers leaves no width.
		p.Y.Min = lowest
		p.X.Min, p.X.Max = p.X.Min-0.3, p.X.Max+0.3
		tiles[i/columns][i%columns] = p
	}
	const right = 2.2 * vg.Inch
	field := draw.Crop(canvas, vg.Points(6), -right, vg.Points(6), -vg.Points(6))
	layout := draw.Tiles{Rows: rows, Cols: columns, PadX: vg.Points(14), PadY: vg.Points(14)}
	for i, row := range plot.Align(tiles, layout, field) {
		for j, tile := range row {
			if tiles[i][j] != nil {
				tiles[i][j].Draw(tile)
			}
		}
	}
	width := canvas.Max.X - canvas.Min.X
	legend.Draw(draw.Crop(canvas, width-right+vg.Points(10), 0, 0, -vg.Points(20)))
	return nil
}

// curve is a system's throughput relative to the ordered limit, by the logarithm of workers.
func curve(cells []result.Cell, system string) plotter.XYs {
	var points plotter.XYs
	for _, cell := range cells {
		if ratio := measure.Of(throughput(cell, system, peer.OrderedLimit)); ratio.N > 0 {
			points = append(points, plotter.XY{X: math.Log2(float64(cell.Workers)), Y: max(lowest, ratio.Median)})
		}
	}
	slices.SortFunc(points, func(a, b plotter.XY) int { return int(math.Copysign(1, a.X-b.X)) })
	return points
}
