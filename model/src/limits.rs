//! Largest sizes that a configuration may ask for, so that an absurd one is refused by name instead
//! of exhausting memory. All lie well above the largest published models.

use crate::error::ModelError;

/// Width of a residual, of all heads together, of an embedding. Chinchilla 70B: 8192.
pub(crate) const WIDTH_MAX: usize = 1 << 16;
/// Blocks of a tower. Chinchilla 70B: 80.
pub(crate) const LAYERS_MAX: usize = 1 << 10;
/// Tokens of a tokenizer. Gemma: 262 144.
pub(crate) const VOCABULARY_MAX: usize = 1 << 22;
/// Positions of a decoder. GPT-2: 1024.
pub(crate) const CONTEXT_MAX: usize = 1 << 20;
/// Height and width of an image, in pixels. Paper: 480.
pub(crate) const IMAGE_SIZE_MAX: usize = 1 << 13;
/// Patches of an image. CLIP ViT-L/14 at 336 pixels: 576.
pub(crate) const PATCHES_MAX: usize = 1 << 16;
/// Latents of an image or video. Paper: 64.
pub(crate) const LATENTS_MAX: usize = 1 << 12;
/// Time embeddings. Paper: 8.
pub(crate) const FRAMES_MAX: usize = 1 << 12;
/// Parameters of one tower. The paper's whole model: 80 billion.
pub(crate) const PARAMETERS_MAX: usize = 1 << 37;
/// Weights of a block per square of its width: four in attention, eight in the feed-forward.
const BLOCK_SQUARES: usize = 12;

/// Checks that a size is at least 1 and at most `max`.
pub(crate) fn check_size(field: &str, value: usize, max: usize) -> Result<(), ModelError> {
    if value == 0 {
        return Err(refused(field, value, "at least 1".to_owned()));
    }
    check_at_most(field, value, max)
}

/// Checks that a size is at most `max`.
pub(crate) fn check_at_most(field: &str, value: usize, max: usize) -> Result<(), ModelError> {
    if value > max {
        return Err(refused(field, value, format!("at most {max}")));
    }
    Ok(())
}

/// Checks that a width splits evenly into heads.
pub(crate) fn check_heads(field: &str, heads: usize, width: usize) -> Result<(), ModelError> {
    check_divides(field, heads, "width", width)
}

/// Checks that `value` divides `whole`, the configuration's `name`.
pub(crate) fn check_divides(
    field: &str,
    value: usize,
    name: &str,
    whole: usize,
) -> Result<(), ModelError> {
    check_size(field, value, WIDTH_MAX)?;
    if !whole.is_multiple_of(value) {
        return Err(refused(field, value, format!("a divisor of the {name} {whole}")));
    }
    Ok(())
}

/// Checks heads whose width is free: both sizes and the width of all heads together.
pub(crate) fn check_free_heads(
    table: &str,
    heads: usize,
    head_dim: usize,
) -> Result<(), ModelError> {
    check_size(&format!("{table}.heads"), heads, WIDTH_MAX)?;
    check_size(&format!("{table}.head_dim"), head_dim, WIDTH_MAX)?;
    let name = format!("{table}.heads * head_dim");
    check_at_most(&name, heads.saturating_mul(head_dim), WIDTH_MAX)
}

/// Checks the parameters of a tower of `layers` blocks on `rows` embeddings, all of one width.
pub(crate) fn check_tower(
    table: &str,
    width: usize,
    layers: usize,
    rows: usize,
) -> Result<(), ModelError> {
    let blocks = BLOCK_SQUARES.saturating_mul(width).saturating_mul(layers);
    let parameters = blocks.saturating_add(rows).saturating_mul(width);
    check_at_most(&format!("number of parameters of {table}"), parameters, PARAMETERS_MAX)
}

/// Refuses a value of a field.
pub(crate) fn refuse(field: &str, value: f32, expected: &str) -> Result<(), ModelError> {
    let (field, value) = (field.to_owned(), value.to_string());
    Err(ModelError::Config { field, value, expected: expected.to_owned() })
}

fn refused(field: &str, value: usize, expected: String) -> ModelError {
    ModelError::Config { field: field.to_owned(), value: value.to_string(), expected }
}
