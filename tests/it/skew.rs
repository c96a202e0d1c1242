//! Skew protection with the real binary: whose version a request names, over a deploy, a crash, and the end of that version.

use serde_json::json;

use crate::support::{HOST, Lockgate, eventually, for_load};

#[tokio::test(flavor = "multi_thread")]
async fn a_page_stays_with_its_version_over_a_deploy_and_a_crash_and_leaves_it_when_it_ends() {
    let mut lockgate = Lockgate::prepare(|config| {
        for_load(config);
        let web = &mut config["apps"]["web"];
        web["skew_protection"] = json!({ "max_age": "1h" });
        web["deploy"]["standby_after"] = json!("1h");
    });
    lockgate.spawn("").await;
    let one = lockgate.deploy("one").await.unwrap().deployment.unwrap();
    let of_one = format!("Lockgate-Deployment: {one}");
    assert_eq!(lockgate.version_with(&of_one).await.as_deref(), Ok("one"));
    let verdict = lockgate
        .under_load(async {
            lockgate.deploy("two").await.unwrap();
            for _ in 0..5 {
                assert_eq!(lockgate.version_with(&of_one).await.as_deref(), Ok("one"));
                assert_eq!(lockgate.version(HOST).await.as_deref(), Ok("two"));
            }
        })
        .await;
    assert!(verdict.is_clean(), "{verdict}");
    lockgate.kill();
    lockgate.spawn("").await;
    assert_eq!(lockgate.version_with(&of_one).await.as_deref(), Ok("one"));
    assert_eq!(lockgate.version(HOST).await.as_deref(), Ok("two"));
    let verdict = lockgate
        .under_load(async {
            let ended = lockgate.cli(&["schedule", &one.to_string(), "standby"]);
            assert_eq!(ended.status.code(), Some(0), "{ended:?}");
            eventually("its pages have left it, and it is stopped", async || {
                let served = lockgate.version_with(&of_one).await.unwrap();
                served == "two" && lockgate.running().await == 1
            })
            .await;
        })
        .await;
    assert!(verdict.is_clean(), "{verdict}");
    assert_eq!(verdict.versions.keys().collect::<Vec<_>>(), ["two"], "{verdict}");
}
