//! The evaluation on a small world of coloured images with a random model.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod compared;
mod leaks;
mod looking;
mod models;
mod reported;
mod rounds;
mod run;
mod schema;
mod served;
mod server;
mod submitted;
mod tasks;
mod world;
