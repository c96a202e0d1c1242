//! How requests are spread over instances goes from the settings to the routes.

use lockgate::deploy::MaintenanceRequest;
use lockgate::routing::balance::Balance;
use lockgate::settings::BalanceSettings;

use super::*;

#[tokio::test]
async fn a_version_is_balanced_as_its_settings_say_after_a_restart_and_behind_a_hold_too() {
    let bed = Bed::with(|settings| settings.balance = BalanceSettings::RoundRobin).await;
    bed.deploy(&["serve", "1"]).await;
    assert_eq!(bed.backend(HOST).unwrap().balance, Balance::RoundRobin);
    let bed = bed.restart().await;
    assert_eq!(bed.backend(HOST).unwrap().balance, Balance::RoundRobin);
    // Whom it lets by goes on as before.
    let allow = vec!["10.0.0.0/8".parse().unwrap()];
    let request = MaintenanceRequest { on: true, allow, ..MaintenanceRequest::default() };
    bed.engine.maintain(&app(), &request).await.unwrap();
    let held = bed.backend(HOST).unwrap();
    assert!(held.hold.is_some() && held.balance == Balance::RoundRobin);
}

#[tokio::test]
async fn visitors_stay_with_their_instance_over_a_restart() {
    let bed = Bed::with(|settings| settings.balance = BalanceSettings::Sticky).await;
    bed.deploy(&["serve", "1"]).await;
    let before = bed.backend(HOST).unwrap().balance.clone();
    assert!(matches!(before, Balance::Sticky(_)));
    let bed = bed.restart().await;
    assert_eq!(bed.backend(HOST).unwrap().balance, before);
}
