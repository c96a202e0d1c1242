//! What signed links are written with: a token that says until when it is good, and a signature.

/// The query parameter, and the cookie, of links that a policy wants.
pub const SIGNED: &str = "lockgate_signed";

/// Until then, in seconds of Unix time.
#[must_use]
pub fn token(until: i64, signature: &[u8; 32]) -> String {
    format!("{until}.{}", blake3::Hash::from_bytes(*signature).to_hex())
}

/// Until when a token says that it is good, and the signature that has to be looked at; `None` if it is none, or over.
#[must_use]
pub fn read(token: &str, now: i64) -> Option<(i64, [u8; 32])> {
    let (until, signature) = token.split_once('.')?;
    let until: i64 = until.parse().ok().filter(|until| now < *until)?;
    Some((until, *blake3::Hash::from_hex(signature).ok()?.as_bytes()))
}
