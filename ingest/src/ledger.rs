//! The ledger: every address that a run asked for over the network, what came of it, and how often
//! it was tried.
//!
//! `ledger/part-NNNNN.parquet` lies beside the shards. It holds times, so two runs differ in it; the
//! shards of equal answers are equal.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, Int32Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray,
};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use serde::{Deserialize, Serialize};

use crate::reject;
use crate::word::{self, Word};

/// What came of asking for one address, after its last attempt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fetch {
    /// Identifier of the row that wanted it: `key` of a pair, `doc_id` of a document.
    pub key: String,
    /// The address as the list or page gives it.
    pub url: String,
    /// Where redirects led, where that is another address.
    pub final_url: Option<String>,
    /// Times it was asked for, redirects not counted.
    pub attempts: u32,
    /// Status of the last response, where there was one.
    pub http_status: Option<u16>,
    /// `ok`, or the class of what went wrong: `dns`, `timeout`, `429`, ...
    #[serde(deserialize_with = "word::deserialize")]
    pub cause: Word,
    /// Words of the cause.
    pub detail: Option<String>,
    /// What robots.txt says: `allowed`, `disallowed`, `none` where it was not asked for.
    #[serde(deserialize_with = "word::deserialize")]
    pub robots: Word,
    /// Bytes of the body.
    pub bytes: u64,
    /// Start of the first attempt, microseconds since 1970.
    pub started_us: i64,
    /// From there to the end of the last attempt, in milliseconds.
    pub elapsed_ms: u64,
    /// The pair that could not be made for want of an answer: with it the address can be asked for
    /// again without the list.
    pub pair: Option<PairRow>,
}

/// A row of a list, without its address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PairRow {
    /// Name of the list.
    pub list: String,
    /// Number of the row.
    pub row: u64,
    /// Caption, as written.
    pub caption: Option<String>,
    /// Where the list says the pair came from.
    pub source: Option<String>,
}

/// Arrow schema of `ledger/part-NNNNN.parquet`; every column is nullable, as in the corpus.
pub fn schema() -> SchemaRef {
    let column = |name: &str, data_type| Field::new(name, data_type, true);
    Arc::new(Schema::new(vec![
        column("key", DataType::Utf8),
        column("url", DataType::Utf8),
        column("final_url", DataType::Utf8),
        column("attempts", DataType::Int32),
        column("http_status", DataType::Int32),
        column("cause", DataType::Utf8),
        column("detail", DataType::Utf8),
        column("robots", DataType::Utf8),
        column("bytes", DataType::Int64),
        column("started_at", DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))),
        column("elapsed_ms", DataType::Int64),
        column("list", DataType::Utf8),
        column("row", DataType::Int64),
        column("caption", DataType::Utf8),
        column("source", DataType::Utf8),
    ]))
}

/// The fetches as a Parquet file.
pub fn encode(fetches: &[Fetch]) -> Vec<u8> {
    reject::encode_batch(&to_batch(fetches))
}

/// The fetches as one record batch of [`schema`].
///
/// # Panics
/// Never: the columns are built from the same schema.
pub fn to_batch(fetches: &[Fetch]) -> RecordBatch {
    let text = |value: fn(&Fetch) -> Option<&str>| -> ArrayRef {
        Arc::new(fetches.iter().map(value).collect::<StringArray>())
    };
    let small = |value: fn(&Fetch) -> Option<i32>| -> ArrayRef {
        Arc::new(fetches.iter().map(value).collect::<Int32Array>())
    };
    let large = |value: fn(&Fetch) -> i64| -> ArrayRef {
        Arc::new(fetches.iter().map(value).collect::<Int64Array>())
    };
    let pair = |value: fn(&PairRow) -> Option<&str>| -> ArrayRef {
        let value = |fetch: &Fetch| fetch.pair.as_ref().and_then(value).map(str::to_owned);
        Arc::new(fetches.iter().map(value).collect::<StringArray>())
    };
    let rows = fetches.iter().map(|f| f.pair.as_ref().map(|pair| pair.row as i64));
    let started = fetches.iter().map(|f| Some(f.started_us)).collect::<TimestampMicrosecondArray>();
    let columns = vec![
        text(|f| Some(&f.key)),
        text(|f| Some(&f.url)),
        text(|f| f.final_url.as_deref()),
        small(|f| Some(f.attempts as i32)),
        small(|f| f.http_status.map(i32::from)),
        text(|f| Some(f.cause)),
        text(|f| f.detail.as_deref()),
        text(|f| Some(f.robots)),
        large(|f| f.bytes as i64),
        Arc::new(started.with_timezone("UTC")),
        large(|f| f.elapsed_ms as i64),
        pair(|p| Some(&p.list)),
        Arc::new(rows.collect::<Int64Array>()),
        pair(|p| p.caption.as_deref()),
        pair(|p| p.source.as_deref()),
    ];
    RecordBatch::try_new(schema(), columns).expect("the columns are built from the same schema")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fetch_has_every_column() {
        let fetch = Fetch {
            key: "pairs.csv:000000001".into(),
            url: "https://a.example/b.jpg".into(),
            final_url: None,
            attempts: 3,
            http_status: Some(429),
            cause: "429",
            detail: None,
            robots: "allowed",
            bytes: 0,
            started_us: 1_700_000_000_000_000,
            elapsed_ms: 4_200,
            pair: None,
        };
        assert_eq!(to_batch(&[fetch]).num_columns(), schema().fields().len());
    }
}
