//! A small SVG: one line over a logarithmic width.

use std::fmt::Write as _;

const WIDTH: f64 = 560.0;
const HEIGHT: f64 = 260.0;
const LEFT: f64 = 70.0;
const BOTTOM: f64 = 46.0;
const TOP: f64 = 40.0;
const RIGHT: f64 = 24.0;

pub(crate) struct Plot<'a> {
    pub(crate) title: &'a str,
    pub(crate) across: &'a str,
    pub(crate) up: &'a str,
}

impl Plot<'_> {
    pub(crate) fn draw(&self, points: &[(f64, f64)]) -> String {
        let most = points.iter().map(|(_, y)| *y).fold(0.0, f64::max) * 1.1;
        let (first, last) = (points[0].0.ln(), points[points.len() - 1].0.ln());
        let width = (last - first).max(f64::EPSILON);
        let x = |size: f64| LEFT + (size.ln() - first) / width * (WIDTH - LEFT - RIGHT);
        let y = |value: f64| HEIGHT - BOTTOM - value / most * (HEIGHT - BOTTOM - TOP);
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"11\">\n\
             <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"white\"/>\n\
             <text x=\"{LEFT}\" y=\"18\" font-size=\"12\">{}</text>\n",
            self.title
        );
        for part in 0..=4 {
            let value = most * f64::from(part) / 4.0;
            let _ = writeln!(
                svg,
                "<line x1=\"{LEFT}\" x2=\"{}\" y1=\"{2:.1}\" y2=\"{2:.1}\" stroke=\"#ddd\"/>\
                 <text x=\"{}\" y=\"{3:.1}\" text-anchor=\"end\">{4}</text>",
                WIDTH - RIGHT,
                LEFT - 6.0,
                y(value),
                y(value) + 4.0,
                super::number(value),
            );
        }
        let mut line = String::new();
        for (size, value) in points {
            let (x, y) = (x(*size), y(*value));
            let _ = write!(line, "{x:.1},{y:.1} ");
            let _ = writeln!(
                svg,
                "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"#1f5fa8\"/>\
                 <text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{size}</text>",
                HEIGHT - BOTTOM + 16.0,
            );
        }
        let _ = writeln!(
            svg,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"#1f5fa8\" stroke-width=\"1.5\"/>\n\
             <text x=\"{}\" y=\"{}\" text-anchor=\"middle\">{}</text>\n\
             <text x=\"14\" y=\"{}\" transform=\"rotate(-90 14 {})\" text-anchor=\"middle\">{}</text>\n</svg>",
            line.trim_end(),
            (LEFT + WIDTH - RIGHT) / 2.0,
            HEIGHT - 8.0,
            self.across,
            HEIGHT / 2.0,
            HEIGHT / 2.0,
            self.up,
        );
        svg
    }
}
