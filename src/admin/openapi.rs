//! The OpenAPI document: what each handler declares, and the refusals that the guard, the path, the query and the body
//! of any route can meet.

use utoipa::openapi::path::{Operation, Parameter, ParameterBuilder, ParameterIn};
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{Components, Content, Object, OpenApi, Ref, RefOr, Required, Response, Type};

use super::idempotency::KEY;

const PROBLEM: &str = "application/problem+json";
const TOKEN: &str = "token";

/// Which routes meet a refusal.
#[derive(Clone, Copy)]
enum Where {
    Everywhere,
    Mutation,
    Body,
    Path,
    Query,
}

const REFUSALS: &[(&str, Where, &str)] = &[
    ("400", Where::Query, "the query is not valid"),
    ("400", Where::Mutation, "Idempotency-Key is not valid"),
    ("401", Where::Everywhere, "over TCP: no valid token"),
    ("403", Where::Everywhere, "the token lacks the scope, or the request is a web page's"),
    ("404", Where::Path, "there is none of that name"),
    ("408", Where::Mutation, "the body did not come in time"),
    ("409", Where::Mutation, "the Idempotency-Key was used for another call"),
    ("413", Where::Mutation, "the body is too large"),
    ("415", Where::Mutation, "the body is not JSON"),
    ("421", Where::Everywhere, "over TCP: the Host is not a loopback name"),
    ("422", Where::Body, "the body is not what is asked for"),
    ("429", Where::Everywhere, "over TCP: too many calls without a valid token"),
    ("500", Where::Mutation, "the call broke"),
    ("503", Where::Everywhere, "the store does not answer, or lockgate is shutting down"),
];

/// Adds to every route what it shares with the others.
pub(super) fn complete(document: &mut OpenApi) {
    for item in document.paths.paths.values_mut() {
        for read in item.get.iter_mut() {
            declare(read, false);
        }
        for mutation in [&mut item.put, &mut item.post, &mut item.delete].into_iter().flatten() {
            declare(mutation, true);
        }
    }
    let mut scheme = Http::new(HttpAuthScheme::Bearer);
    scheme.description = Some("Over TCP; the Unix socket needs none.".to_owned());
    let components = document.components.get_or_insert_with(Components::new);
    components.add_security_scheme(TOKEN, SecurityScheme::Http(scheme));
}

fn declare(operation: &mut Operation, is_mutation: bool) {
    // The handlers' names, which several subjects share, with their subject.
    if let (Some(tag), Some(name)) = (operation.tags.iter().flatten().next(), &operation.operation_id) {
        operation.operation_id = Some(format!("{tag}_{name}"));
    }
    operation.security = Some(vec![SecurityRequirement::new(TOKEN, [""; 0])]);
    let takes = |wanted: &ParameterIn| {
        let mut parameters = operation.parameters.iter().flatten();
        parameters.any(|given| matches!(given, RefOr::T(given) if given.parameter_in == *wanted))
    };
    let has_path = takes(&ParameterIn::Path);
    let has_query = takes(&ParameterIn::Query);
    let has_body = operation.request_body.is_some();
    if is_mutation {
        operation.parameters.get_or_insert_default().push(RefOr::T(key()));
    }
    let responses = &mut operation.responses.responses;
    for (status, place, description) in REFUSALS {
        let is_met = match place {
            Where::Everywhere => true,
            Where::Mutation => is_mutation,
            Where::Body => has_body,
            Where::Path => has_path,
            Where::Query => has_query,
        };
        if is_met {
            responses.entry((*status).to_owned()).or_insert_with(|| Response::new(*description).into());
        }
    }
    for (status, response) in responses.iter_mut() {
        if let (true, RefOr::T(response)) = (status.as_str() >= "400", response) {
            let problem = Content::new(Some(Ref::from_schema_name("Problem")));
            response.content = [(PROBLEM.to_owned(), problem.into())].into_iter().collect();
        }
    }
}

/// The client's own name for a call.
fn key() -> Parameter {
    let told = "A repeat with the same key, path and body is not carried out again. Where the call made an operation, an app or a \
                token the answer shows that as it is now; of any other call it is the first answer, with `Idempotency-Replayed`. \
                Another call under the same key is refused with 409. A refused call leaves its key free.";
    ParameterBuilder::new()
        .name(KEY)
        .parameter_in(ParameterIn::Header)
        .required(Required::False)
        .description(Some(told))
        .schema(Some(Object::with_type(Type::String)))
        .build()
}
