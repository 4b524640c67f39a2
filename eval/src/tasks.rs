//! The benchmarks, one file each.

mod caption;
mod label;

pub use caption::Caption;
pub use label::Label;
