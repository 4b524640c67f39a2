//! Beam search over the tokens of one continuation, step for step as transformers does it, so that
//! both find the same tokens: twice as many candidates as beams are looked at, an ended one counts
//! only among the best, and the search ends when no open beam can beat the worst that is kept.

/// A continuation that has ended or was cut off.
#[derive(Debug, Clone)]
struct Ended {
    tokens: Vec<u32>,
    score: f32,
}

/// An open continuation.
#[derive(Debug, Clone)]
pub(crate) struct Beam {
    /// The beam of the step before that this one goes on from.
    pub(crate) parent: usize,
    /// What has been written so far.
    pub(crate) tokens: Vec<u32>,
    /// Sum of the tokens' log-probabilities, in nats.
    log_probability: f32,
}

/// The search for the continuation of one prompt.
#[derive(Debug, Clone)]
pub(crate) struct BeamSearch {
    /// Open beams, the best first.
    pub(crate) open: Vec<Beam>,
    ended: Vec<Ended>,
    beams: usize,
    length_penalty: f32,
    stop: u32,
    done: bool,
}

impl BeamSearch {
    pub(crate) fn new(beams: usize, length_penalty: f32, stop: u32) -> Self {
        let first = Beam { parent: 0, tokens: Vec::new(), log_probability: 0.0 };
        Self { open: vec![first], ended: Vec::new(), beams, length_penalty, stop, done: false }
    }

    /// Whether nothing more can be found.
    pub(crate) fn is_done(&self) -> bool {
        self.done
    }

    /// Takes the log-probabilities `[vocabulary]` of the next token after each open beam.
    pub(crate) fn advance(&mut self, next: &[Vec<f32>]) {
        let mut candidates: Vec<(f32, usize, u32)> = Vec::new();
        for (i, (beam, log_probabilities)) in self.open.iter().zip(next).enumerate() {
            let scores = log_probabilities.iter().zip(0_u32..);
            let mut of_beam: Vec<(f32, usize, u32)> =
                scores.map(|(p, token)| (p + beam.log_probability, i, token)).collect();
            let n = (2 * self.beams).min(of_beam.len());
            let better = |a: &(f32, usize, u32), b: &(f32, usize, u32)| {
                b.0.total_cmp(&a.0).then_with(|| (a.1, a.2).cmp(&(b.1, b.2)))
            };
            if n < of_beam.len() {
                of_beam.select_nth_unstable_by(n, better);
            }
            candidates.extend(&of_beam[..n]);
            candidates.sort_unstable_by(better);
            candidates.truncate(2 * self.beams);
        }
        let length = self.open.first().map_or(0, |beam| beam.tokens.len()) + 1;
        let best = candidates.first().map_or(f32::NEG_INFINITY, |candidate| candidate.0);
        let mut open = Vec::with_capacity(self.beams);
        for (rank, (score, parent, token)) in candidates.into_iter().enumerate() {
            let mut tokens = self.open[parent].tokens.clone();
            if token == self.stop {
                if rank < self.beams {
                    self.end(tokens, score, length);
                }
                continue;
            }
            if open.len() < self.beams {
                tokens.push(token);
                open.push(Beam { parent, tokens, log_probability: score });
            }
        }
        self.open = open;
        let attainable = self.normalised(best, length);
        self.done |=
            self.open.is_empty() || (self.ended.len() >= self.beams && self.worst() >= attainable);
    }

    /// The best continuation, the open beams counted as they are.
    pub(crate) fn finish(mut self) -> Vec<u32> {
        if !self.done {
            for beam in std::mem::take(&mut self.open) {
                let length = beam.tokens.len();
                self.end(beam.tokens, beam.log_probability, length);
            }
        }
        // The last of equals, as a stable sort in rising order leaves it at the end.
        let best = self.ended.into_iter().max_by(|a, b| a.score.total_cmp(&b.score));
        best.map_or_else(Vec::new, |ended| ended.tokens)
    }

    fn normalised(&self, log_probability: f32, length: usize) -> f32 {
        log_probability / (length as f32).powf(self.length_penalty)
    }

    fn worst(&self) -> f32 {
        self.ended.iter().map(|ended| ended.score).fold(f32::INFINITY, f32::min)
    }

    /// Keeps an ended continuation if it is among the best.
    fn end(&mut self, tokens: Vec<u32>, log_probability: f32, length: usize) {
        let score = self.normalised(log_probability, length.max(1));
        if self.ended.len() >= self.beams {
            let worst = self.worst();
            if score <= worst {
                return;
            }
            let lowest = self.ended.iter().position(|ended| ended.score <= worst);
            lowest.map(|i| self.ended.remove(i));
        }
        self.ended.push(Ended { tokens, score });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Log-probabilities of three tokens, the first of which stops.
    fn next(probabilities: &[[f32; 3]]) -> Vec<Vec<f32>> {
        probabilities.iter().map(|p| p.iter().map(|p| p.ln()).collect()).collect()
    }

    #[test]
    fn a_beam_finds_what_greed_misses() {
        // 1 is likelier at first, but what follows 2 is certain.
        let mut search = BeamSearch::new(2, 0.0, 0);
        search.advance(&next(&[[0.1, 0.5, 0.4]]));
        assert_eq!(search.open.iter().map(|b| b.tokens[0]).collect::<Vec<_>>(), [1, 2]);
        search.advance(&next(&[[0.3, 0.3, 0.4], [1.0, 0.0, 0.0]]));
        assert_eq!(search.finish(), [2]);
    }

    #[test]
    fn a_positive_length_penalty_favours_the_longer() {
        let run = |length_penalty| {
            let mut search = BeamSearch::new(2, length_penalty, 0);
            search.advance(&next(&[[0.5, 0.45, 0.05]]));
            search.advance(&next(&[[0.9, 0.05, 0.05], [0.9, 0.05, 0.05]]));
            search.finish()
        };
        assert_eq!(run(0.0), Vec::<u32>::new());
        assert_eq!(run(2.0), [1]);
    }
}
