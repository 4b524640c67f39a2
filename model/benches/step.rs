//! Times training steps of tiny models.
fn main() {}
