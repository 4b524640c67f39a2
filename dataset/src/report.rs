//! One self-contained HTML page: headings, tables, line charts and figures.
//!
//! No scripts and nothing fetched: charts are inline SVG, images are data URIs. Every text is
//! escaped here, so callers pass what they have. Ingest, training and evaluation share it.

mod base64;
mod chart;

use std::fmt::Write;

const STYLE: &str = include_str!("report/style.css");

/// One bar of [`Page::bars`].
#[derive(Debug, Clone, PartialEq)]
pub struct Bar {
    /// What it is.
    pub label: String,
    /// Its length.
    pub value: f64,
    /// What stands behind it.
    pub note: String,
}

/// One token of [`Page::tokens`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    /// What it stands for.
    pub text: String,
    /// The image that it sees, if any.
    pub image: Option<usize>,
    /// Whether it is learned.
    pub is_learned: bool,
}

/// Colours of [`Page::tokens`], which come again after the last.
const TOKEN_COLOURS: usize = 6;

/// A page under construction.
pub struct Page {
    html: String,
}

impl Page {
    /// An empty page with a title.
    pub fn new(title: &str) -> Self {
        let title = escape(title);
        let mut html = String::new();
        write_to(
            &mut html,
            format_args!(
                "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
                 <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
                 <title>{title}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n\
                 <h1>{title}</h1>\n"
            ),
        );
        Self { html }
    }

    /// A heading of a section.
    pub fn heading(&mut self, text: &str) {
        write_to(&mut self.html, format_args!("<h2>{}</h2>\n", escape(text)));
    }

    /// A smaller heading below one.
    pub fn subheading(&mut self, text: &str) {
        write_to(&mut self.html, format_args!("<h3>{}</h3>\n", escape(text)));
    }

    /// Horizontal bars, the longest as wide as the page allows.
    pub fn bars(&mut self, bars: &[Bar]) {
        let most = bars.iter().map(|bar| bar.value).fold(0.0, f64::max);
        self.html.push_str("<div class=\"bars\">\n");
        for Bar { label, value, note } in bars {
            let width = if most > 0.0 { 100.0 * value.max(0.0) / most } else { 0.0 };
            write_to(
                &mut self.html,
                format_args!(
                    "<span>{}</span><i><b style=\"width:{width:.2}%\"></b></i><span>{}</span>\n",
                    escape(label),
                    escape(note)
                ),
            );
        }
        self.html.push_str("</div>\n");
    }

    /// A paragraph of text.
    pub fn paragraph(&mut self, text: &str) {
        write_to(&mut self.html, format_args!("<p>{}</p>\n", escape(text)));
    }

    /// A text of a row with a short label beside it.
    pub fn slot(&mut self, label: &str, text: &str) {
        write_to(
            &mut self.html,
            format_args!(
                "<div class=\"slot\"><span>{}</span><p>{}</p></div>\n",
                escape(label),
                escape(text)
            ),
        );
    }

    /// Tokens in a row, coloured by the image that each sees; what is not learned is grey.
    pub fn tokens(&mut self, tokens: &[Token]) {
        self.html.push_str("<p class=\"tokens\">");
        for Token { text, image, is_learned } in tokens {
            let colour = image.map_or("none".to_owned(), |n| format!("t{}", n % TOKEN_COLOURS));
            let unlearned = if *is_learned { "" } else { " unlearned" };
            let sees = image.map_or("no image".to_owned(), |image| format!("image {image}"));
            write_to(
                &mut self.html,
                format_args!(
                    "<span class=\"{colour}{unlearned}\" title=\"sees {sees}\">{}</span>",
                    escape(text)
                ),
            );
        }
        self.html.push_str("</p>\n");
    }

    /// A table. Columns of numbers are set flush right.
    pub fn table(&mut self, headers: &[&str], rows: &[Vec<String>]) {
        self.html.push_str("<div class=\"wide\"><table>\n<thead><tr>");
        for (column, header) in headers.iter().enumerate() {
            let class = column_class(rows, column);
            write_to(&mut self.html, format_args!("<th{class}>{}</th>", escape(header)));
        }
        self.html.push_str("</tr></thead>\n<tbody>\n");
        for row in rows {
            self.html.push_str("<tr>");
            for (column, cell) in row.iter().enumerate() {
                let class = column_class(rows, column);
                write_to(&mut self.html, format_args!("<td{class}>{}</td>", escape(cell)));
            }
            self.html.push_str("</tr>\n");
        }
        self.html.push_str("</tbody></table></div>\n");
    }

    /// A line chart of one or more named series of points `(x, y)`. Points that are not finite are
    /// left out; long series are thinned to their extremes.
    pub fn line_chart(&mut self, title: &str, x_label: &str, series: &[(String, Vec<(f64, f64)>)]) {
        chart::line_chart(&mut self.html, title, x_label, series);
    }

    /// An image with a caption. `mime` is its media type, e.g. `image/png`.
    pub fn figure(&mut self, image: &[u8], mime: &str, caption: &str) {
        let (mime, caption) = (escape(mime), escape(caption));
        write_to(
            &mut self.html,
            format_args!("<figure><img alt=\"{caption}\" src=\"data:{mime};base64,"),
        );
        base64::encode(&mut self.html, image);
        write_to(&mut self.html, format_args!("\"><figcaption>{caption}</figcaption></figure>\n"));
    }

    /// A small image with a caption, several in a line.
    pub fn thumbnail(&mut self, image: &[u8], mime: &str, caption: &str) {
        let start = self.html.len();
        self.figure(image, mime, caption);
        self.html.insert_str(start + "<figure".len(), " class=\"small\"");
    }

    /// The whole page.
    pub fn finish(mut self) -> String {
        self.html.push_str("</main>\n</body>\n</html>\n");
        self.html
    }
}

/// Base64 with padding (RFC 4648).
pub fn base64(bytes: &[u8]) -> String {
    let mut text = String::new();
    base64::encode(&mut text, bytes);
    text
}

/// `text` with the five characters that HTML gives a meaning replaced.
pub(crate) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            c => escaped.push(c),
        }
    }
    escaped
}

fn write_to(html: &mut String, text: std::fmt::Arguments<'_>) {
    html.write_fmt(text).expect("writing to a String cannot fail");
}

/// Numbers start with a digit or sign, whatever unit follows.
fn column_class(rows: &[Vec<String>], column: usize) -> &'static str {
    let cells = || rows.iter().filter_map(|row| row.get(column)).filter(|cell| !cell.is_empty());
    let is_number = |cell: &String| {
        cell.trim_start_matches(['-', '+']).starts_with(|c: char| c.is_ascii_digit())
    };
    if cells().next().is_some() && cells().all(is_number) { " class=\"number\"" } else { "" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_text_is_escaped() {
        let hostile = "<script>alert('x')</script>\"&";
        let mut page = Page::new(hostile);
        page.heading(hostile);
        page.paragraph(hostile);
        page.table(&[hostile], &[vec![hostile.to_owned()]]);
        page.line_chart(hostile, hostile, &[(hostile.to_owned(), vec![(0.0, 1.0), (1.0, 2.0)])]);
        page.figure(b"x", hostile, hostile);
        page.thumbnail(b"x", hostile, hostile);
        page.subheading(hostile);
        page.slot(hostile, hostile);
        page.tokens(&[Token { text: hostile.to_owned(), image: Some(7), is_learned: true }]);
        page.bars(&[Bar { label: hostile.to_owned(), value: 1.0, note: hostile.to_owned() }]);
        let html = page.finish();
        assert!(!html.contains("<script"), "{html}");
        assert!(!html.contains("alert('x')"));
        assert!(html.contains("&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;&quot;&amp;"));
    }

    #[test]
    fn a_page_loads_nothing_from_elsewhere() {
        let mut page = Page::new("t");
        page.line_chart("loss", "step", &[("a".to_owned(), vec![(0.0, 1.0), (9.0, 0.5)])]);
        page.figure(&[0, 1, 2, 250], "image/png", "an image");
        let html = page.finish();
        assert!(html.contains("data:image/png;base64,AAEC+g=="));
        for outside in ["http://", "https://", "@import", "url("] {
            assert!(!html.contains(outside), "{outside}");
        }
    }

    #[test]
    fn tokens_have_the_colour_of_their_image() {
        let mut page = Page::new("t");
        let token = |text: &str, image, is_learned| Token { text: text.into(), image, is_learned };
        page.tokens(&[token("a", None, false), token("b", Some(7), true)]);
        let html = page.finish();
        assert!(html.contains("<span class=\"none unlearned\" title=\"sees no image\">a</span>"));
        assert!(html.contains("<span class=\"t1\" title=\"sees image 7\">b</span>"));
    }

    #[test]
    fn numbers_are_flush_right_and_words_are_not() {
        let mut page = Page::new("t");
        let row = |a: &str, b: &str| vec![a.to_owned(), b.to_owned()];
        page.table(&["name", "score"], &[row("a", "-1.5"), row("b", "20 %")]);
        let html = page.finish();
        assert!(html.contains("<td class=\"number\">-1.5</td>"));
        assert!(html.contains("<td>a</td>"));
    }
}
