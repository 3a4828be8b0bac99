//! Medians, percentiles and ratios. Pure.

/// The middle of `values`, or the mean of the two in the middle; `None` of nothing.
pub(super) fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (low, high) = (sorted.get(sorted.len().checked_sub(1)? / 2)?, sorted.get(sorted.len() / 2)?);
    Some((low + high) / 2.0)
}

/// The smallest of `values` that `percent` of 100 do not exceed; `None` of nothing.
pub(super) fn percentile(values: &[f64], percent: f64) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (sorted.len() as f64 * percent / 100.0).ceil() as usize;
    sorted.get(rank.max(1) - 1).copied()
}

/// How many times as fast `first` is as `other`, by the median of what they did in the same round.
///
/// Both are medians or rates of rounds, in the order of the rounds; `is_rate` says that more is faster.
pub(super) fn times_as_fast(first: &[f64], other: &[f64], is_rate: bool) -> Option<f64> {
    let ratio = |(first, other): (&f64, &f64)| if is_rate { first / other } else { other / first };
    let ratios: Vec<f64> = first.iter().zip(other).map(ratio).filter(|ratio| ratio.is_finite()).collect();
    median(&ratios)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0]), Some(3.0));
        assert_eq!(median(&[9.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 100.0]), Some(3.0));
    }

    #[test]
    fn percentiles_are_values_that_occurred() {
        let values: Vec<f64> = (1..=200).rev().map(f64::from).collect();
        assert_eq!(percentile(&[], 50.0), None);
        assert_eq!(percentile(&values, 50.0), Some(100.0));
        assert_eq!(percentile(&values, 99.0), Some(198.0));
        assert_eq!(percentile(&values, 100.0), Some(200.0));
        assert_eq!(percentile(&[5.0], 99.0), Some(5.0));
        assert_eq!(percentile(&[5.0, 6.0], 0.0), Some(5.0));
    }

    #[test]
    fn faster_is_more_than_one_for_times_and_for_rates() {
        assert_eq!(times_as_fast(&[1.0, 2.0, 3.0], &[2.0, 4.0, 3.0], false), Some(2.0));
        assert_eq!(times_as_fast(&[10.0], &[5.0], true), Some(2.0));
        assert_eq!(times_as_fast(&[0.0], &[5.0], false), None, "nothing takes no time");
        assert_eq!(times_as_fast(&[1.0], &[], false), None);
    }
}
