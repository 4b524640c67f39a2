//! Training and held-out rows, by a hash of the address: the captions of one image, and the same
//! image in another list, land on the same side.

use sha2::{Digest, Sha256};

use crate::plan::{Keep, SplitPlan};
use crate::reject::DropReason;

/// Why a row with this address is left out, if it is.
pub fn check(plan: &SplitPlan, address: &str) -> Option<DropReason> {
    let is_held_out = || permille(plan.seed, address) < plan.held_out_permille;
    match plan.keep {
        Keep::Train if is_held_out() => Some(DropReason::because("held_out")),
        Keep::HeldOut if !is_held_out() => Some(DropReason::because("not_held_out")),
        _ => None,
    }
}

/// A number below 1000 that depends on seed and address only.
fn permille(seed: u64, address: &str) -> u32 {
    let digest = Sha256::new().chain_update(seed.to_le_bytes()).chain_update(address).finalize();
    let head = digest[..8].iter().fold(0_u64, |head, &byte| head << 8 | u64::from(byte));
    (head % 1000) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_on_one_side_and_the_share_holds() {
        let plan = |keep| SplitPlan { keep, held_out_permille: 100, seed: 3 };
        let mut held_out = 0;
        for i in 0..10_000 {
            let address = format!("https://a.example/{i}");
            assert_eq!(check(&plan(Keep::All), &address), None);
            let train = check(&plan(Keep::Train), &address).is_none();
            let test = check(&plan(Keep::HeldOut), &address).is_none();
            assert_ne!(train, test);
            held_out += u32::from(test);
        }
        assert!((900..1100).contains(&held_out), "{held_out}");
    }
}
