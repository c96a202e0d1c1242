//! P1 nothing spilled and P2 cutover is a point in time: swaps under the verifier's load, on both runtimes.

use std::process::Output;

use crate::support;

fn demo(arguments: &[&str]) -> Output {
    // A rate that a busy machine keeps up with in a debug build, too.
    support::demo(&[&["--rate", "80"], arguments].concat(), "")
}

fn assert_clean(output: &Output) {
    let told =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && told.contains("nothing was spilled"), "{told}");
    assert!(!told.contains("try:  curl"), "nobody answers there any more: {told}");
}

#[test]
fn a_hundred_swaps_under_mixed_load_spill_nothing() {
    assert_clean(&demo(&["--swaps", "100"]));
}

#[test]
fn swaps_that_stop_the_old_version_and_wake_it_again_spill_nothing() {
    assert_clean(&demo(&["--swaps", "6", "--stop-old"]));
}

#[test]
fn swaps_of_an_app_that_speaks_http2_spill_nothing() {
    assert_clean(&demo(&["--swaps", "40", "--protocol", "h2c"]));
}

#[test]
fn swaps_of_real_containers_spill_nothing() {
    if !crate::engine::answers("swaps_of_real_containers_spill_nothing") {
        return;
    }
    assert_clean(&demo(&["--runtime", "docker", "--swaps", "20"]));
}
