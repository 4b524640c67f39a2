//! Names and layouts of checkpoints that others wrote, as rules that work in both directions.

use std::collections::BTreeMap;
use std::path::Path;

use crate::error::ModelError;
use crate::weights_file::Tensors;

/// How the values of one of our parameters lie in theirs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Layout {
    /// As ours.
    Same,
    /// `[in, out]`, where ours is `[out, in]`.
    Transposed,
    /// Queries, keys and values head by head, `[heads, 3, size, ..]`, where ours is
    /// `[3, heads, size, ..]`.
    ByHead {
        /// Number of heads.
        heads: usize,
    },
}

/// Where one of our parameters is found in a checkpoint of others.
#[derive(Debug, Clone)]
pub(crate) struct Rule {
    /// Our shape.
    pub(crate) shape: Vec<usize>,
    /// Their names with the rows that each has; together they make our rows.
    pub(crate) parts: Vec<(String, usize)>,
    /// How each part lies.
    pub(crate) layout: Layout,
    /// Their shape, if it is another for the same values.
    pub(crate) reshaped: Option<Vec<usize>>,
}

impl Rule {
    /// One tensor with our shape.
    pub(crate) fn same(name: impl Into<String>, shape: &[usize]) -> Self {
        Self::of(name, shape, Layout::Same)
    }

    /// One tensor in another layout.
    pub(crate) fn of(name: impl Into<String>, shape: &[usize], layout: Layout) -> Self {
        let parts = vec![(name.into(), shape[0])];
        Self { shape: shape.to_vec(), parts, layout, reshaped: None }
    }

    /// One tensor with the same values in another shape.
    pub(crate) fn reshaped(name: impl Into<String>, ours: &[usize], theirs: &[usize]) -> Self {
        Self { reshaped: Some(theirs.to_vec()), ..Self::same(name, ours) }
    }

    /// Several tensors, one below the other.
    pub(crate) fn rows(parts: Vec<(String, usize)>, columns: &[usize]) -> Self {
        let rows = parts.iter().map(|(_, rows)| rows).sum();
        Self { shape: [&[rows], columns].concat(), parts, layout: Layout::Same, reshaped: None }
    }

    /// Their names and shapes.
    pub(crate) fn theirs(&self) -> impl Iterator<Item = (&str, Vec<usize>)> {
        self.parts.iter().map(|(name, rows)| {
            if let Some(shape) = &self.reshaped {
                return (name.as_str(), shape.clone());
            }
            let mut shape = self.shape.clone();
            shape[0] = *rows;
            if self.layout == Layout::Transposed {
                shape.reverse();
            }
            (name.as_str(), shape)
        })
    }

    /// Our values.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape.
    fn gather(&self, tensors: &mut Tensors, path: &Path) -> Result<Vec<f32>, ModelError> {
        let mut all = Vec::new();
        for (name, shape) in self.theirs() {
            let values = tensors.take(name, &shape, path)?;
            let values = match self.layout {
                Layout::Same => values,
                Layout::Transposed => transposed(&values, shape[0]),
                Layout::ByHead { heads } => swapped(&values, heads, 3),
            };
            if all.is_empty() {
                all = values;
            } else {
                all.extend_from_slice(&values);
            }
        }
        Ok(all)
    }

    /// Their tensors, from our values.
    pub(crate) fn scatter(&self, values: &[f32], into: &mut Tensors) {
        let row = values.len() / self.shape[0];
        let mut rest = values;
        for ((name, shape), (_, rows)) in self.theirs().zip(&self.parts) {
            let part;
            (part, rest) = rest.split_at(rows * row);
            let part = match self.layout {
                Layout::Same => part.to_vec(),
                Layout::Transposed => transposed(part, *rows),
                Layout::ByHead { heads } => swapped(part, 3, heads),
            };
            into.insert(name, &shape, part);
        }
    }
}

/// `[rows, n]` to `[n, rows]`.
fn transposed(values: &[f32], rows: usize) -> Vec<f32> {
    swapped(values, rows, values.len() / rows)
}

/// `[a, b, rest]` to `[b, a, rest]`.
fn swapped(values: &[f32], a: usize, b: usize) -> Vec<f32> {
    let rest = values.len() / (a * b);
    let mut out = Vec::with_capacity(values.len());
    for j in 0..b {
        for i in 0..a {
            out.extend_from_slice(&values[(i * b + j) * rest..][..rest]);
        }
    }
    out
}

/// Rules for every parameter of a model, by our names.
#[derive(Debug, Clone, Default)]
pub(crate) struct Rules(BTreeMap<String, Rule>);

impl Rules {
    pub(crate) fn add(&mut self, ours: impl Into<String>, rule: Rule) {
        self.0.insert(ours.into(), rule);
    }

    /// The values of the parameter that we call `ours`.
    ///
    /// # Errors
    /// When there is no rule, a tensor is missing, or a shape differs.
    pub(crate) fn take(
        &self,
        ours: &str,
        shape: &[usize],
        tensors: &mut Tensors,
        path: &Path,
    ) -> Result<Vec<f32>, ModelError> {
        match self.0.get(ours) {
            Some(rule) if rule.shape == shape => rule.gather(tensors, path),
            _ => Err(ModelError::MissingTensor {
                path: path.to_path_buf(),
                name: ours.to_owned(),
                shape: shape.to_vec(),
            }),
        }
    }

    /// Names and shapes of the tensors that hold the parameter that we call `ours`; none if there
    /// is no rule.
    pub(crate) fn theirs(&self, ours: &str) -> Vec<(String, Vec<usize>)> {
        let rule = self.0.get(ours).into_iter();
        rule.flat_map(Rule::theirs).map(|(name, shape)| (name.to_owned(), shape)).collect()
    }

    /// Their tensors, from our values by our names.
    ///
    /// # Errors
    /// When a parameter has no rule.
    pub(crate) fn translate<'a>(
        &self,
        ours: impl IntoIterator<Item = (&'a str, std::borrow::Cow<'a, [f32]>)>,
    ) -> Result<Tensors, ModelError> {
        let mut theirs = Tensors::default();
        for (name, values) in ours {
            let rule = self.0.get(name).ok_or_else(|| ModelError::NoName { name: name.into() })?;
            rule.scatter(&values, &mut theirs);
        }
        Ok(theirs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_layout_comes_back_as_it_was() {
        let ours: Vec<f32> = (0..24).map(|i| i as f32).collect();
        for rule in [
            Rule::same("a", &[6, 4]),
            Rule::reshaped("a", &[6, 4], &[6, 2, 2]),
            Rule::of("a", &[6, 4], Layout::Transposed),
            Rule::of("a", &[6, 4], Layout::ByHead { heads: 2 }),
            Rule::rows(vec![("a".into(), 1), ("b".into(), 2), ("c".into(), 3)], &[4]),
        ] {
            let mut theirs = Tensors::default();
            rule.scatter(&ours, &mut theirs);
            assert_eq!(rule.gather(&mut theirs, Path::new("w")).unwrap(), ours, "{rule:?}");
        }
    }

    #[test]
    fn heads_hold_queries_keys_and_values_side_by_side() {
        // Ours: q of head 0 and 1, k of both, v of both.
        let rule = Rule::of("a", &[6], Layout::ByHead { heads: 2 });
        let mut theirs = Tensors::default();
        rule.scatter(&[0.0, 1.0, 10.0, 11.0, 20.0, 21.0], &mut theirs);
        let values = theirs.take("a", &[6], Path::new("w")).unwrap();
        assert_eq!(values, [0.0, 10.0, 20.0, 1.0, 11.0, 21.0]);
    }
}
