//! The benchmarks that come with the program: their official files, what is refused of them, and how they are listed.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod broken;
mod layouts;
mod listing;
mod real_files;
