//! What the ranks of a run say to each other: processes that train one model together, each on its share of
//! every batch.
//!
//! All ranks make the same calls in the same order; a call ends when every rank has made it. A rank that
//! fails ends all of them, by [`Collective::abort`].

use std::fmt::Debug;

use flamingo_dataset::Rank;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::TrainError;
use crate::validation::Measures;

/// Bytes of an f32.
const VALUE_BYTES: usize = size_of::<f32>();

/// A way for ranks to reach each other.
pub trait Collective: Debug {
    /// Which rank this is.
    fn rank(&self) -> Rank;

    /// The bytes of all ranks, in their order, on each of them.
    ///
    /// # Errors
    /// When another rank cannot be reached.
    fn gather(&self, bytes: &[u8]) -> Result<Vec<Vec<u8>>, TrainError>;

    /// Makes a rank's own part, one of as many as there are ranks, the sum of that part of all ranks, where it is as
    /// long; the other parts are of no use then. The order of the sums depends on the number of ranks alone.
    ///
    /// # Errors
    /// When another rank cannot be reached.
    fn reduce_scatter(&self, parts: &mut [Vec<f32>]) -> Result<(), TrainError>;

    /// Makes each part, one of as many as there are ranks, that of the rank which it belongs to, where it is as long.
    ///
    /// # Errors
    /// When another rank cannot be reached.
    fn all_gather(&self, parts: &mut [Vec<f32>]) -> Result<(), TrainError>;

    /// Makes the values of the first rank those of rank `from`, another one. Ranks beside these two do not take
    /// part in the call; values elsewhere than on the first stay.
    ///
    /// # Errors
    /// When the other rank cannot be reached.
    fn send_to_first(&self, from: usize, values: &mut [f32]) -> Result<(), TrainError>;

    /// Ends the other ranks, and this one: it has failed. One rank alone goes on, to end by itself.
    fn abort(&self, code: u8);
}

/// One process that does all by itself.
#[derive(Debug, Clone, Copy)]
pub struct Alone;

impl Collective for Alone {
    fn rank(&self) -> Rank {
        Rank::ONLY
    }

    fn gather(&self, bytes: &[u8]) -> Result<Vec<Vec<u8>>, TrainError> {
        Ok(vec![bytes.to_vec()])
    }

    fn reduce_scatter(&self, _parts: &mut [Vec<f32>]) -> Result<(), TrainError> {
        Ok(())
    }

    fn all_gather(&self, _parts: &mut [Vec<f32>]) -> Result<(), TrainError> {
        Ok(())
    }

    fn send_to_first(&self, _from: usize, _values: &mut [f32]) -> Result<(), TrainError> {
        Ok(())
    }

    fn abort(&self, _code: u8) {}
}

impl dyn Collective + '_ {
    /// Whether this is the rank that writes and speaks.
    pub fn is_first(&self) -> bool {
        self.rank().index == 0
    }

    /// Whether there is no other.
    pub fn is_alone(&self) -> bool {
        self.rank().count == 1
    }

    /// Waits for all ranks.
    ///
    /// # Errors
    /// When another rank cannot be reached.
    pub fn barrier(&self) -> Result<(), TrainError> {
        self.gather(&[]).map(|_| ())
    }

    /// A value of each rank, in their order.
    ///
    /// # Errors
    /// When another rank cannot be reached, or runs another program.
    ///
    /// # Panics
    /// Never: what is said is numbers, texts, lists and tables.
    pub fn gather_values<T: Serialize + DeserializeOwned>(
        &self,
        value: &T,
    ) -> Result<Vec<T>, TrainError> {
        let bytes = serde_json::to_vec(value).expect("numbers, texts, lists and tables");
        let all = self.gather(&bytes)?;
        let read =
            |bytes: &Vec<u8>| serde_json::from_slice(bytes).map_err(TrainError::ranks("read"));
        all.iter().map(read).collect()
    }

    /// The values of all ranks, one after the other in their order, and where those of this rank begin.
    ///
    /// # Errors
    /// When another rank cannot be reached.
    pub fn gather_floats(&self, values: &[f32]) -> Result<(Vec<f32>, usize), TrainError> {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let all = self.gather(&bytes)?;
        let first = all[..self.rank().index].iter().map(|bytes| bytes.len() / VALUE_BYTES).sum();
        let values = all.iter().flat_map(|bytes| bytes.as_chunks::<VALUE_BYTES>().0);
        Ok((values.map(|bytes| f32::from_le_bytes(*bytes)).collect(), first))
    }

    /// Sums in f64, in the order of the ranks: the same bits on each of them.
    ///
    /// # Errors
    /// When another rank cannot be reached.
    pub fn sum(&self, values: &mut [f64]) -> Result<(), TrainError> {
        if self.is_alone() {
            return Ok(());
        }
        // As bits: what is not a number is none in JSON.
        let bits: Vec<u64> = values.iter().map(|value| value.to_bits()).collect();
        let all = self.gather_values(&bits)?;
        values.fill(0.0);
        for of_rank in all {
            values.iter_mut().zip(of_rank).for_each(|(sum, bits)| *sum += f64::from_bits(bits));
        }
        Ok(())
    }

    /// The measures of the first rank, on all of them; none where it has none.
    ///
    /// # Errors
    /// When another rank cannot be reached, and what this one failed with.
    pub fn of_first(
        &self,
        own: Result<Option<Measures>, TrainError>,
    ) -> Result<Option<Measures>, TrainError> {
        if self.is_alone() {
            return own;
        }
        // As bits: what is not a number is none in JSON.
        let bits = |(name, value): (&String, &f64)| (name.clone(), value.to_bits());
        let said = own.as_ref().ok().and_then(Option::as_ref);
        let said = said.map(|measures| measures.iter().map(bits).collect::<Vec<_>>());
        let first = self.gather_values(&said)?.swap_remove(0);
        own?;
        let value = |(name, bits): (String, u64)| (name, f64::from_bits(bits));
        Ok(first.map(|measures| measures.into_iter().map(value).collect()))
    }

    /// Fails unless `found` is the same on all ranks; `what` says what it is.
    ///
    /// # Errors
    /// When it is not; the error names the ranks that differ from the first.
    pub fn require_same(&self, what: &str, found: &str) -> Result<(), TrainError> {
        if self.is_alone() {
            return Ok(());
        }
        let all = self.gather_values(&found.to_owned())?;
        let first = &all[0];
        let others = all.iter().enumerate().filter(|(_, other)| *other != first);
        let others: Vec<String> = others.map(|(rank, _)| rank.to_string()).collect();
        if others.is_empty() {
            return Ok(());
        }
        Err(TrainError::RanksDiffer { what: what.to_owned(), ranks: others.join(", ") })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::{BTreeMap, VecDeque};
    use std::sync::{Arc, Barrier, Mutex};

    use super::*;

    /// Values on their way from some rank to the first, one after the other.
    type Sent = Arc<Mutex<BTreeMap<usize, VecDeque<Vec<f32>>>>>;

    /// Ranks that are threads of one process.
    #[derive(Debug, Clone)]
    pub(crate) struct Threads {
        rank: Rank,
        said: Arc<Mutex<Vec<Vec<u8>>>>,
        met: Arc<Barrier>,
        sent: Sent,
    }

    impl Collective for Threads {
        fn rank(&self) -> Rank {
            self.rank
        }

        fn gather(&self, bytes: &[u8]) -> Result<Vec<Vec<u8>>, TrainError> {
            self.said.lock().unwrap()[self.rank.index] = bytes.to_vec();
            self.met.wait();
            let all = self.said.lock().unwrap().clone();
            self.met.wait();
            Ok(all)
        }

        fn reduce_scatter(&self, parts: &mut [Vec<f32>]) -> Result<(), TrainError> {
            for (rank, values) in parts.iter_mut().enumerate() {
                let all = self.gather(&to_bytes(values))?;
                // Of no use elsewhere.
                values.fill(if rank == self.rank.index { 0.0 } else { f32::NAN });
                for bytes in all {
                    let summands = from_bytes(&bytes);
                    values.iter_mut().zip(summands).for_each(|(sum, value)| *sum += value);
                }
            }
            Ok(())
        }

        fn all_gather(&self, parts: &mut [Vec<f32>]) -> Result<(), TrainError> {
            for (rank, values) in parts.iter_mut().enumerate() {
                let all = self.gather(&to_bytes(values))?;
                values.copy_from_slice(&from_bytes(&all[rank]));
            }
            Ok(())
        }

        fn send_to_first(&self, from: usize, values: &mut [f32]) -> Result<(), TrainError> {
            assert!(from > 0 && [0, from].contains(&self.rank.index), "no part in the call");
            if self.rank.index == from {
                let mut sent = self.sent.lock().unwrap();
                sent.entry(from).or_default().push_back(values.to_vec());
                return Ok(());
            }
            loop {
                let came = self.sent.lock().unwrap().entry(from).or_default().pop_front();
                if let Some(came) = came {
                    values.copy_from_slice(&came);
                    return Ok(());
                }
                std::thread::yield_now();
            }
        }

        fn abort(&self, _code: u8) {}
    }

    fn to_bytes(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|value| value.to_le_bytes()).collect()
    }

    fn from_bytes(bytes: &[u8]) -> Vec<f32> {
        let (words, _) = bytes.as_chunks::<4>();
        words.iter().map(|word| f32::from_le_bytes(*word)).collect()
    }

    /// What each of some ranks makes, in their order.
    pub(crate) fn on_threads<T: Send>(count: usize, work: impl Fn(&Threads) -> T + Sync) -> Vec<T> {
        let said = Arc::new(Mutex::new(vec![Vec::new(); count]));
        let (met, sent) = (Arc::new(Barrier::new(count)), Sent::default());
        let rank = |index| Threads {
            rank: Rank { index, count },
            said: Arc::clone(&said),
            met: Arc::clone(&met),
            sent: Arc::clone(&sent),
        };
        std::thread::scope(|scope| {
            let work = &work;
            let threads = (0..count).map(|index| {
                let threads = rank(index);
                scope.spawn(move || work(&threads))
            });
            let threads: Vec<_> = threads.collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        })
    }

    #[test]
    fn sums_are_the_same_bits_on_all_ranks_and_keep_what_is_not_a_number() {
        let sums = on_threads(3, |ranks: &Threads| {
            let ranks: &dyn Collective = ranks;
            let own = ranks.rank().index;
            let mut values = [[1e16, 0.0, -1e16][own], 0.1, [0.0, f64::NAN, 0.0][own]];
            ranks.sum(&mut values).unwrap();
            values
        });
        for sum in sums {
            assert_eq!(sum[0].to_bits(), ((1e16 + 0.0) + -1e16_f64).to_bits());
            assert_eq!(sum[1].to_bits(), (0.1 + 0.1 + 0.1_f64).to_bits());
            assert!(sum[2].is_nan());
        }
    }

    #[test]
    fn ranks_that_differ_are_named() {
        let errors = on_threads(4, |ranks: &Threads| {
            let ranks: &dyn Collective = ranks;
            let found = if [1, 3].contains(&ranks.rank().index) { "b" } else { "a" };
            ranks.require_same("the config", "same").unwrap();
            ranks.require_same("the config", found).unwrap_err().to_string()
        });
        for error in errors {
            assert_eq!(error, "the config of rank 1, 3 is not that of rank 0");
        }
    }

    #[test]
    fn all_ranks_have_the_measures_of_the_first_to_the_last_bit() {
        let measures = |value: f64| Some(Measures::from([("validation.a.nll".to_owned(), value)]));
        let found = on_threads(3, |each: &Threads| {
            let each: &dyn Collective = each;
            let own = |value: f64| if each.is_first() { measures(value) } else { None };
            let shared = each.of_first(Ok(own(0.1 + 0.2))).unwrap();
            let nan = each.of_first(Ok(own(f64::NAN))).unwrap().unwrap();
            assert!(nan["validation.a.nll"].is_nan());
            // The first alone says what it failed with.
            let failed = if each.is_first() { Err(TrainError::NoMaster) } else { Ok(None) };
            assert_eq!(each.of_first(failed).is_err(), each.is_first());
            shared
        });
        assert_eq!(found, vec![measures(0.1 + 0.2); 3]);
    }
}
