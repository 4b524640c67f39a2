//! The promises of the program, by running it.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "tests fail by panicking, and print what they measured"
)]

mod archives;
mod bad_input;
mod clips;
mod fault_server;
mod fetch;
mod finished;
mod html_quality;
mod openstax;
mod output;
mod pairs_and_clips;
mod partitions;
mod program;
mod resume;
mod rules;
