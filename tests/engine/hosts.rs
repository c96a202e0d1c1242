//! The host names that an app chose: added, renamed and removed one at a time, under requests.

use lockgate::deploy::HostChange;

use super::*;

fn row(host: &str, path: &str) -> HostRow {
    HostRow { host: host.to_owned(), path: path.to_owned(), strip: false }
}

impl Bed {
    async fn change(&self, change: HostChange) -> Result<(), Denied> {
        self.engine.change_hosts(&app(), &change).await
    }

    async fn own_hosts(&self) -> Vec<HostRow> {
        self.store.app(&app()).await.unwrap().unwrap().hosts
    }
}

#[tokio::test]
async fn a_removed_host_answers_404_at_once_and_what_is_in_flight_through_it_goes_on() {
    let bed = Bed::with(|settings| {
        settings.env = [("KEPT".to_owned(), lockgate::settings::Secret::new("as it was"))].into();
    })
    .await;
    let (live, _) = bed.deploy(&["serve", "1"]).await;
    bed.change(HostChange::Add(row("old.test", "/"))).await.unwrap();
    assert_eq!(bed.serves("old.test"), Ok(live.to_string()));
    let held = bed.request("old.test");
    let target = bed.backend("old.test").unwrap().targets[0].clone();
    bed.change(HostChange::Remove(row("OLD.test", "/"))).await.unwrap();
    assert_eq!(bed.serves("old.test"), Err(Miss::NoRoute));
    assert_eq!(bed.serves(HOST), Ok(live.to_string()));
    assert_eq!(target.gate.in_flight().requests, 1);
    assert!(!target.gate.is_closed(), "the other host's requests go through it");
    drop(held);
    assert_eq!(bed.own_hosts().await, [row(HOST, "/")]);
    let app = bed.store.app(&app()).await.unwrap().unwrap();
    assert_eq!(app.settings.env["KEPT"].expose(), "as it was");
    let bed = bed.restart().await;
    assert_eq!(bed.serves("old.test"), Err(Miss::NoRoute));
}

#[tokio::test]
async fn a_renamed_host_leads_to_the_same_in_one_instant() {
    let bed = Bed::new().await;
    let (live, _) = bed.deploy(&["serve", "1"]).await;
    let generation = bed.routing.generation();
    let change = HostChange::Rename { from: row(HOST, "/"), to: row("new.test", "/") };
    bed.change(change.clone()).await.unwrap();
    assert_eq!(bed.routing.generation(), generation + 1, "in more than one step");
    assert_eq!(bed.serves("new.test"), Ok(live.to_string()));
    assert_eq!(bed.serves(HOST), Err(Miss::NoRoute));
    // A swap that comes after it knows of it.
    let (next, _) = bed.deploy(&["serve", "2"]).await;
    assert_eq!(bed.serves("new.test"), Ok(next.to_string()));
    assert_eq!(bed.serves(HOST), Err(Miss::NoRoute));
    let denied = bed.change(change).await.unwrap_err();
    assert_eq!(denied.code(), "host_not_found");
}

#[tokio::test]
async fn patterns_and_prefixes_are_hosts_like_any_other_and_a_taken_one_changes_nothing() {
    let bed = Bed::new().await;
    let (live, _) = bed.deploy(&["serve", "1"]).await;
    for (host, asked) in [("*.wild.test", "a.wild.test"), ("*", "anything.else")] {
        bed.change(HostChange::Add(row(host, "/"))).await.unwrap();
        assert_eq!(bed.serves(asked), Ok(live.to_string()), "{host}");
    }
    let shop = HostRow { strip: true, ..row("shop.test", "/shop") };
    bed.change(HostChange::Add(shop.clone())).await.unwrap();
    let found = bed.routing.table().resolve(&"shop.test".parse().unwrap()).unwrap();
    assert!(found.route("/shop/x", bed.clock.now()).unwrap().route.strip);
    assert!(found.route("/other", bed.clock.now()).is_err());
    bed.change(HostChange::Add(row("shop.test", "/shop"))).await.unwrap();
    let found = bed.routing.table().resolve(&"shop.test".parse().unwrap()).unwrap();
    assert!(!found.route("/shop/x", bed.clock.now()).unwrap().route.strip, "the prefix is kept now");

    let mut other = bed.store.app(&app()).await.unwrap().unwrap();
    (other.name, other.hosts) = ("other".parse().unwrap(), vec![row("other.test", "/")]);
    bed.engine.put_apps(&[other]).await.unwrap();
    let before = bed.own_hosts().await;
    for wrong in [row("other.test", "/"), row("not a host", "/"), row("a.test", "no-slash")] {
        let denied = bed.change(HostChange::Add(wrong)).await.unwrap_err();
        assert!(matches!(denied, Denied::HostTaken { .. } | Denied::Invalid { .. }), "{denied:?}");
    }
    let rename = HostChange::Rename { from: row(HOST, "/"), to: row("other.test", "/") };
    assert!(matches!(bed.change(rename).await.unwrap_err(), Denied::HostTaken { .. }));
    assert_eq!(bed.own_hosts().await, before);
    assert_eq!(bed.serves(HOST), Ok(live.to_string()));
}
