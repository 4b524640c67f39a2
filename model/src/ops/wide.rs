//! Element-wise arithmetic in wide registers, chosen at run time, and the functions that need it.
//!
//! The compiler may only use what every x86-64 has; a loop inside [`wide!`] is compiled a second
//! time for AVX2. There is no fused multiply-add in these loops, so both versions give the same
//! bits.

#![expect(
    clippy::inline_always,
    reason = "a loop must be inlined into the AVX2 version to become wide"
)]

/// The value of an expression compiled for the widest registers of this processor. A macro, since
/// the closure that it makes must be inlined into each version, which a caller would have to say
/// every time.
macro_rules! wide {
    ($work:expr) => {
        $crate::ops::wide::run_wide(
            #[inline(always)]
            || $work,
        )
    };
}
pub(crate) use wide;

/// The kinds of instructions by which kernels are chosen: sums in another order differ in their last
/// bits.
pub(crate) fn processor() -> String {
    #[cfg(target_arch = "x86_64")]
    let kinds = [
        ("avx512f", std::arch::is_x86_feature_detected!("avx512f")),
        ("avx2", std::arch::is_x86_feature_detected!("avx2")),
        ("fma", std::arch::is_x86_feature_detected!("fma")),
    ];
    #[cfg(not(target_arch = "x86_64"))]
    let kinds: [(&str, bool); 0] = [];
    let found = kinds.iter().filter(|(_, found)| *found).map(|(name, _)| *name);
    [std::env::consts::ARCH].into_iter().chain(found).collect::<Vec<_>>().join(" ")
}

/// Runs `work` compiled for AVX2 where there is AVX2.
#[inline]
pub(crate) fn run_wide<R>(work: impl FnOnce() -> R) -> R {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        #[expect(
            unsafe_code,
            reason = "a function compiled for AVX2 may only be called where AVX2 is"
        )]
        // SAFETY: the processor has AVX2, as just checked.
        return unsafe { with_avx2(work) };
    }
    work()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn with_avx2<R>(work: impl FnOnce() -> R) -> R {
    work()
}

/// Partial sums that are kept side by side; also the order of summation, whatever the registers.
const LANES: usize = 16;

/// The sum of `f` over `x`, in an order that wide registers like.
#[inline(always)]
pub(crate) fn sum_by(x: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0.0_f32; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, v) in lanes.iter_mut().zip(chunk) {
            *lane += f(*v);
        }
    }
    let rest: f32 = rest.iter().map(|v| f(*v)).sum();
    total(lanes) + rest
}

/// The dot product of `x` and `y`, in the same order.
#[inline(always)]
pub(crate) fn dot(x: &[f32], y: &[f32]) -> f32 {
    let mut lanes = [0.0_f32; LANES];
    let ((xs, x_rest), (ys, y_rest)) = (x.as_chunks::<LANES>(), y.as_chunks::<LANES>());
    for (x, y) in xs.iter().zip(ys) {
        for ((lane, x), y) in lanes.iter_mut().zip(x).zip(y) {
            *lane += x * y;
        }
    }
    let rest: f32 = x_rest.iter().zip(y_rest).map(|(x, y)| x * y).sum();
    total(lanes) + rest
}

/// The largest value.
#[inline(always)]
pub(crate) fn highest(x: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, v) in lanes.iter_mut().zip(chunk) {
            *lane = if *v > *lane { *v } else { *lane };
        }
    }
    lanes.iter().chain(rest).copied().fold(f32::NEG_INFINITY, f32::max)
}

#[inline(always)]
fn total(lanes: [f32; LANES]) -> f32 {
    let mut sums = lanes;
    let mut n = LANES / 2;
    while n > 0 {
        for i in 0..n {
            sums[i] += sums[i + n];
        }
        n /= 2;
    }
    sums[0]
}

/// Below, `exp` would not be a normal number; above, it overflows.
const EXP_RANGE: (f32, f32) = (-87.0, 88.0);
/// Adding 1.5 * 2^23 rounds to an integer, which is then found in the low bits.
const ROUND: f32 = 12_582_912.0;
/// ln 2 in two parts, the first exact in few bits, so that `x - n ln 2` loses nothing.
const LN_2: (f32, f32) = (0.693_359_4, -2.121_944_4e-4);

/// `e^x` to 1e-7 relative (Cephes' polynomial), without a branch.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    let x = if x > EXP_RANGE.0 { x } else { EXP_RANGE.0 };
    let x = if x < EXP_RANGE.1 { x } else { EXP_RANGE.1 };
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = x - n * LN_2.0 - n * LN_2.1;
    let mut p = 1.987_569_1e-4;
    p = p * r + 1.398_2e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 5.000_000_3e-1;
    let p = p * r * r + r + 1.0;
    // The low bits of `shifted` are n, so adding them to the exponent multiplies by 2^n.
    f32::from_bits(p.to_bits().wrapping_add(shifted.to_bits() << 23))
}

/// The standard normal distribution and its density, to 3e-7 in all (Abramowitz and Stegun 7.1.26).
#[inline(always)]
pub(crate) fn normal_distribution(x: f32) -> (f32, f32) {
    let gauss = exp(-0.5 * x * x);
    let t = 1.0 / (1.0 + 0.327_591_1 * std::f32::consts::FRAC_1_SQRT_2 * x.abs());
    let mut p = 1.061_405_4;
    p = p * t - 1.453_152;
    p = p * t + 1.421_413_8;
    p = p * t - 0.284_496_74;
    p = p * t + 0.254_829_6;
    let tail = 0.5 * p * t * gauss;
    let below = if x > 0.0 { 1.0 - tail } else { tail };
    (below, gauss * 0.398_942_3)
}

/// `1 / (1 + e^-x)`.
#[inline(always)]
pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_and_the_normal_distribution_are_exact_to_single_precision() {
        for i in -8600..8800 {
            let x = i as f32 * 0.01;
            let exact = f64::from(x).exp();
            let error = (f64::from(exp(x)) - exact).abs() / exact;
            assert!(error < 2e-7, "exp({x}): {error:.1e}");
            let phi = 0.5 * libm::erfc(-f64::from(x) * std::f64::consts::FRAC_1_SQRT_2);
            let error = (f64::from(normal_distribution(x).0) - phi).abs();
            assert!(error < 3e-7, "normal({x}): {error:.1e}");
        }
        assert!(exp(f32::NEG_INFINITY) < 2e-38);
    }

    #[test]
    fn wide_and_narrow_loops_agree_bit_by_bit() {
        let x: Vec<f32> = (0..77).map(|i| (i as f32 * 0.37).sin()).collect();
        let run = || {
            (
                sum_by(&x, |v| v * v),
                dot(&x, &x),
                highest(&x),
                x.iter().map(|v| exp(*v)).sum::<f32>(),
            )
        };
        let narrow = run();
        assert_eq!(run_wide(run), narrow);
        assert!((narrow.0 - narrow.1).abs() < 1e-4);
    }
}
