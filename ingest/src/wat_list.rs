//! Images with alt-texts in Common Crawl's WAT files: each record tells the links of one page.
//!
//! Only links that are images with an alt-text are rows; an address is completed with the page's.

use std::sync::Arc;

use serde_json::Value;
use url::Url;

use crate::list::{Items, ListItem, ListRow, bad_row, broken};
use crate::source::Source;
use crate::warc::{self, Record};

/// Endings of such files.
pub(crate) const SUFFIXES: &[&str] = &[".wat", ".wat.gz"];
/// Longest description of a page; a longer one is a bad row.
const RECORD_BYTES_MAX: usize = 32 << 20;

/// The rows of a list.
pub(crate) fn rows(list: usize, source: &Arc<Source>) -> Items<'_> {
    let mut row = 0;
    Box::new(warc::records(source, RECORD_BYTES_MAX).flat_map(move |record| {
        let items = match record {
            Err(error) => return vec![Err(broken(source, error.to_string()))],
            Ok(Err((offset, damage))) => {
                Err(format!("record at byte {offset}: {}", damage.reason()))
            }
            Ok(Ok(record)) if record.kind() != "metadata" => return Vec::new(),
            Ok(Ok(record)) => images(&record)
                .map_err(|problem| format!("record at byte {}: {problem}", record.offset)),
        };
        let number = |item: ListItem| match item {
            ListItem::Row(mut found) => {
                (found.list, found.row) = (list, row);
                row += 1;
                Ok(ListItem::Row(found))
            }
            dropped @ ListItem::Dropped(_) => Ok(dropped),
        };
        match items {
            Ok(found) => found.into_iter().map(ListItem::Row).map(number).collect(),
            Err(problem) => {
                row += 1;
                vec![Ok(bad_row(source, row - 1, problem))]
            }
        }
    }))
}

/// The images of one page, or what is wrong with its record.
fn images(record: &Record) -> Result<Vec<ListRow>, String> {
    if record.is_cut {
        return Err(format!("longer than {RECORD_BYTES_MAX} bytes"));
    }
    let page: Value = serde_json::from_slice(&record.block).map_err(|error| error.to_string())?;
    let envelope = &page["Envelope"];
    let html = &envelope["Payload-Metadata"]["HTTP-Response-Metadata"]["HTML-Metadata"];
    let Some(links) = html["Links"].as_array() else { return Ok(Vec::new()) };
    let address = envelope["WARC-Header-Metadata"]["WARC-Target-URI"].as_str();
    let address = address.or_else(|| record.target()).and_then(|url| Url::parse(url).ok());
    let Some(address) = address else { return Ok(Vec::new()) };
    // A page may say what its addresses are relative to.
    let base = html["Head"]["Base"].as_str().and_then(|base| address.join(base).ok());
    let base = base.as_ref().unwrap_or(&address);
    Ok(links.iter().filter_map(|link| image(link, base, &address)).collect())
}

fn image(link: &Value, base: &Url, page: &Url) -> Option<ListRow> {
    if !link["path"].as_str()?.eq_ignore_ascii_case("IMG@/src") {
        return None;
    }
    let alt = link["alt"].as_str().filter(|alt| !alt.trim().is_empty())?;
    let url = base.join(link["url"].as_str()?.trim()).ok()?;
    matches!(url.scheme(), "http" | "https").then(|| ListRow {
        url: Some(url.into()),
        caption: Some(alt.to_owned()),
        source: Some(page.as_str().to_owned()),
        ..ListRow::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(json: &str) -> String {
        format!(
            "WARC/1.0\r\nWARC-Type: metadata\r\nWARC-Target-URI: http://a.example/p/\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{json}\r\n\r\n",
            json.len()
        )
    }

    #[test]
    fn images_with_alt_texts_are_rows() {
        let links = r#"[{"path": "IMG@/src", "url": "x.jpg", "alt": "an x"},
            {"path": "IMG@/src", "url": "y.jpg"}, {"path": "A@/href", "url": "z", "text": "a z"},
            {"path": "IMG@/src", "url": "data:image/png;base64,AA", "alt": "inline"},
            {"path": "IMG@/src", "url": "//b.example/q.png", "alt": " q "}]"#;
        let page = |head: &str| {
            record(&format!(
                r#"{{"Envelope": {{"WARC-Header-Metadata": {{"WARC-Target-URI": "http://a.example/p/"}},
                "Payload-Metadata": {{"HTTP-Response-Metadata": {{"HTML-Metadata":
                {{"Head": {head}, "Links": {links}}}}}}}}}}}"#
            ))
        };
        let info = "WARC/1.0\r\nWARC-Type: warcinfo\r\nContent-Length: 3\r\n\r\na:b\r\n\r\n";
        let bytes =
            [info, &page("{}"), &record("{"), &record("{}"), &page(r#"{"Base": "/base/"}"#)]
                .concat();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.wat");
        std::fs::write(&path, bytes).unwrap();
        let source = Arc::new(Source::open(path.to_str().unwrap()).unwrap());
        let items: Vec<_> = rows(3, &source).map(|item| item.unwrap()).collect();
        let row = |row: u64, url: &str, caption: &str| {
            ListItem::Row(ListRow {
                list: 3,
                row,
                url: Some(url.into()),
                caption: Some(caption.into()),
                source: Some("http://a.example/p/".into()),
                ..ListRow::default()
            })
        };
        assert_eq!(items.len(), 5);
        assert_eq!(items[0], row(0, "http://a.example/p/x.jpg", "an x"));
        assert_eq!(items[1], row(1, "http://b.example/q.png", " q "));
        assert!(matches!(&items[2], ListItem::Dropped(reject) if reject.offset == Some(2)));
        assert_eq!(items[3], row(3, "http://a.example/base/x.jpg", "an x"));
        assert_eq!(items[4], row(4, "http://b.example/q.png", " q "));
    }
}
