//! Groups of weights that are updated in ways of their own: which parameters are in one, what differs
//! for them, and the norm of the gradient of each group.
//!
//! Parameters that no group of the config takes are watched by the first part of their names:
//! `vision`, `language`, `resampler`, `cross_attention`.

use std::collections::BTreeMap;

use flamingo_model::Params;
use serde::{Deserialize, Serialize};

use crate::error::TrainError;

/// Weights that are updated in a way of their own. Read from `[[optimizer.group]]`; the first group
/// that matches a parameter takes it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupConfig {
    /// Its name in metrics, as `grad_norm.NAME`, and in messages.
    pub name: String,
    /// Which parameters: names, or whole parts of dotted names that follow one another anywhere in them.
    /// `bias` takes `vision.stem.0.bias`, `vision` takes all of the encoder, and `blocks.1` block 1 and
    /// not block 11.
    #[serde(rename = "match")]
    pub parts: Vec<String>,
    /// What the learning rate is multiplied by.
    #[serde(default = "one")]
    pub lr_scale: f64,
    /// Weight decay of all its weights, vectors too; as of the others if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight_decay: Option<f64>,
    /// Largest norm of this group's gradient, which the run's `clip_norm` leaves out then. Paper: 10 for
    /// the contrastive stage's text encoder (appendix B.1.3).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clip_norm: Option<f64>,
    /// Largest norm of the gradient of each unit, such as a filter, as a share of the norm of the unit's
    /// weights (Brock and others, 2021); the run's `clip_norm` leaves the group out then. Paper: 1e-2 for
    /// the contrastive stage's vision encoder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agc: Option<f64>,
}

fn one() -> f64 {
    1.0
}

impl GroupConfig {
    /// Whether the group takes a parameter, unless one before it does.
    pub fn matches(&self, name: &str) -> bool {
        let parts: Vec<&str> = name.split('.').collect();
        self.parts.iter().any(|wanted| {
            let wanted: Vec<&str> = wanted.split('.').collect();
            parts.windows(wanted.len()).any(|found| found == wanted)
        })
    }

    /// Whether its gradient is clipped by itself.
    pub fn clips_alone(&self) -> bool {
        self.clip_norm.is_some() || self.agc.is_some()
    }
}

/// The group that takes a parameter.
pub fn group_of<'a>(groups: &'a [GroupConfig], name: &str) -> Option<&'a GroupConfig> {
    groups.iter().find(|group| group.matches(name))
}

/// What a parameter that no group takes is watched under.
fn top_part(name: &str) -> &str {
    name.split_once('.').map_or(name, |(top, _)| top)
}

/// Names of parameters that a message gives as examples.
const EXAMPLES_MAX: usize = 6;

/// Fails unless every group takes a trained parameter and has a name that no other parameters are
/// watched under.
///
/// # Errors
/// The key of the group, its value and what was expected, which `refuse` makes an error of.
pub fn check(
    groups: &[GroupConfig],
    params: &[&Params],
    refuse: impl Fn(String, String, String) -> TrainError,
) -> Result<(), TrainError> {
    let all = params.iter().flat_map(|params| params.iter());
    let trained = all.filter(|parameter| parameter.weight.is_trained());
    let names: Vec<&str> = trained.map(|parameter| parameter.name.as_str()).collect();
    for group in groups {
        let key = |field: &str| format!("optimizer.group.{}.{field}", group.name);
        let takes = |name: &&&str| group_of(groups, name) == Some(group);
        if !names.iter().any(|name| takes(&name)) {
            let step = names.len().div_ceil(EXAMPLES_MAX).max(1);
            let examples: Vec<_> = names.iter().copied().step_by(step).collect();
            let expected = format!(
                "parts of names of trained parameters that no group before takes, such as {}",
                examples.join(", ")
            );
            return Err(refuse(key("match"), format!("{:?}", group.parts), expected));
        }
        let left = names.iter().filter(|name| group_of(groups, name).is_none());
        if let Some(name) = left.copied().find(|name| top_part(name) == group.name) {
            let expected =
                format!("another name: {name}, which it does not take, is counted there");
            return Err(refuse(key("name"), group.name.clone(), expected));
        }
    }
    Ok(())
}

/// Norms of a gradient before clipping.
#[derive(Debug, Clone, PartialEq)]
pub struct Norms {
    /// Of all trained parameters together.
    pub all: f64,
    /// Of those that the run's `clip_norm` is for.
    pub together: f64,
    /// Of each group of the config, and of the rest by the first part of the names.
    pub by_group: BTreeMap<String, f64>,
}

impl Norms {
    /// The norms of sums of squares: of each parameter, in one list for each of a model's [`Params`].
    pub(crate) fn of(groups: &[GroupConfig], squares: &[Vec<(&str, f64)>]) -> Self {
        let (mut all, mut together) = (0.0, 0.0);
        let mut by_group = BTreeMap::new();
        for params in squares {
            let (mut of_these, mut together_of_these) = (0.0, 0.0);
            for (name, square) in params {
                let group = group_of(groups, name);
                let key = group.map_or_else(|| top_part(name), |group| &group.name);
                *by_group.entry(key.to_owned()).or_insert(0.0) += square;
                of_these += square;
                if !group.is_some_and(GroupConfig::clips_alone) {
                    together_of_these += square;
                }
            }
            all += of_these;
            together += together_of_these;
        }
        for square in by_group.values_mut() {
            *square = f64::sqrt(*square);
        }
        Self { all: all.sqrt(), together: together.sqrt(), by_group }
    }

    /// What a run logs of them beside the norm of all: `grad_norm.GROUP`.
    pub fn observed(&self) -> impl Iterator<Item = (String, f64)> {
        self.by_group.iter().map(|(name, norm)| (format!("grad_norm.{name}"), *norm))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(name: &str, parts: &[&str]) -> GroupConfig {
        let parts = parts.iter().map(|part| (*part).to_owned()).collect();
        let name = name.to_owned();
        GroupConfig { name, parts, lr_scale: 1.0, weight_decay: None, clip_norm: None, agc: None }
    }

    #[test]
    fn whole_parts_that_follow_one_another_match() {
        let check = |wanted: &str, name: &str, expected: bool| {
            assert_eq!(group("g", &["nothing", wanted]).matches(name), expected, "{wanted} {name}");
        };
        check("vision", "vision.stem.0.weight", true);
        check("vision", "supervision.weight", false);
        check("blocks.1", "language.blocks.1.norm.bias", true);
        check("blocks.1", "language.blocks.11.norm.bias", false);
        check("bias", "language.blocks.11.norm.bias", true);
        check("language.blocks.1.norm.bias", "language.blocks.1.norm.bias", true);
        check("language.norm", "language.blocks.1.norm.bias", false);
        check("a.b.c", "a.b", false);
    }

    #[test]
    fn the_first_group_takes_a_parameter_and_norms_add_up() {
        let mut vision = group("encoder", &["vision"]);
        vision.agc = Some(0.01);
        let groups = [group("biases", &["bias"]), vision];
        let squares = [
            vec![("vision.a.weight", 1.0), ("vision.a.bias", 2.0)],
            vec![("text.a.weight", 4.0), ("text.a.bias", 8.0), ("log_beta", 16.0)],
        ];
        let norms = Norms::of(&groups, &squares);
        let expected = [("biases", 10.0), ("encoder", 1.0), ("log_beta", 16.0), ("text", 4.0)];
        let expected = expected.map(|(name, square)| (name.to_owned(), f64::sqrt(square)));
        assert_eq!(norms.by_group, BTreeMap::from(expected));
        assert!((norms.all - 31_f64.sqrt()).abs() < 1e-15);
        assert!((norms.together - 30_f64.sqrt()).abs() < 1e-15);
    }

    #[test]
    fn a_group_that_takes_nothing_or_whose_name_is_taken_is_refused() {
        let params = ["vision.a.weight", "vision.a.bias", "text.a.weight"];
        let params = params.map(|name| (name.to_owned(), vec![1], vec![0.0]));
        let params = Params::trained(params).unwrap();
        let found = |groups: &[GroupConfig]| {
            let refuse = |key, value, expected: String| TrainError::ConfigValue {
                path: "c.toml".into(),
                key,
                value,
                expected,
            };
            check(groups, &[&params], refuse).map_err(|error| error.to_string())
        };
        assert_eq!(found(&[group("vision", &["vision"]), group("rest", &["text"])]), Ok(()));
        let error = found(&[group("all", &["vision"]), group("late", &["bias"])]).unwrap_err();
        let key = "`optimizer.group.late.match` is [\"bias\"], expected parts of names";
        assert!(error.contains(key) && error.ends_with("vision.a.bias, text.a.weight"), "{error}");
        let error = found(&[group("vision", &["bias"])]).unwrap_err();
        assert!(error.contains("`optimizer.group.vision.name` is vision"), "{error}");
    }
}
