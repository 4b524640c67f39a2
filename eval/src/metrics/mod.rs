//! Scores as the official tools give them, oddities included, each a function of values that needs no
//! model, no Java and no network. Where tools disagree, each rule has a name.
//!
//! - captions: [`captions`] how they become words, [`bleu`], [`rouge`], [`cider`] on
//!   [`ptb_tokenize`]; [`meteor`]
//! - answers: [`vqa`], [`wups`] on [`wordnet`] and [`nltk_tokenize`], [`exact`]
//! - rankings and probabilities: [`ranking`], [`roc_auc`](mod@roc_auc), [`mwap`]

pub mod bleu;
pub mod captions;
pub mod cider;
pub mod exact;
pub mod meteor;
pub mod mwap;
pub mod nltk_tokenize;
pub mod ptb_tokenize;
pub mod ranking;
pub mod roc_auc;
pub mod rouge;
mod vocabulary;
pub mod vqa;
pub mod wordnet;
pub mod wups;
