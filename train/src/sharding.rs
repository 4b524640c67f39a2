//! Which rank keeps the moments of which parameters (`ZeRO`, stage 1; Rajbhandari et al., 2020): each sums the
//! gradients of its own parameters over all ranks, updates them and sends the new weights to the others.
//!
//! Parameters are shared out whole, in the order of the model, by their numbers of values. What is sent lies
//! in the memory of the host.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use flamingo_dataset::sha256_hex;
use flamingo_model::{Gradients, Moments, Parameter, Params, Spare};
use rayon::iter::{IntoParallelRefIterator, ParallelIterator};

use crate::collective::Collective;
use crate::error::TrainError;
use crate::optimizer::AdamW;

/// Values that are sent together, about: enough that a call's own time is little of it, and so few that they are in a
/// processor's cache when they are summed.
const BUCKET_VALUES: usize = 1 << 18;

/// Neighbouring parameters of one owner.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Bucket {
    /// Index in the model's list of [`Params`].
    tower: usize,
    /// Places there.
    places: Range<usize>,
    /// The rank that updates them.
    owner: usize,
}

/// All trained parameters of a model, shared out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sharding(Vec<Bucket>);

impl Sharding {
    /// Shares out among so many ranks.
    pub fn of(params: &[&Params], n_ranks: usize) -> Self {
        Self::in_buckets(params, n_ranks, BUCKET_VALUES)
    }

    fn in_buckets(params: &[&Params], n_ranks: usize, bucket_values: usize) -> Self {
        let trained = |p: &Parameter| if p.weight.is_trained() { p.n_values() } else { 0 };
        let all = || params.iter().flat_map(|params| params.iter()).map(trained);
        let total = all().sum::<usize>().max(1);
        let (mut buckets, mut before, mut in_bucket) = (Vec::<Bucket>::new(), 0, 0);
        for (tower, params) in params.iter().enumerate() {
            for (place, n) in params.iter().map(trained).enumerate().filter(|(_, n)| *n > 0) {
                let owner = before * n_ranks / total;
                before += n;
                in_bucket += n;
                match buckets.last_mut() {
                    Some(last)
                        if (last.tower, last.owner) == (tower, owner)
                            && in_bucket <= bucket_values =>
                    {
                        last.places.end = place + 1;
                    }
                    _ => {
                        buckets.push(Bucket { tower, places: place..place + 1, owner });
                        in_bucket = n;
                    }
                }
            }
        }
        Self(buckets)
    }

    /// The names of the parameters of a rank.
    pub fn names(&self, params: &[&Params], rank: usize) -> BTreeSet<String> {
        let own = self.0.iter().filter(|bucket| bucket.owner == rank);
        own.flat_map(|bucket| bucket.trained(params)).map(|p| p.name.clone()).collect()
    }

    /// Sums gradients over all ranks, each where it is used.
    ///
    /// # Errors
    /// When another rank cannot be reached, or the device fails.
    pub fn reduce(
        &self,
        ranks: &dyn Collective,
        params: &[&Params],
        gradients: &mut Gradients,
    ) -> Result<(), TrainError> {
        let rank = ranks.rank();
        for round in self.rounds(rank.count) {
            let part = |bucket: Option<&Bucket>| {
                let part =
                    bucket.map(|it| params[it.tower].gradients(it.places.clone(), gradients));
                part.unwrap_or(Ok(Vec::new()))
            };
            let parts = round.iter().copied().map(part).collect::<Result<Vec<_>, _>>();
            let mut parts = parts.map_err(TrainError::model("run"))?;
            ranks.reduce_scatter(&mut parts)?;
            if let Some(Bucket { tower, places, .. }) = round[rank.index] {
                let sums = &parts[rank.index];
                let set = params[*tower].set_gradients(places.clone(), gradients, sums);
                set.map_err(TrainError::model("run"))?;
            }
        }
        Ok(())
    }

    /// Sends the weights of each rank to all others.
    ///
    /// # Errors
    /// When another rank cannot be reached, or the device fails.
    pub fn broadcast(
        &self,
        ranks: &dyn Collective,
        params: &mut [&mut Params],
    ) -> Result<(), TrainError> {
        let rank = ranks.rank();
        for round in self.rounds(rank.count) {
            let part = |bucket: Option<&Bucket>| match bucket {
                Some(it) if it.owner == rank.index => {
                    params[it.tower].trained_values(it.places.clone())
                }
                Some(it) => vec![0.0; it.n_values(params[it.tower])],
                None => Vec::new(),
            };
            let mut parts: Vec<Vec<f32>> = round.iter().copied().map(part).collect();
            ranks.all_gather(&mut parts)?;
            let others = round.iter().flatten().filter(|it| it.owner != rank.index);
            for Bucket { tower, places, owner } in others {
                let set = params[*tower].set_trained_values(places.clone(), &parts[*owner]);
                set.map_err(TrainError::model("run"))?;
            }
        }
        Ok(())
    }

    /// The buckets in rounds, of each rank at most one in each: what is sent at once.
    fn rounds(&self, n_ranks: usize) -> Vec<Vec<Option<&Bucket>>> {
        let mut next = vec![0; n_ranks];
        let mut rounds: Vec<Vec<Option<&Bucket>>> = Vec::new();
        for bucket in &self.0 {
            let round = next[bucket.owner];
            next[bucket.owner] += 1;
            if rounds.len() == round {
                rounds.push(vec![None; n_ranks]);
            }
            rounds[round][bucket.owner] = Some(bucket);
        }
        rounds
    }

    /// The moments of all other ranks' parameters, on the first rank; none elsewhere, and none before there
    /// are any.
    ///
    /// # Errors
    /// When another rank cannot be reached, or the device fails.
    pub fn gather_moments(
        &self,
        ranks: &dyn Collective,
        params: &[&Params],
        optimizer: &AdamW,
    ) -> Result<BTreeMap<String, Moments>, TrainError> {
        let mut moments = BTreeMap::new();
        // All ranks begin to keep moments at the same step, and one may have no parameters at all.
        let mut n = [optimizer.moments().len() as f64];
        ranks.sum(&mut n)?;
        if n[0] == 0.0 {
            return Ok(moments);
        }
        let rank = ranks.rank().index;
        let takes_part = |bucket: &&Bucket| bucket.owner != 0 && [0, bucket.owner].contains(&rank);
        for bucket in self.0.iter().filter(takes_part) {
            for parameter in bucket.trained(params) {
                let mut both = vec![0.0; 2 * parameter.n_values()];
                if bucket.owner == rank
                    && let Some(own) = optimizer.moments().get(&parameter.name)
                {
                    let values = own.values(&Spare::default());
                    let values = values.map_err(|error| TrainError::model("save")(error.into()))?;
                    both = values.concat();
                }
                ranks.send_to_first(bucket.owner, &mut both)?;
                if ranks.is_first() {
                    let second = both.split_off(parameter.n_values());
                    let pair = Moments::new(&parameter.shape, both, second);
                    moments.insert(parameter.name.clone(), pair);
                }
            }
        }
        Ok(moments)
    }
}

impl Bucket {
    fn trained<'a>(&self, params: &[&'a Params]) -> impl Iterator<Item = &'a Parameter> {
        self.trained_of(params[self.tower])
    }

    /// Its trained parameters in those of its tower.
    fn trained_of<'a>(&self, params: &'a Params) -> impl Iterator<Item = &'a Parameter> {
        let places = params.iter().skip(self.places.start).take(self.places.len());
        places.filter(|parameter| parameter.weight.is_trained())
    }

    fn n_values(&self, params: &Params) -> usize {
        self.trained_of(params).map(Parameter::n_values).sum()
    }
}

/// Digest of all trained parameters, which must be the same on all ranks.
pub fn trained_sha256(params: &[&Params]) -> String {
    let trained = params.iter().flat_map(|params| params.iter()).filter(|p| p.weight.is_trained());
    let trained: Vec<&Parameter> = trained.collect();
    let one = |parameter: &&Parameter| {
        let bytes: Vec<u8> =
            parameter.weight.values().iter().flat_map(|value| value.to_le_bytes()).collect();
        format!("{} {}\n", parameter.name, sha256_hex(&bytes))
    };
    // One after the other they would hold up every checkpoint; the lines are in the model's order.
    let lines: Vec<String> = trained.par_iter().map(one).collect();
    sha256_hex(lines.concat().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::collective::tests::on_threads;
    use crate::optimizer::{OptimizerConfig, Share};

    /// Two towers of parameters of these sizes, which begin as a wave.
    fn towers() -> [Params; 2] {
        let mut next = 0.0_f32;
        let mut wave = |n: usize| {
            let mut value = || {
                next += 0.37;
                next.sin()
            };
            (0..n).map(|_| value()).collect::<Vec<_>>()
        };
        [&[5, 3, 40][..], &[7, 1, 9, 2]].map(|sizes| {
            let list: Vec<_> = sizes
                .iter()
                .enumerate()
                .map(|(i, n)| (format!("{}.{i}", sizes.len()), vec![*n], wave(*n)))
                .collect();
            Params::trained(list).unwrap()
        })
    }

    fn config() -> OptimizerConfig {
        toml::from_str("lr = 1e-2\nwarmup_steps = 0\nschedule = 'constant'").unwrap()
    }

    #[test]
    fn every_parameter_has_one_owner_and_shares_are_alike() {
        let towers = towers();
        let params: Vec<&Params> = towers.iter().collect();
        for n_ranks in [1, 2, 3, 16] {
            let sharding = Sharding::in_buckets(&params, n_ranks, 8);
            let names = (0..n_ranks).map(|rank| sharding.names(&params, rank));
            let all: Vec<String> = names.flatten().collect();
            assert_eq!(all.len(), 7, "{n_ranks}: {all:?}");
            assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), 7);
        }
        // 48 of 67 values lie in the first tower, the last 40 of them in one parameter.
        let sharding = Sharding::in_buckets(&params, 2, 1000);
        assert_eq!(sharding.names(&params, 0).len(), 3);
    }

    /// Three updates with gradients that each rank has a part of: weights and moments.
    fn updated(ranks: &dyn Collective) -> (Vec<f32>, Vec<(String, Vec<f32>)>) {
        let mut towers = towers();
        let (index, count) = (ranks.rank().index, ranks.rank().count);
        let params: Vec<&Params> = towers.iter().collect();
        let sharding = Sharding::in_buckets(&params, count, 8);
        let mut optimizer = AdamW::new(&config(), Share::Of(sharding.names(&params, index)));
        for done in 0..3 {
            let mut gradients = Gradients::default();
            let params: Vec<&Params> = towers.iter().collect();
            for params in &params {
                for parameter in params.iter() {
                    // Whole numbers over a power of two, so that no sum is rounded.
                    let of_rank = |i: usize| (i * 7 + done * 3) as f32 / 64.0 / count as f32;
                    let values: Vec<f32> = (0..parameter.n_values()).map(of_rank).collect();
                    params.add_to_gradient(&mut gradients, &parameter.name, &values).unwrap();
                }
            }
            sharding.reduce(ranks, &params, &mut gradients).unwrap();
            let norms = optimizer.norms_of(&[vec![("a", 4.0)]]);
            let mut params: Vec<&mut Params> = towers.iter_mut().collect();
            optimizer.update(&mut params, &mut gradients, &norms, 1e-2, done as u64).unwrap();
            sharding.broadcast(ranks, &mut params).unwrap();
        }
        let params: Vec<&Params> = towers.iter().collect();
        let elsewhere = sharding.gather_moments(ranks, &params, &optimizer).unwrap();
        optimizer.set_elsewhere(elsewhere);
        let moments = optimizer.to_tensors(&Spare::default()).unwrap();
        let moments =
            moments.names().map(|name| (name.to_owned(), moments.get(name).unwrap().to_vec()));
        let values =
            towers.iter().flat_map(|params| params.trained_values(0..params.iter().count()));
        (values.collect(), moments.collect())
    }

    #[test]
    fn shares_of_an_update_are_that_of_one_process_to_the_last_bit() {
        let (alone, moments) = on_threads(1, |ranks| updated(ranks)).remove(0);
        assert_eq!(moments.len(), 14);
        for n_ranks in [2, 4, 16] {
            let all = on_threads(n_ranks, |ranks| updated(ranks));
            for (rank, (values, _)) in all.iter().enumerate() {
                assert!(*values == alone, "weights of rank {rank} of {n_ranks}");
            }
            assert!(all[0].1 == moments, "moments of {n_ranks} ranks");
            // Others keep no more than their share.
            assert!(all[1..].iter().map(|(_, moments)| moments.len()).sum::<usize>() <= 14);
        }
    }

    #[test]
    fn one_changed_bit_changes_the_digest() {
        let mut towers = towers();
        let digest = |towers: &[Params; 2]| trained_sha256(&towers.iter().collect::<Vec<_>>());
        let before = digest(&towers);
        let mut values = towers[1].trained_values(0..1);
        values[3] = f32::from_bits(values[3].to_bits() ^ 1);
        towers[1].set_trained_values(0..1, &values).unwrap();
        assert_ne!(digest(&towers), before);
    }
}
