//! The OpenAPI document and the router say the same.

use std::collections::BTreeSet;

use serde_json::Value;

use super::Admin;
use super::wire::Ask;

/// As it is served.
pub(super) struct Document(Value);

impl Document {
    pub(super) async fn of(admin: &Admin) -> Self {
        let answer = admin.socket(&Ask::get("/v1/openapi.json")).await;
        assert_eq!(answer.status, 200);
        Self(answer.json())
    }

    /// Whether it says that this call can be answered so.
    pub(super) fn declares(&self, method: &str, target: &str, status: u16) -> bool {
        let path = target.split('?').next().unwrap_or_default();
        let is_it = |template: &str| {
            let pairs: Vec<_> = template.split('/').zip(path.split('/')).collect();
            template.split('/').count() == path.split('/').count()
                && pairs.iter().all(|(wanted, given)| wanted.starts_with('{') || wanted == given)
        };
        let mut operations = self.operations().into_iter();
        operations.any(|(template, called, operation)| {
            called == method && is_it(template) && operation["responses"].get(status.to_string()).is_some()
        })
    }

    /// Method and template of all that change something.
    pub(super) fn mutations(&self) -> Vec<(&'static str, String)> {
        let methods = ["POST", "PUT", "DELETE", "PATCH"];
        let of_method = |called: &str| methods.into_iter().find(|method| *method == called);
        let all = self.operations().into_iter().filter(|(_, called, _)| called != "GET");
        all.map(|(path, called, _)| (of_method(&called).unwrap(), path.to_owned())).collect()
    }

    fn operations(&self) -> Vec<(&str, String, &Value)> {
        let paths = self.0["paths"].as_object().unwrap();
        let calls = paths.iter().flat_map(|(path, item)| {
            let methods = item.as_object().unwrap().iter();
            methods.map(move |(method, operation)| (path.as_str(), method.to_ascii_uppercase(), operation))
        });
        calls.collect()
    }
}

/// The template with a name that nobody has.
pub(super) fn filled(template: &str) -> String {
    let segments =
        template.split('/').map(|segment| if segment.starts_with('{') { "nobody" } else { segment });
    segments.collect::<Vec<_>>().join("/")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_document_lists_what_the_router_serves_and_nothing_else() {
    let admin = Admin::start().await;
    let document = Document::of(&admin).await;
    let paths: BTreeSet<_> = document.operations().into_iter().map(|(path, _, _)| path).collect();
    for path in &paths {
        let mut declared: BTreeSet<_> = document
            .operations()
            .into_iter()
            .filter(|(other, _, _)| other == path)
            .map(|(_, method, _)| method)
            .collect();
        if declared.contains("GET") {
            declared.insert("HEAD".to_owned());
        }
        let answer = admin.socket(&Ask::new("PATCH", filled(path))).await;
        assert_eq!(answer.status, 405, "{path}: {answer:?}");
        let allowed = answer.header("allow").unwrap().split(',').map(|method| method.trim().to_owned());
        assert_eq!(allowed.collect::<BTreeSet<_>>(), declared, "{path}");
    }
    for path in ["/healthz", "/readyz", "/metrics", "/v1/openapi.json", "/v1/apps/{app}/swap"] {
        assert!(paths.contains(path), "{path}");
    }
    // `routes!` adds a route with its description; these would add one without.
    let source = include_str!("../../../src/admin.rs");
    for undescribed in [".route(", ".route_service(", ".nest(", ".nest_service(", ".fallback_service("] {
        assert!(!source.contains(undescribed), "{undescribed}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_route_declares_its_refusals_as_problems() {
    let admin = Admin::start().await;
    let document = Document::of(&admin).await;
    let mut ids = BTreeSet::new();
    for (path, method, operation) in document.operations() {
        let told = format!("{method} {path}");
        assert!(ids.insert(operation["operationId"].as_str().unwrap()), "{told}: its id is another's");
        if !path.starts_with("/v1/") {
            assert!(operation["security"].is_null(), "{told}");
            continue;
        }
        assert_eq!(operation["security"][0]["token"], serde_json::json!([]), "{told}");
        let responses = operation["responses"].as_object().unwrap();
        let mut wanted = vec!["401", "403", "421", "429", "503"];
        if path.contains('{') {
            wanted.push("404");
        }
        if method != "GET" {
            wanted.extend(["400", "408", "409", "413", "415"]);
            let key = serde_json::json!("Idempotency-Key");
            let mut parameters = operation["parameters"].as_array().into_iter().flatten();
            assert!(parameters.any(|one| one["name"] == key && one["in"] == "header"), "{told}");
        }
        if !operation["requestBody"].is_null() {
            wanted.extend(["400", "422"]);
        }
        for status in wanted {
            assert!(responses.contains_key(status), "{told}: no {status}");
        }
        for (status, response) in responses.iter().filter(|(status, _)| status.as_str() >= "400") {
            let content = response["content"].as_object().unwrap();
            assert_eq!(content.keys().collect::<Vec<_>>(), ["application/problem+json"], "{told}: {status}");
        }
    }
    assert_eq!(document.0["components"]["securitySchemes"]["token"]["scheme"], "bearer");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_reference_in_the_document_leads_somewhere() {
    let admin = Admin::start().await;
    let document = Document::of(&admin).await;
    let mut left = vec![&document.0];
    let mut references = 0;
    while let Some(value) = left.pop() {
        match value {
            Value::Object(fields) => {
                if let Some(to) = fields.get("$ref").and_then(Value::as_str) {
                    references += 1;
                    assert!(document.0.pointer(to.trim_start_matches('#')).is_some(), "{to}");
                }
                left.extend(fields.values());
            }
            Value::Array(items) => left.extend(items),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }
    assert!(references > 50, "{references}");
}
