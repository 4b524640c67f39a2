//! The ranks of a run: each makes the gradient of its share of the rows, updates its share of the weights, and
//! together they do what one process would, but for the rounding of sums.

use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;

use flamingo_dataset::Rank;
use flamingo_model::{Gradients, Params};

use crate::collective::Collective;
use crate::error::TrainError;
use crate::groups::Norms;
use crate::optimizer::{AdamW, Share};
use crate::sharding::{Sharding, trained_sha256};
use crate::stop::StopSignal;

/// How many ranks made a run, each number under the step after which so many began.
pub type Numbers = BTreeMap<u64, usize>;

/// Notes that a run goes on after `step` on so many ranks.
pub fn note(numbers: &mut Numbers, step: u64, count: usize) {
    if numbers.last_key_value().is_none_or(|(_, last)| *last != count) {
        numbers.insert(step, count);
    }
}

/// The most ranks that made one of the updates after so many others.
pub fn most(numbers: &Numbers, done: Range<u64>) -> usize {
    let at_first = numbers.range(..=done.start).next_back();
    let later = numbers.iter().filter(|(step, _)| **step > done.start && **step < done.end);
    at_first.into_iter().chain(later).map(|(_, count)| *count).max().unwrap_or(1)
}

/// All ranks, as one of them sees them.
#[derive(Debug)]
pub struct Ranks {
    each: Rc<dyn Collective>,
    sharding: Sharding,
}

impl Ranks {
    /// Shares a model out.
    pub fn new(each: Rc<dyn Collective>, params: &[&Params]) -> Self {
        let sharding = Sharding::of(params, each.rank().count);
        Self { each, sharding }
    }

    /// How they reach each other.
    pub fn each(&self) -> &dyn Collective {
        &*self.each
    }

    /// Which this is.
    pub fn rank(&self) -> Rank {
        self.each.rank()
    }

    /// The parameters that this rank updates.
    pub fn share(&self, params: &[&Params]) -> Share {
        if self.each.is_alone() {
            return Share::All;
        }
        Share::Of(self.sharding.names(params, self.rank().index))
    }

    /// Sums the gradients of all ranks, each where it is used, and takes their norms.
    ///
    /// # Errors
    /// When another rank cannot be reached, or the device fails.
    pub fn sum_gradients(
        &self,
        optimizer: &AdamW,
        params: &[&Params],
        gradients: &mut Gradients,
    ) -> Result<Norms, TrainError> {
        if self.each.is_alone() {
            return optimizer.norms(params, gradients).map_err(TrainError::model("run"));
        }
        self.sharding.reduce(self.each(), params, gradients)?;
        let squares = params.iter().map(|params| params.gradient_squares(gradients));
        let squares = squares.collect::<Result<Vec<_>, _>>();
        let mut squares = squares.map_err(TrainError::model("run"))?;
        // What is not updated here is no sum.
        let own =
            |(name, square): &(&str, f64)| if optimizer.updates(name) { *square } else { 0.0 };
        let mut sums: Vec<f64> = squares.iter().flatten().map(own).collect();
        self.each.sum(&mut sums)?;
        squares.iter_mut().flatten().zip(sums).for_each(|((_, square), sum)| *square = sum);
        Ok(optimizer.norms_of(&squares))
    }

    /// Sends the weights that each rank has updated to all others.
    ///
    /// # Errors
    /// When another rank cannot be reached, or the device fails.
    pub fn share_weights(&self, params: &mut [&mut Params]) -> Result<(), TrainError> {
        if self.each.is_alone() {
            return Ok(());
        }
        self.sharding.broadcast(self.each(), params)
    }

    /// Lends the first rank the moments of all others, for a checkpoint, and fails unless all ranks have the
    /// same weights.
    ///
    /// # Errors
    /// When the weights differ, another rank cannot be reached, or the device fails.
    pub fn lend_moments(
        &self,
        params: &[&Params],
        optimizer: &mut AdamW,
    ) -> Result<(), TrainError> {
        if self.each.is_alone() {
            return Ok(());
        }
        self.require_same_weights(params)?;
        let moments = self.sharding.gather_moments(self.each(), params, optimizer)?;
        optimizer.set_elsewhere(moments);
        Ok(())
    }

    /// Fails unless all ranks have the same trained weights.
    ///
    /// # Errors
    /// When they differ, or another rank cannot be reached.
    pub fn require_same_weights(&self, params: &[&Params]) -> Result<(), TrainError> {
        if self.each.is_alone() {
            return Ok(());
        }
        self.each.require_same("the digest of the trained weights", &trained_sha256(params))
    }

    /// What this rank has where all ranks have something; nothing where one of them has not.
    ///
    /// # Errors
    /// When another rank cannot be reached.
    pub fn together<T, E>(
        &self,
        own: Result<Option<T>, E>,
    ) -> Result<Result<Option<T>, E>, TrainError> {
        let mut n_lacking = [f64::from(u8::from(!matches!(own, Ok(Some(_)))))];
        self.each.sum(&mut n_lacking)?;
        Ok(own.map(|own| own.filter(|_| n_lacking[0] == 0.0)))
    }

    /// A signal that came to any rank; of two, that of the user.
    ///
    /// # Errors
    /// When another rank cannot be reached.
    pub fn signal(&self, came: Option<StopSignal>) -> Result<Option<StopSignal>, TrainError> {
        let is = |signal| f64::from(u8::from(came == Some(signal)));
        let mut n = [is(StopSignal::Interrupt), is(StopSignal::Terminate)];
        self.each.sum(&mut n)?;
        let interrupted = (n[0] > 0.0).then_some(StopSignal::Interrupt);
        Ok(interrupted.or_else(|| (n[1] > 0.0).then_some(StopSignal::Terminate)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_know_how_many_ranks_made_them() {
        let mut numbers = Numbers::new();
        for (step, count) in [(0, 1), (4, 2), (6, 2), (9, 1)] {
            note(&mut numbers, step, count);
        }
        assert_eq!(numbers, Numbers::from([(0, 1), (4, 2), (9, 1)]));
        let most = |done: Range<u64>| most(&numbers, done);
        assert_eq!([most(0..4), most(0..5), most(4..5), most(5..12), most(9..10)], [1, 2, 2, 2, 1]);
        assert_eq!(super::most(&Numbers::new(), 3..4), 1);
    }
}
