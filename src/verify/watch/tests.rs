use http::HeaderMap;

use super::*;
use crate::clock::SystemClock;
use crate::verify::plan::{Kind, Reuse, Slot};
use crate::verify::tally::Naming;
use crate::verify::{Class, Verdict};

/// A run of which each look and each answer is told, with milliseconds since it began.
struct Run {
    tally: Tally,
    began: Instant,
}

impl Run {
    fn new() -> Self {
        let began = SystemClock.now();
        let tally = Tally::new(began, vec!["a.test".to_owned()]);
        tally.name_by(Naming::Deployment);
        Self { tally, began }
    }

    fn at(&self, millis: u64) -> Instant {
        self.began + Duration::from_millis(millis)
    }

    fn watch(&self) -> Watch<'_> {
        Watch::new(&self.tally, &SystemClock, self.began)
    }

    fn answer(&self, deployment: &str, sent: u64, seen: u64) {
        let (number, at, kind, reuse) = (0, Duration::ZERO, Kind::Get, Reuse::New);
        let slot = Slot { number, at, kind, host: 0, reuse, size: 0 };
        let headers = HeaderMap::from_iter([(
            http::HeaderName::from_static("x-deployment"),
            http::HeaderValue::from_str(deployment).unwrap(),
        )]);
        self.tally.saw(&slot, &headers, self.at(sent), self.at(seen));
    }

    fn verdict(&self) -> Verdict {
        self.tally.verdict(Duration::ZERO, false, 0)
    }

    /// How many swaps were seen, and how many answers were surely wrong.
    fn judged(&self) -> (u64, u64) {
        let verdict = self.verdict();
        (verdict.swaps, verdict.counts.wrong_version + verdict.counts.mixed)
    }
}

fn serving(generation: u64, live: &str, split: Option<&str>) -> Serving {
    Serving { generation, live: live.to_owned(), split: split.map(str::to_owned) }
}

/// Looks at 0–1, 10–11, 20–21, … of which each shows what is given for it.
fn looked(run: &Run, shown: &[Option<Serving>]) {
    let mut watch = run.watch();
    for (look, serving) in (0..).zip(shown) {
        match serving.clone() {
            Some(serving) => watch.saw(serving, run.at(look * 10), run.at(look * 10 + 1)),
            None => watch.is_blind = true,
        }
    }
    if watch.is_blind {
        run.tally.unknown(watch.since);
    }
}

#[test]
fn between_the_last_look_at_the_old_one_and_the_first_at_the_new_one_both_are_right_and_then_no_more() {
    let run = Run::new();
    let (a, b) = (serving(1, "a", None), serving(2, "b", None));
    looked(&run, &[Some(a.clone()), Some(a), Some(b.clone()), Some(b)]);
    for (deployment, sent, seen) in [("a", 2, 3), ("a", 12, 18), ("b", 13, 14), ("a", 11, 40), ("b", 30, 31)]
    {
        run.answer(deployment, sent, seen);
    }
    assert_eq!(run.judged(), (1, 0));
    // Sent after the answer of the first look that showed the new one.
    run.answer("a", 22, 23);
    assert_eq!(run.judged(), (1, 1));
    assert!(run.verdict().evidence[0].what.contains("served by a, sent"));
    // Here before the last look at the old one was asked for.
    let run = Run::new();
    let (a, b) = (serving(1, "a", None), serving(2, "b", None));
    looked(&run, &[Some(a.clone()), Some(a), Some(b)]);
    run.answer("b", 8, 9);
    assert_eq!(run.verdict().counts.wrong_version, 1);
    assert_eq!(run.verdict().evidence[0].class, Class::WrongVersion);
}

#[test]
fn without_any_swap_what_is_not_live_is_wrong_all_the_same() {
    let run = Run::new();
    looked(&run, &[Some(serving(7, "a", None)), Some(serving(7, "a", None))]);
    run.answer("a", 2, 3);
    assert_eq!(run.judged(), (0, 0));
    run.answer("b", 4, 5);
    assert_eq!(run.judged(), (0, 1));
}

#[test]
fn a_change_of_something_else_is_no_swap() {
    let run = Run::new();
    looked(&run, &[Some(serving(1, "a", None)), Some(serving(2, "a", None))]);
    run.answer("b", 5, 6);
    assert_eq!(run.judged(), (0, 1));
}

#[test]
fn where_more_changed_between_two_looks_nobody_knows_what_served_meanwhile() {
    for (last, swaps) in [("a", 0), ("b", 1)] {
        let run = Run::new();
        looked(&run, &[Some(serving(1, "a", None)), Some(serving(3, last, None))]);
        run.answer("c", 4, 5);
        run.answer("b", 6, 7);
        assert_eq!(run.judged(), (swaps, 0), "{last}");
        run.answer("c", 12, 13);
        assert_eq!(run.judged(), (swaps, 1), "{last}");
    }
}

#[test]
fn of_a_time_in_which_no_look_showed_anything_nothing_is_held_against_anybody() {
    let run = Run::new();
    looked(&run, &[Some(serving(4, "a", None)), None, None, Some(serving(1, "a", None))]);
    run.answer("b", 15, 16);
    assert_eq!(run.judged(), (0, 0));
    run.answer("b", 32, 33);
    assert_eq!(run.judged(), (0, 1));
    // Nor at the beginning, nor at the end.
    let run = Run::new();
    looked(&run, &[None, Some(serving(1, "a", None)), None]);
    run.answer("b", 2, 3);
    run.answer("c", 25, 26);
    assert_eq!(run.judged(), (0, 0));
}

#[test]
fn while_a_cutover_goes_in_steps_both_are_right_and_at_its_end_the_new_one_alone() {
    let stepped = || {
        let run = Run::new();
        let shown = [
            serving(1, "a", None),
            serving(2, "a", Some("b")),
            serving(3, "a", Some("b")),
            serving(4, "b", None),
        ];
        looked(&run, &shown.map(Some));
        run
    };
    let run = stepped();
    for (deployment, sent) in [("a", 2), ("b", 12), ("a", 14), ("b", 22), ("a", 24), ("b", 33)] {
        run.answer(deployment, sent, sent + 1);
    }
    assert_eq!(run.judged(), (2, 0));
    for (deployment, sent) in [("c", 13), ("a", 34)] {
        let run = stepped();
        run.answer(deployment, sent, sent + 1);
        assert_eq!(run.judged(), (2, 1), "{deployment} at {sent}");
    }
}
