//! Tables of one row a token, which embed tokens and score them: those of the language model's own
//! tokens and, after them, those of tokens that were added to it.

use crate::tensor::Weight;

/// One row of a width for each token.
#[derive(Debug, Clone)]
pub(crate) struct TokenTable {
    /// `[V, D]`.
    pub(crate) rows: Weight,
    /// `[K, D]`: rows of the tokens `V` to `V + K - 1`.
    pub(crate) added: Option<Weight>,
}

impl TokenTable {
    /// The weights, those of the lower tokens first.
    pub(crate) fn parts(&self) -> impl Iterator<Item = &Weight> {
        [&self.rows].into_iter().chain(&self.added)
    }

    /// Whether any row is trained.
    pub(crate) fn is_trained(&self) -> bool {
        self.parts().any(Weight::is_trained)
    }
}

impl From<Weight> for TokenTable {
    fn from(rows: Weight) -> Self {
        Self { rows, added: None }
    }
}
