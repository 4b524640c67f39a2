//! How many requests a server is asked at a time: more while it answers, half as many when it cannot keep up.
//!
//! As TCP does it (RFC 5681): until the first trouble one more for each answer, which doubles the number in
//! each round; from then on one more in each round. Requests that were under way when the number was halved
//! say nothing new by failing, too.

/// Requests at a time at the start.
const START: f64 = 4.0;

/// The number of requests at a time.
#[derive(Debug, Clone, PartialEq)]
pub struct Pace {
    limit: f64,
    most: f64,
    /// Times that the number was halved.
    epoch: usize,
}

impl Pace {
    /// At most `most` at a time, at least one.
    pub fn new(most: usize) -> Self {
        let most = most.max(1) as f64;
        Self { limit: START.min(most), most, epoch: 0 }
    }

    /// Requests that may be under way.
    pub fn limit(&self) -> usize {
        self.limit as usize
    }

    /// The number of the present stretch, which a request that starts now belongs to.
    pub fn epoch(&self) -> usize {
        self.epoch
    }

    /// After an answer.
    pub fn succeeded(&mut self) {
        let more = if self.epoch == 0 { 1.0 } else { 1.0 / self.limit };
        self.limit = (self.limit + more).min(self.most);
    }

    /// After a request of `epoch` that the server could not take or answer.
    pub fn failed(&mut self, epoch: usize) {
        if epoch == self.epoch {
            self.limit = (self.limit / 2.0).max(1.0);
            self.epoch += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_doubles_in_each_round_and_after_trouble_grows_by_one() {
        let mut pace = Pace::new(40);
        let round = |pace: &mut Pace| {
            for _ in 0..pace.limit() {
                pace.succeeded();
            }
            pace.limit()
        };
        assert_eq!([round(&mut pace), round(&mut pace), round(&mut pace)], [8, 16, 32]);
        assert_eq!([round(&mut pace), round(&mut pace)], [40, 40]);
        pace.failed(0);
        assert_eq!(pace.limit(), 20);
        let grown = round(&mut pace);
        assert!((20..=21).contains(&grown), "{grown}");
    }

    #[test]
    fn a_burst_of_failures_halves_once_and_one_always_goes_on() {
        let mut pace = Pace::new(16);
        for _ in 0..12 {
            pace.succeeded();
        }
        let epoch = pace.epoch();
        for _ in 0..16 {
            pace.failed(epoch);
        }
        assert_eq!(pace.limit(), 8);
        for _ in 0..10 {
            pace.failed(pace.epoch());
        }
        assert_eq!(pace.limit(), 1);
        assert_eq!(Pace::new(0).limit(), 1);
    }
}
