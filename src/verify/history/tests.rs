use proptest::prelude::*;

use super::*;

const A: Version = 0;
const B: Version = 1;
const C: Version = 2;

fn swap(version: Version, called: u64, answered: u64) -> Swap {
    let millis = Duration::from_millis;
    Swap { right: Right::Only(version), called: millis(called), answered: Some(millis(answered)) }
}

fn split(version: Version, called: u64, answered: u64) -> Swap {
    Swap { right: Right::Also(version), ..swap(version, called, answered) }
}

fn open_swap(version: Version, called: u64) -> Swap {
    Swap { right: Right::Only(version), called: Duration::from_millis(called), answered: None }
}

fn unknown(since: u64) -> Swap {
    Swap { right: Right::Any, called: Duration::from_millis(since), answered: None }
}

fn read(version: Version, sent: u64, seen: u64) -> Read {
    Read { version, sent: Duration::from_millis(sent), seen: Duration::from_millis(seen) }
}

#[test]
fn an_answer_that_overlaps_the_swap_may_come_from_either_side() {
    let reads = [read(A, 0, 5), read(A, 8, 12), read(B, 9, 13), read(A, 10, 14), read(B, 21, 25)];
    assert_eq!(check(&[swap(B, 10, 20)], &reads), []);
}

#[test]
fn an_old_version_after_the_swaps_answer_is_stale() {
    let reads = [read(A, 0, 5), read(A, 21, 25)];
    assert_eq!(check(&[swap(B, 10, 20)], &reads), [Violation::Stale { read: 1, swap: 0 }]);
}

#[test]
fn a_new_version_before_the_swaps_call_is_early() {
    let reads = [read(A, 0, 1), read(B, 2, 5)];
    assert_eq!(check(&[swap(B, 10, 20)], &reads), [Violation::Early { read: 1 }]);
    assert_eq!(check(&[], &reads), [Violation::Early { read: 1 }]);
}

#[test]
fn a_version_that_nobody_swapped_to_is_flagged() {
    assert_eq!(check(&[swap(B, 10, 20)], &[read(A, 0, 5), read(C, 30, 35)]), [Violation::Early { read: 1 }]);
}

#[test]
fn new_on_one_host_and_later_old_on_another_is_mixed() {
    // Both within the swap's call, so that neither is stale or early by itself.
    let reads = [read(A, 0, 5), read(B, 12, 14), read(A, 15, 18)];
    assert_eq!(check(&[swap(B, 10, 20)], &reads), [Violation::Mixed { read: 2, after: 1 }]);
}

#[test]
fn a_return_to_an_earlier_version_does_not_hide_what_was_stale_in_between() {
    let swaps = [swap(B, 10, 20), swap(A, 40, 50)];
    let reads = [read(A, 0, 5), read(A, 25, 30), read(A, 55, 60), read(B, 56, 61)];
    assert_eq!(
        check(&swaps, &reads),
        [Violation::Stale { read: 1, swap: 0 }, Violation::Stale { read: 3, swap: 1 }]
    );
}

#[test]
fn going_back_and_forth_between_recurring_versions_is_mixed() {
    // A, then B, then A again while both swaps are open: the fourth answer would need a third swap.
    let swaps = [open_swap(B, 10), open_swap(A, 11)];
    let reads = [read(A, 0, 5), read(B, 12, 13), read(A, 14, 15), read(B, 16, 17)];
    assert_eq!(check(&swaps, &reads), [Violation::Mixed { read: 3, after: 2 }]);
}

#[test]
fn a_swap_without_an_answer_may_have_happened_or_not() {
    let reads = [read(A, 0, 5), read(A, 100, 105), read(B, 106, 110)];
    assert_eq!(check(&[open_swap(B, 10)], &reads), []);
    let back = [read(A, 0, 5), read(B, 100, 105), read(A, 106, 110)];
    assert_eq!(check(&[open_swap(B, 10)], &back), [Violation::Mixed { read: 2, after: 1 }]);
}

#[test]
fn without_an_answer_before_the_first_swap_any_first_version_is_possible() {
    let reads = [read(C, 9, 12), read(B, 25, 30)];
    assert_eq!(check(&[swap(B, 10, 20)], &reads), []);
}

#[test]
fn between_the_first_step_of_a_cutover_and_its_last_both_versions_are_right_and_no_other() {
    let steps = [split(B, 10, 20), split(B, 30, 40), swap(B, 50, 60)];
    let reads = [read(A, 0, 5), read(B, 25, 26), read(A, 27, 28), read(B, 45, 46), read(A, 47, 48)];
    assert_eq!(check(&steps, &reads), []);
    for (wrong, violation) in [
        (read(B, 6, 7), Violation::Early { read: 1 }),
        (read(C, 25, 26), Violation::Early { read: 1 }),
        (read(A, 65, 66), Violation::Stale { read: 1, swap: 2 }),
    ] {
        assert_eq!(check(&steps, &[read(A, 0, 5), wrong]), [violation]);
    }
    // Taken back, it is wrong again; and once all had it nobody goes back.
    let back = [split(B, 10, 20), swap(A, 30, 40)];
    let late = [read(A, 0, 5), read(B, 25, 26), read(B, 45, 46)];
    assert_eq!(check(&back, &late), [Violation::Stale { read: 2, swap: 1 }]);
    let mixed = [read(A, 0, 5), read(B, 51, 52), read(A, 53, 54)];
    assert_eq!(check(&[swap(B, 50, 60)], &mixed), [Violation::Mixed { read: 2, after: 1 }]);
}

#[test]
fn of_a_time_that_nobody_looked_at_any_version_is_right_until_the_next_swap_that_is_known() {
    let swaps = [unknown(10), swap(B, 10, 20)];
    let reads = [read(A, 0, 5), read(C, 11, 12), read(A, 13, 14), read(B, 15, 16), read(B, 21, 22)];
    assert_eq!(check(&swaps, &reads), []);
    for (wrong, violation) in [
        (read(C, 6, 7), Violation::Early { read: 1 }),
        (read(A, 21, 22), Violation::Stale { read: 1, swap: 1 }),
    ] {
        assert_eq!(check(&swaps, &[read(A, 0, 5), wrong]), [violation]);
    }
}

/// Whether serials can be chosen for the reads: by trying every combination.
fn any_choice(serials: &Serials, reads: &[Read], chosen: &mut Vec<usize>) -> bool {
    let Some(read) = reads.get(chosen.len()) else { return true };
    for serial in serials.last_answered_before(read.sent)..=serials.last_called_by(read.seen) {
        let ordered = reads.iter().zip(chosen.iter()).all(|(other, &other_serial)| {
            (other.seen >= read.sent || other_serial <= serial)
                && (read.seen >= other.sent || serial <= other_serial)
        });
        if serials.is(serial, read.version) && ordered {
            chosen.push(serial);
            if any_choice(serials, reads, chosen) {
                return true;
            }
            chosen.pop();
        }
    }
    false
}

proptest! {
    #[test]
    fn a_history_is_flagged_exactly_if_no_choice_of_swaps_explains_it(
        swaps in prop::collection::vec((0..3_usize, 0..4_u64, 0..8_u64, 0..4_u8, any::<bool>()), 0..5),
        reads in prop::collection::vec((0..3_usize, 0..24_u64, 0..8_u64), 0..7),
    ) {
        let mut now = 0;
        let swaps: Vec<Swap> = swaps.into_iter().map(|(version, pause, time, kind, answered)| {
            let called = now + pause;
            now = called + time;
            let swap = if answered { swap(version, called, now) } else { open_swap(version, called) };
            match kind {
                0 => Swap { right: Right::Also(version), ..swap },
                1 => unknown(called),
                _ => swap,
            }
        }).collect();
        let reads: Vec<Read> =
            reads.into_iter().map(|(version, sent, time)| read(version, sent, sent + time)).collect();
        let explained = any_choice(&Serials::new(&swaps, &reads), &reads, &mut Vec::new());
        prop_assert_eq!(check(&swaps, &reads).is_empty(), explained);
    }
}
