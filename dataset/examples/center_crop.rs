//! Writes the pixels `[3, size, size]` of images, values of 256, one after the other: what
//! `dataset/benches/center_crop.py` compares.
//!
//! ```sh
//! cargo run --release -p flamingo-dataset --example center_crop -- SIZE FILE... > PIXELS
//! ```

use std::error::Error;
use std::io::Write;

use flamingo_dataset::{Fit, ImageConfig, image_bytes};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let size = arguments.next().ok_or("expected a size")?.parse()?;
    let config = ImageConfig { size, fit: Fit::CenterCrop, mean: [0.0; 3], std: [1.0; 3] };
    for file in arguments {
        let (values, _) = image_bytes(&std::fs::read(file)?, &config)?;
        std::io::stdout().write_all(&values)?;
    }
    Ok(())
}
