//! Whatever stands in a configuration file, it is taken or refused with what is wrong with it.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let env = |name: &str| (name.len() % 2 == 0).then(|| name.to_owned());
    if let Err(diagnostics) = lockgate::config::parse(text, "fuzz.yaml", &env) {
        assert!(!diagnostics.0.is_empty());
        assert!(!diagnostics.to_string().is_empty());
    }
});
