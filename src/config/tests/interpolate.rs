//! Values that are filled in.

use super::*;

#[test]
fn what_is_filled_in_stays_one_scalar() {
    let env = |name: &str| (name == "EVIL").then(|| "a: b\nc: [".to_owned());
    let config = parse("apps: { web: { env: { X: '${EVIL}', Y: '$$5 ${NONE:-d}' } } }", "x", &env).unwrap();
    let settings = &config.apps[&"web".parse::<AppName>().unwrap()].settings;
    assert_eq!(settings.env["X"].expose(), "a: b\nc: [");
    assert_eq!(settings.env["Y"].expose(), "$5 d");
}

#[test]
fn a_value_that_is_filled_in_fits_where_text_or_a_number_is_wanted() {
    let env = |name: &str| (name == "N").then(|| "007".to_owned());
    let text = "workers: ${N}\naccess_log: { file: '/log/${N}' }\napps:\n  web:\n    port: ${N}\n    env: { A: '${N}' }\n    command: [web, '${N}']\n    hosts: [{ host: a.test, path: /x, strip: '${S:-true}' }]\n";
    let config = parse(text, "x", &env).unwrap();
    let web = &config.apps[&"web".parse::<AppName>().unwrap()];
    assert_eq!((config.workers, web.settings.port), (7, Some(7)));
    assert_eq!((web.settings.env["A"].expose(), web.settings.command[1].as_str()), ("007", "007"));
    assert!(web.hosts[0].strip);
    assert_eq!(config.access_log, AccessLog::File("/log/007".into()));
}
