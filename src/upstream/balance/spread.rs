//! Choosing one of several by weight: by chance and load, in turn, or by what a request has.
//!
//! Each way is asked for one of `0..count`. `weigh` tells the weight of each, and one of weight 0 is never chosen.

use std::cell::Cell;

/// Of two that are drawn by weight the one with less load for its weight; of two that are alike the one drawn first, so
/// that what is idle gets its share as well.
pub(super) fn two_choices(
    count: usize,
    weigh: impl Fn(usize) -> u64,
    load: impl Fn(usize) -> u64,
    random: &mut impl FnMut() -> u64,
) -> Option<usize> {
    let first = draw(count, &weigh, random)?;
    let others = |at| if at == first { 0 } else { weigh(at) };
    let Some(second) = draw(count, others, random) else { return Some(first) };
    let is_less = u128::from(load(second)) * u128::from(weigh(first))
        < u128::from(load(first)) * u128::from(weigh(second));
    Some(if is_less { second } else { first })
}

/// One after the other, each as often as its weight says and evenly among the others: the smooth weighted round robin
/// of nginx. `turns` is what each has saved up.
pub(super) fn in_turn(turns: &[Cell<i64>], weigh: impl Fn(usize) -> u64) -> Option<usize> {
    let (mut best, mut total): (Option<usize>, i64) = (None, 0);
    for (at, turn) in turns.iter().enumerate() {
        let weight = i64::try_from(weigh(at)).unwrap_or(i64::MAX);
        if weight == 0 {
            continue;
        }
        total = total.saturating_add(weight);
        turn.set(turn.get().saturating_add(weight));
        if best.is_none_or(|best| turns[best].get() < turn.get()) {
            best = Some(at);
        }
    }
    let turn = &turns[best?];
    turn.set(turn.get().saturating_sub(total));
    best
}

/// The one that ranks highest for `key`: weighted rendezvous hashing. Each has an order of preference of its own for each
/// key, so that one that goes leaves the keys of all others where they are, and one that comes takes its share of each.
pub(super) fn highest(seeds: &[u64], key: u64, weigh: impl Fn(usize) -> u64) -> Option<usize> {
    let mut best: Option<(usize, f64)> = None;
    for (at, seed) in seeds.iter().enumerate() {
        let weight = weigh(at);
        if weight == 0 {
            continue;
        }
        let rank = rank(key ^ seed, weight);
        if best.is_none_or(|(_, highest)| rank > highest) {
            best = Some((at, rank));
        }
    }
    best.map(|(at, _)| at)
}

/// One of them, each as likely as its weight says.
fn draw(count: usize, weigh: impl Fn(usize) -> u64, random: &mut impl FnMut() -> u64) -> Option<usize> {
    let total: u64 = (0..count).map(&weigh).sum();
    let mut left = random().checked_rem(total)?;
    (0..count).find(|at| {
        let weight = weigh(*at);
        let is_it = left < weight;
        left = left.saturating_sub(weight);
        is_it
    })
}

/// `-weight / ln(u)` for a `u` between 0 and 1 that `mixed` decides: the highest of several is each one's as often as its
/// weight says, and what else there is changes none of them.
#[expect(clippy::cast_precision_loss, reason = "it only has to be the same each time")]
fn rank(mixed: u64, weight: u64) -> f64 {
    let uniform = ((scatter(mixed) >> 11) as f64 + 0.5) / (1_u64 << 53) as f64;
    -(weight as f64) / uniform.ln()
}

/// The last step of `SplitMix64`: each bit of the input decides over each of the output.
fn scatter(mut bits: u64) -> u64 {
    bits = (bits ^ bits >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ bits >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ bits >> 31
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The same in each run.
    fn numbers() -> impl FnMut() -> u64 {
        let mut state = 7_u64;
        move || {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            scatter(state)
        }
    }

    fn seeds(count: usize) -> Vec<u64> {
        let mut numbers = numbers();
        (0..count).map(|_| numbers()).collect()
    }

    fn shares(count: usize, draws: usize, mut choose: impl FnMut() -> usize) -> Vec<usize> {
        let mut shares = vec![0; count];
        (0..draws).for_each(|_| shares[choose()] += 1);
        shares
    }

    #[test]
    fn what_is_idle_is_drawn_by_weight_and_what_is_busy_is_left_for_what_is_not() {
        let mut random = numbers();
        let weights = [1, 3, 0];
        let drawn = shares(3, 4000, || two_choices(3, |at| weights[at], |_| 0, &mut random).unwrap());
        assert!(drawn[2] == 0 && (900..1100).contains(&drawn[0]), "{drawn:?}");
        // 2 at weight 1 is more than 5 at weight 3.
        let loads = [2, 5, 0];
        let drawn = shares(3, 100, || two_choices(3, |at| weights[at], |at| loads[at], &mut random).unwrap());
        assert_eq!(drawn, [0, 100, 0]);
        assert_eq!(two_choices(3, |_| 0, |_| 0, &mut random), None);
    }

    #[test]
    fn turns_go_by_weight_and_evenly() {
        let turns: Vec<Cell<i64>> = vec![Cell::default(); 4];
        let weights = [5, 1, 0, 1];
        let order: Vec<usize> = (0..14).filter_map(|_| in_turn(&turns, |at| weights[at])).collect();
        assert_eq!(order, [0, 0, 1, 0, 3, 0, 0, 0, 0, 1, 0, 3, 0, 0]);
        assert_eq!(in_turn(&turns, |_| 0), None);
    }

    #[test]
    fn keys_spread_by_weight() {
        let (seeds, mut keys) = (seeds(3), numbers());
        let weights = [1, 2, 1];
        let drawn = shares(3, 4000, || highest(&seeds, keys() >> 1, |at| weights[at]).unwrap());
        assert!((900..1100).contains(&drawn[0]) && (1900..2100).contains(&drawn[1]), "{drawn:?}");
    }

    #[test]
    fn who_goes_moves_only_its_own_keys_and_who_comes_takes_its_share_of_each() {
        let (seeds, mut keys) = (seeds(5), numbers());
        let mut moved = 0;
        for _ in 0..1000 {
            let key = keys() >> 1;
            let before = highest(&seeds, key, |_| 1).unwrap();
            let without = highest(&seeds, key, |at| u64::from(at != 4)).unwrap();
            if before == 4 {
                moved += 1;
            } else {
                assert_eq!(without, before);
            }
        }
        assert!((150..250).contains(&moved), "{moved} of 1000");
    }
}
