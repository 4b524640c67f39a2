//! Plans with the numbers of known corpora.

use serde::{Deserialize, Serialize};
use toml::{Table, Value};

/// A named plan, which a plan may begin from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Preset {
    /// The defaults: the paper's rules for images, and no rules for texts.
    #[default]
    None,
    /// M3W, the paper's interleaved corpus: its rules for images, English only, Gopher's rules.
    M3w,
    /// OBELICS: its rules for images, paragraphs and documents.
    Obelics,
    /// Multimodal C4: its rules for images, C4's rules for texts.
    Mmc4,
    /// The basic filtering of `DataComp`, for pairs.
    DatacompBasic,
}

impl Preset {
    /// All presets but the empty one.
    pub const ALL: [Self; 4] = [Self::M3w, Self::Obelics, Self::Mmc4, Self::DatacompBasic];

    /// The name in a plan.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::M3w => "m3w",
            Self::Obelics => "obelics",
            Self::Mmc4 => "mmc4",
            Self::DatacompBasic => "datacomp-basic",
        }
    }

    /// The keys that it sets, as TOML with comments.
    pub fn toml(self) -> &'static str {
        match self {
            Self::None => "",
            Self::M3w => include_str!("presets/m3w.toml"),
            Self::Obelics => include_str!("presets/obelics.toml"),
            Self::Mmc4 => include_str!("presets/mmc4.toml"),
            Self::DatacompBasic => include_str!("presets/datacomp-basic.toml"),
        }
    }

    /// `plan` with the keys of the preset where it has none of its own.
    ///
    /// # Panics
    /// Never: the presets are TOML.
    pub(crate) fn under(self, plan: Table) -> Table {
        let mut table: Table = self.toml().parse().expect("a preset is TOML");
        merge(&mut table, plan);
        table
    }
}

fn merge(below: &mut Table, above: Table) {
    for (key, value) in above {
        match (below.get_mut(&key), value) {
            (Some(Value::Table(below)), Value::Table(above)) => merge(below, above),
            (_, value) => {
                below.insert(key, value);
            }
        }
    }
}
