//! What is odd about predictions that can be scored all the same.

use crate::metric::Form;
use crate::metric::evidence::{Evidence, Prediction};
use crate::metrics::ptb_tokenize::LINE_ENDS;

/// Bytes from which on an answer is called long.
const LONG_BYTES: usize = 2000;

/// Lines for the user, each with how many and the first id.
pub(super) fn of(
    form: Form,
    items: &[Evidence<'_>],
    predictions: &[Prediction<'_>],
) -> Vec<String> {
    let is_text = |prediction: &&Prediction<'_>| matches!(prediction, Prediction::Text(_));
    if !predictions.iter().any(|prediction| is_text(&prediction)) {
        return Vec::new();
    }
    let mut warnings = Vec::new();
    let mut warn = |what: &str, is_odd: &dyn Fn(&str) -> bool| {
        let odd = items.iter().zip(predictions);
        let mut odd = odd.filter(|(_, said)| is_text(said) && is_odd(said.text()));
        if let Some((first, _)) = odd.next() {
            let n = 1 + odd.count();
            let predictions = if n == 1 { "prediction" } else { "predictions" };
            warnings.push(format!("{n} {predictions} {what} (first: {})", first.id));
        }
    };
    warn("without a word", &|text| text.trim().is_empty());
    if form == Form::Captions {
        let what = "with a line end inside, at which the official tokenizer would shift all later captions";
        warn(what, &|text| text.trim_end_matches(LINE_ENDS).contains(LINE_ENDS));
    }
    warn("with the character NUL", &|text| text.contains('\0'));
    warn(&format!("of more than {LONG_BYTES} bytes"), &|text| text.len() > LONG_BYTES);
    warnings
}
