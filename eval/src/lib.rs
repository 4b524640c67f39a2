//! Few-shot evaluation (wip)
pub mod bootstrap;
pub mod cider;
pub mod draw;
pub mod ptb_tokenize;
