//! The learning rate at each step: linear warm-up, then constant or decaying.
//!
//! The paper warms up over 5,000 steps to 1e-4 and stays there: decay gave nothing (appendix
//! B.1.2). Its contrastive stage decays linearly to zero (appendix B.1.3).

use serde::{Deserialize, Serialize};

/// What follows the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Decay {
    /// The peak, for ever (paper, appendix B.1.2).
    Constant,
    /// A straight line to zero at the last step (paper, appendix B.1.3).
    Linear,
    /// Half a cosine to zero at the last step.
    Cosine,
    /// By the same factor at each step, to a tenth at the last one (paper, appendix B.2.2).
    Exponential,
}

impl Decay {
    /// Whether the learning rate is the same however many steps a run has.
    pub fn is_endless(self) -> bool {
        self == Self::Constant
    }
}

/// A whole schedule.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    /// Learning rate at the end of the warm-up.
    pub lr_peak: f64,
    /// Steps of the warm-up. The first step already learns, with `1 / warmup_steps` of the peak.
    pub warmup_steps: u64,
    /// Steps of the run, where decays end.
    pub steps: u64,
    /// What follows the warm-up.
    pub decay: Decay,
}

impl Schedule {
    /// What may be a slip: a run that ends before its warm-up does. It is none where `steps` is cut for a try.
    pub fn warning(&self) -> Option<String> {
        let Self { lr_peak, warmup_steps, steps, .. } = *self;
        (warmup_steps > steps).then(|| {
            let last = self.lr(steps.saturating_sub(1));
            format!(
                "warning: `optimizer.warmup_steps` is {warmup_steps}, but the run ends after {steps} steps, at a \
                 learning rate of {last:.2e}: it never gets to {lr_peak:.2e}"
            )
        })
    }

    /// Learning rate of the update that follows `done` updates.
    pub fn lr(&self, done: u64) -> f64 {
        if done < self.warmup_steps {
            return self.lr_peak * (done + 1) as f64 / self.warmup_steps as f64;
        }
        let decaying_steps = self.steps.saturating_sub(self.warmup_steps).max(1);
        let progress = (done - self.warmup_steps) as f64 / decaying_steps as f64;
        let progress = progress.min(1.0);
        self.lr_peak
            * match self.decay {
                Decay::Constant => 1.0,
                Decay::Linear => 1.0 - progress,
                Decay::Exponential => 0.1_f64.powf(progress),
                Decay::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * progress).cos()),
            }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(decay: Decay, done: u64, expected: f64) {
        let schedule = Schedule { lr_peak: 2.0, warmup_steps: 4, steps: 12, decay };
        let lr = schedule.lr(done);
        assert!((lr - expected).abs() < 1e-12, "{decay:?} after {done}: {lr}, not {expected}");
    }

    #[test]
    fn a_run_that_ends_before_its_warm_up_does_is_warned_of() {
        let warning = |warmup_steps, steps| {
            Schedule { lr_peak: 2e-4, warmup_steps, steps, decay: Decay::Linear }.warning()
        };
        assert_eq!([warning(0, 1), warning(5, 5), warning(5, 6)], [None, None, None]);
        let told = warning(100, 25).unwrap();
        assert!(told.contains("`optimizer.warmup_steps` is 100"), "{told}");
        assert!(told.contains("after 25 steps, at a learning rate of 5.00e-5"), "{told}");
    }

    #[test]
    fn warm_up_is_linear_and_the_decays_end_where_they_should() {
        for decay in [Decay::Constant, Decay::Linear, Decay::Cosine, Decay::Exponential] {
            check(decay, 0, 0.5);
            check(decay, 3, 2.0);
            check(decay, 4, 2.0);
        }
        check(Decay::Constant, 1_000_000, 2.0);
        check(Decay::Linear, 8, 1.0);
        check(Decay::Linear, 11, 0.25);
        check(Decay::Linear, 12, 0.0);
        check(Decay::Linear, 99, 0.0);
        check(Decay::Cosine, 8, 1.0);
        check(Decay::Cosine, 6, 1.0 + std::f64::consts::FRAC_1_SQRT_2);
        check(Decay::Cosine, 12, 0.0);
        check(Decay::Exponential, 8, 2.0 * 0.1_f64.sqrt());
        check(Decay::Exponential, 12, 0.2);
        check(Decay::Exponential, 99, 0.2);
    }

    #[test]
    fn without_warm_up_the_first_step_has_the_peak() {
        let schedule = Schedule { lr_peak: 3.0, warmup_steps: 0, steps: 0, decay: Decay::Linear };
        assert!((schedule.lr(0) - 3.0).abs() < 1e-12);
    }
}
