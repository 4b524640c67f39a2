//! Upper limits of the sizes of batches, images and tokenizers: above what the paper trains, and
//! there so that a slip of the keyboard becomes a message instead of a machine without memory. The
//! models have limits of their own.

/// A key, its value and its limit.
pub type Size = (&'static str, usize, usize);

/// Rows of a dataset per update. Paper: up to 16,384 (appendix B.1.3).
pub const BATCH_MAX: usize = 1 << 17;

/// Tokens of a row. Paper: 256.
pub const TOKENS_MAX: usize = 1 << 16;

/// Images of a row. Paper: 5.
pub const IMAGES_MAX: usize = 256;

/// Frames of a clip. Paper: 8.
pub const FRAMES_MAX: usize = 1024;

/// Height and width of an image in pixels. Paper: 480.
pub const IMAGE_SIZE_MAX: usize = 4096;

/// Tokens of a tokenizer that is trained. Paper: 32,000.
pub const TRAINED_VOCABULARY_MAX: usize = 1 << 21;

/// Pixel values of one dataset's batch, 32 GiB. Paper: 4.1e9 in the contrastive stage.
pub const BATCH_PIXEL_VALUES_MAX: usize = 1 << 33;

/// Tokens of one dataset's batch. Paper: 5.2e5 in the contrastive stage.
pub const BATCH_TOKENS_MAX: usize = 1 << 25;

/// Losses that the guard remembers of each dataset.
pub const GUARD_WINDOW_MAX: usize = 10_000;

/// Steps that may go wrong in a run: all of them stand in every checkpoint.
pub const TROUBLES_MAX: usize = 1000;

/// Groups of weights that are updated in ways of their own, and parts of names in one.
pub const GROUPS_MAX: usize = 64;

/// Steps whose batches are written: within it the numbers of all rows fit into 64 bits.
pub const STEPS_WRITTEN_MAX: u64 = 1 << 40;

/// Points of a grid.
pub const GRID_POINTS_MAX: usize = 1000;

/// Tokens of the smallest tokenizer that can be trained: the five marks and the 256 bytes.
pub const TRAINED_VOCABULARY_MIN: usize = 5 + 256;
