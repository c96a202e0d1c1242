//! Instances that speak TLS themselves: checked by it, served by it, and never without.

use lockgate::routing::tls::{Believed, ClientTls, TargetTls};
use lockgate::settings::{AppTlsSettings, Protocol};
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::ca::{Ca, Leaf};
use super::*;

fn config(leaf: &Leaf) -> Arc<ServerConfig> {
    let builder = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()));
    let builder = builder.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
    let key = PrivateKeyDer::from_pem_slice(leaf.key.as_bytes()).unwrap();
    Arc::new(builder.with_single_cert(vec![leaf.certificate()], key).unwrap())
}

fn named(ca: &Ca, name: &str) -> AppTlsSettings {
    AppTlsSettings { server_name: Some(name.to_owned()), ca: Some(ca.pem.clone()), insecure: false }
}

fn expected(ca: &Ca, name: &str) -> Option<TargetTls> {
    let authority = CertificateDer::from_pem_slice(ca.pem.as_bytes()).unwrap();
    let tls = ClientTls::new(Believed::Authorities(vec![authority])).unwrap();
    Some(tls.to(name.to_owned().try_into().unwrap()))
}

impl Bed {
    /// A version has `limit` to become ready.
    async fn by_tls(ca: &Ca, names: &[&str], tls: AppTlsSettings, limit: Delay) -> Self {
        let bed = Self::with(|settings| {
            (settings.protocol, settings.tls) = (Protocol::Https, Some(tls));
            settings.deploy.health_timeout = limit;
        })
        .await;
        bed.runtime.speak_tls(config(&ca.leaf(names)));
        bed
    }

    /// How the one target behind `host` is spoken to.
    fn spoken_to(&self, host: &str) -> (Protocol, Option<TargetTls>) {
        let backend = self.backend(host).unwrap();
        let [target] = &backend.targets[..] else { panic!("{backend:?}") };
        (target.protocol, target.tls.clone())
    }
}

#[tokio::test]
async fn a_version_is_checked_and_served_by_the_tls_that_it_was_deployed_with() {
    let ca = Ca::new();
    let bed = Bed::by_tls(&ca, &["one.test", "two.test"], named(&ca, "one.test"), LONG).await;
    let (first, operation) = bed.deploy(&["serve", "1"]).await;
    assert_eq!(operation.failure, None);
    assert_eq!(bed.spoken_to(HOST), (Protocol::Https, expected(&ca, "one.test")));
    let one = bed.backend(HOST).unwrap().targets[0].clone();

    let mut web = bed.store.app(&app()).await.unwrap().unwrap();
    web.settings.tls = Some(named(&ca, "two.test"));
    bed.engine.put_apps(&[web]).await.unwrap();
    assert_eq!(bed.spoken_to(HOST).1, expected(&ca, "one.test"), "a deployment is what it was made");
    bed.deploy(&["serve", "2"]).await;
    assert_eq!(bed.spoken_to(HOST).1, expected(&ca, "two.test"));
    let two = bed.backend(HOST).unwrap().targets[0].clone();
    assert!(!Arc::ptr_eq(&one, &two) && !one.is_like(&two), "they would share connections");
    let mut back = bed.rollback(None, None).await.unwrap();
    bed.ended(&mut back).await;
    assert_eq!(bed.serves(HOST), Ok(first.to_string()));
    assert_eq!(bed.spoken_to(HOST).1, expected(&ca, "one.test"));
    let bed = bed.restart().await;
    assert_eq!(bed.spoken_to(HOST), (Protocol::Https, expected(&ca, "one.test")));
}

#[tokio::test]
async fn who_is_not_who_it_has_to_be_is_not_ready() {
    let ca = Ca::new();
    let bed = Bed::by_tls(&ca, &["other.test"], named(&ca, "one.test"), Delay::seconds(5)).await;
    let (_, operation) = bed.deploy(&["serve", "1"]).await;
    let failure = operation.failure.unwrap();
    assert_eq!(failure.code, "not_ready");
    let told = format!("{failure:?}");
    assert!(told.contains("TLS handshake") && told.contains("tls.server_name"), "{told}");
    // Who says that any certificate will do gets it.
    let mut web = bed.store.app(&app()).await.unwrap().unwrap();
    web.settings.tls = Some(AppTlsSettings { insecure: true, ..AppTlsSettings::default() });
    web.settings.deploy.health_timeout = LONG;
    bed.engine.put_apps(&[web]).await.unwrap();
    let (_, operation) = bed.deploy(&["serve", "1"]).await;
    assert_eq!(operation.failure, None);
}

#[tokio::test]
async fn tls_that_nobody_could_be_held_to_is_refused_with_its_place() {
    let (bed, ca) = (Bed::new().await, Ca::new());
    let pem = ca.pem.clone();
    let no_authority = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n".to_owned();
    let given = |server_name: Option<&str>, ca: Option<String>, insecure| {
        Some(AppTlsSettings { server_name: server_name.map(str::to_owned), ca, insecure })
    };
    for (protocol, tls, field) in [
        (Protocol::Http1, given(Some("a.test"), None, false), "tls is for"),
        (Protocol::H2c, given(Some("a.test"), None, false), "tls is for"),
        (Protocol::Https, None, "tls.server_name"),
        (Protocol::H2, given(None, Some(pem.clone()), false), "tls.server_name"),
        (Protocol::Https, given(Some("a b"), None, false), "tls.server_name"),
        (Protocol::Https, given(Some("a.test"), Some(pem.clone()), true), "tls.insecure"),
        (Protocol::Https, given(Some("a.test"), Some("/etc/ca.pem".to_owned()), false), "tls.ca"),
        (Protocol::Https, given(Some("a.test"), Some(no_authority.clone()), false), "tls.ca"),
    ] {
        let mut web = bed.store.app(&app()).await.unwrap().unwrap();
        (web.settings.protocol, web.settings.tls) = (protocol, tls.clone());
        let denied = bed.engine.put_apps(&[web]).await.unwrap_err().to_string();
        assert!(denied.contains(field), "{protocol:?} {tls:?}: {denied}");
    }
}
