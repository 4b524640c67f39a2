//! What a model loses on texts: per token, as perplexity, and in bits per byte.

use flamingo_dataset::{Batch, Tokenizer};

use crate::validation::Measures;

/// What a model loses on texts, summed over all batches: a long batch counts more than a short one.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct TextLoss {
    /// Negative log-likelihood of all predicted tokens.
    pub nats: f64,
    /// How many these are, `<EOC>` and `<EOS>` included.
    pub tokens: u64,
    /// UTF-8 bytes of their text, in which `<EOC>` and `<EOS>` are nothing.
    pub bytes: u64,
}

impl TextLoss {
    /// Adds a batch, of which `nll` `[B, L]` has what each position loses, 0 where nothing is predicted.
    pub fn add(&mut self, batch: &Batch, nll: &[f32], tokenizer: &Tokenizer) {
        self.nats += nats(nll);
        self.tokens += batch.n_predicted();
        let rows = batch.tokens.chunks(batch.length).zip(batch.loss_mask.chunks(batch.length));
        self.bytes +=
            rows.map(|(tokens, mask)| predicted_bytes(tokens, mask, tokenizer)).sum::<u64>();
    }

    /// `nll` in nats per token, `perplexity` per token, and `bits_per_byte`, which does not depend on how
    /// a tokenizer cuts text. Nothing where nothing was predicted.
    pub fn measures(&self) -> Measures {
        let mut measures = Measures::new();
        if self.tokens > 0 {
            let nll = self.nats / self.tokens as f64;
            measures.insert("nll".to_owned(), nll);
            measures.insert("perplexity".to_owned(), nll.exp());
        }
        if self.bytes > 0 {
            let bits = self.nats / std::f64::consts::LN_2;
            measures.insert("bits_per_byte".to_owned(), bits / self.bytes as f64);
        }
        measures
    }
}

/// The sum of losses.
pub fn nats(nll: &[f32]) -> f64 {
    nll.iter().map(|nats| f64::from(*nats)).sum()
}

/// Bytes of the text that a row predicts: each run of predicted tokens is decoded as a whole, since a
/// character may be of several.
fn predicted_bytes(tokens: &[u32], mask: &[f32], tokenizer: &Tokenizer) -> u64 {
    let predicted: Vec<usize> = (0..tokens.len()).filter(|l| mask[*l] > 0.0).collect();
    let runs = predicted.chunk_by(|one, next| one + 1 == *next);
    let text = |run: &[usize]| {
        let next: Vec<u32> = run.iter().map(|l| tokens[l + 1]).collect();
        tokenizer.decode(&next).len() as u64
    };
    runs.map(text).sum()
}

#[cfg(test)]
mod tests {
    use flamingo_dataset::BatchPixels;

    use super::*;

    fn tokenizer() -> Tokenizer {
        Tokenizer::train(["naïve café".to_owned()].into_iter(), 262).unwrap()
    }

    /// One row, of which the text after `n_read` tokens is predicted.
    fn batch(tokens: Vec<u32>, n_read: usize) -> Batch {
        let length = tokens.len();
        let mask = (0..length).map(|l| if l + 1 >= n_read && l + 1 < length { 1.0 } else { 0.0 });
        Batch {
            dataset: 0,
            name: "pairs".to_owned(),
            phi: vec![-1; length],
            loss_mask: mask.collect(),
            tokens,
            pixels: BatchPixels::F32(Vec::new().into()),
            image_count: vec![0],
            n_images: 0,
            n_frames: 1,
            size: 1,
            length,
            rows: vec![0],
            corrupt: Vec::new(),
        }
    }

    #[test]
    fn bytes_are_those_of_the_text_and_marks_have_none() {
        let tokenizer = tokenizer();
        let bytes = |tokens: Vec<u32>, n_read| {
            let mut loss = TextLoss::default();
            let nll = vec![0.0; tokens.len()];
            loss.add(&batch(tokens, n_read), &nll, &tokenizer);
            (loss.tokens, loss.bytes)
        };
        let mut caption = flamingo_dataset::caption_tokens("café ï", &tokenizer);
        let n_tokens = caption.len() as u64;
        assert_eq!(bytes(caption.clone(), 2), (n_tokens - 2, "café ï".len() as u64));
        // A row that is cut within a character has U+FFFD there, of three bytes.
        caption.truncate(2 + tokenizer.encode("café ").len() + 1);
        assert_eq!(bytes(caption, 2).1, "café \u{FFFD}".len() as u64);
        assert_eq!(bytes(vec![tokenizer.bos_id(), tokenizer.eos_id()], 1), (1, 0));
    }

    #[test]
    fn batches_are_weighted_by_their_tokens() {
        let tokenizer = tokenizer();
        let mut loss = TextLoss::default();
        let long = flamingo_dataset::caption_tokens("cafe", &tokenizer);
        let nll: Vec<f32> =
            batch(long.clone(), 2).loss_mask.iter().map(|mask| 2.0 * mask).collect();
        loss.add(&batch(long.clone(), 2), &nll, &tokenizer);
        let n_long = long.len() as f64 - 2.0;
        loss.add(&batch(vec![1, 2], 1), &[10.0, 0.0], &tokenizer);
        let nll = (2.0 * n_long + 10.0) / (n_long + 1.0);
        let bits = (2.0 * n_long + 10.0) / 2.0_f64.ln() / 4.0;
        let expected = [("bits_per_byte", bits), ("nll", nll), ("perplexity", nll.exp())];
        for ((key, value), (name, expected)) in loss.measures().iter().zip(expected) {
            assert_eq!(key, name);
            assert!((value - expected).abs() < 1e-12, "{key}: {value}, not {expected}");
        }
        assert_eq!(TextLoss::default().measures(), Measures::new());
    }
}
