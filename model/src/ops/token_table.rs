//! Tables of one row a token, which embed tokens and score them: those of the language model's own
//! tokens and, beside them, those of tokens that were added to it and of some that are trained while its
//! own rows stay as they are.

use std::sync::Arc;

use crate::tensor::Weight;

/// One row of a width for each token.
#[derive(Debug, Clone)]
pub(crate) struct TokenTable {
    /// `[V, D]`.
    pub(crate) rows: Weight,
    /// `[K, D]`: rows of the tokens `V` to `V + K - 1`.
    pub(crate) added: Option<Weight>,
    /// Rows in the place of some of the first `V`.
    pub(crate) moved: Option<MovedRows>,
}

/// Rows of some tokens, which stand for those in a table.
#[derive(Debug, Clone)]
pub(crate) struct MovedRows {
    /// The tokens, `R` of them in ascending order.
    pub(crate) tokens: Arc<[u32]>,
    /// `[R, D]`.
    pub(crate) rows: Weight,
}

/// Consecutive tokens whose rows lie one after the other in one weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Part {
    /// Which of the table's [`weights`](TokenTable::weights).
    pub(crate) weight: usize,
    /// The row of the first token.
    pub(crate) first_row: usize,
    /// Rows, at least 1.
    pub(crate) n_rows: usize,
}

impl TokenTable {
    /// The weights that rows lie in.
    pub(crate) fn weights(&self) -> impl Iterator<Item = &Weight> {
        let moved = self.moved.as_ref().map(|moved| &moved.rows);
        [&self.rows].into_iter().chain(&self.added).chain(moved)
    }

    /// Whether any row is trained.
    pub(crate) fn is_trained(&self) -> bool {
        self.weights().any(Weight::is_trained)
    }

    /// Where the rows lie.
    pub(crate) fn layout(&self, width: usize) -> Layout {
        Layout {
            own: self.rows.len() / width,
            added: self.added.as_ref().map_or(0, |added| added.len() / width),
            moved: self.moved.as_ref().map(|moved| Arc::clone(&moved.tokens)),
        }
    }
}

impl From<Weight> for TokenTable {
    fn from(rows: Weight) -> Self {
        Self { rows, added: None, moved: None }
    }
}

/// Where the rows of a table lie.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    own: usize,
    added: usize,
    moved: Option<Arc<[u32]>>,
}

impl Layout {
    /// Number of tokens.
    pub(crate) fn n_tokens(&self) -> usize {
        self.own + self.added
    }

    /// Which of the weights holds the row of a token, and which row of it that is.
    pub(crate) fn place_of(&self, token: u32) -> (usize, usize) {
        let moved = self.moved.as_ref().and_then(|moved| moved.binary_search(&token).ok());
        match (moved, token as usize) {
            (Some(row), _) => (self.moved_weight(), row),
            (None, token) if token < self.own => (0, token),
            (None, token) => (1, token - self.own),
        }
    }

    /// All tokens in order, in as few parts as can be.
    pub(crate) fn parts(&self) -> Vec<Part> {
        let mut parts = Vec::new();
        let mut add = |weight, first_row, n_rows| {
            if n_rows > 0 {
                parts.push(Part { weight, first_row, n_rows });
            }
        };
        let mut next = 0;
        for (row, token) in self.moved.iter().flat_map(|moved| moved.iter()).enumerate() {
            let token = *token as usize;
            add(0, next, token - next);
            add(self.moved_weight(), row, 1);
            next = token + 1;
        }
        add(0, next, self.own - next);
        add(1, 0, self.added);
        parts
    }

    fn moved_weight(&self) -> usize {
        1 + usize::from(self.added > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_hold_each_token_once_in_its_place() {
        let zeros = |rows: usize| Weight::trained(vec![0.0; 2 * rows]).unwrap();
        for added in [None, Some(zeros(3))] {
            for tokens in [&[0, 4][..], &[1, 2], &[3], &[0, 1, 2, 3, 4]] {
                let (rows, tokens) = (zeros(tokens.len()), Arc::from(tokens));
                let moved = Some(MovedRows { tokens: Arc::clone(&tokens), rows });
                let table = TokenTable { rows: zeros(5), added: added.clone(), moved };
                let layout = table.layout(2);
                let parts = layout.parts();
                let rows = parts.iter().flat_map(|part| {
                    (0..part.n_rows).map(|row| (part.weight, part.first_row + row))
                });
                let rows: Vec<_> = rows.collect();
                let places = (0..layout.n_tokens()).map(|token| layout.place_of(token as u32));
                assert_eq!(rows, places.collect::<Vec<_>>(), "{tokens:?}");
                let lengths: Vec<_> = table.weights().map(|weight| weight.len() / 2).collect();
                assert!(rows.iter().all(|(weight, row)| *row < lengths[*weight]), "{tokens:?}");
                let moved = lengths.len() - 1;
                let those = (0..5).filter(|token| rows[*token].0 == moved).map(|t| t as u32);
                assert_eq!(those.collect::<Vec<_>>(), *tokens);
            }
        }
    }
}
