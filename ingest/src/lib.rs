//! Web pages, image/alt-text pairs and video clips to sharded Parquet corpora (Flamingo, section
//! 2.4 and appendix A.3.1: M3W, ALIGN and LTIP, VTP).
//!
//! A run reads its inputs as a stream of items, works on them in several threads and publishes the
//! outcomes in the order of the input: the same inputs and plan give the same bytes, whatever the
//! number of workers, and also when the run is killed and resumed. What is dropped is a value with a
//! place, a rule and a number, kept beside the shards.
//!
//! ```
//! use flamingo_ingest::html::{Node, read_page};
//!
//! let url = "https://a.example/cats/".parse().unwrap();
//! let page = read_page("<h1>Cats</h1><img src=tom.jpg alt=Tom><p>This is Tom.", &url).unwrap();
//! let Node::Image(tom) = &page.nodes[1] else { panic!("the image stands between the texts") };
//! assert_eq!(tom.urls, ["https://a.example/cats/tom.jpg"]);
//! ```
//!
//! In reading order: [`pipeline`] the three kinds of runs, [`plan`] their rules, [`source`] input
//! files. Pages: [`warc`] records, [`http`] responses, [`archive`] what has which address,
//! [`opt_out`] who says no, [`html`] a page to nodes with [`img_tag`], [`webpage`] nodes to a
//! document. Pairs: [`list`] rows, [`fetch`] images that are only named, [`alt_text`], [`page_pairs`]
//! of archives. Clips: [`clip`] frames, [`decoder`] in processes of their own, [`video_text`]. All:
//! [`image`] checked and shrunk, [`rules`] for texts, languages, addresses and scores, [`split`]
//! held-out rows, [`outcome`] and [`reject`] what became of an item, [`figures`] and [`ledger`] what
//! was measured and asked for, [`ordered`] threads, [`identity`] what a run is, [`output`] parts and
//! the journal, [`partition`] runs on several machines, [`meter`] and [`metrics`] numbers of a running
//! job, [`samples`] pictures of what was dropped. Finished corpora: [`report`], [`check`], [`retry`]
//! what failed, [`view`], [`export`], [`purge`].

pub mod alt_text;
pub mod archive;
pub mod check;
pub mod clip;
pub mod decoder;
mod dom;
pub mod error;
pub mod export;
pub mod fetch;
pub mod figures;
mod flat_tree;
mod furniture;
pub mod html;
pub mod http;
pub mod identity;
pub mod image;
pub mod img_tag;
pub mod ledger;
pub mod list;
mod main_part;
pub mod meter;
pub mod metrics;
mod names;
pub mod opt_out;
pub mod ordered;
pub mod outcome;
pub mod output;
pub mod page_pairs;
mod parquet_list;
pub mod partition;
pub mod pipeline;
pub mod plan;
mod progress;
pub mod purge;
mod record_log;
pub mod reject;
pub mod report;
pub mod retry;
pub mod rules;
pub mod samples;
mod saved_page;
mod sidecar;
pub mod source;
pub mod split;
mod spool;
mod subtitles;
mod table;
mod tar_list;
mod thin;
mod unpack;
pub mod video_text;
pub mod view;
pub mod warc;
mod wat_list;
pub mod webpage;
pub mod word;
