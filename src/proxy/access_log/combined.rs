//! The `combined` format of Apache and nginx, for tools that read nothing else.

use std::fmt::{self, Write as _};
use std::io::Write as _;

use super::Entry;

/// Text between quotes, which it cannot end.
struct Quoted<'a>(&'a str);

/// Adds `entry` to `text`, without a line end. The host is not in this format, nor is anything of the upstream.
pub(super) fn write(text: &mut Vec<u8>, entry: &Entry<'_>) {
    // Memory takes it.
    let _written = write_to(text, entry);
}

fn write_to(line: &mut Vec<u8>, entry: &Entry<'_>) -> std::io::Result<()> {
    let Entry { exchange, logged, .. } = entry;
    let time = entry.began().strftime("%d/%b/%Y:%H:%M:%S +0000");
    write!(line, "{} - - [{time}] \"{} {}", logged.client_ip, exchange.method, Quoted(&logged.path))?;
    if let Some(query) = &logged.query {
        write!(line, "?{}", Quoted(query))?;
    }
    write!(line, " HTTP/{}\" {} ", entry.protocol(), exchange.status.as_u16())?;
    match exchange.response_bytes {
        0 => line.push(b'-'),
        bytes => write!(line, "{bytes}")?,
    }
    let referer = Quoted(logged.referer.as_deref().unwrap_or("-"));
    write!(line, " \"{referer}\" \"{}\"", Quoted(logged.user_agent.as_deref().unwrap_or("-")))
}

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|character| match character {
            '"' | '\\' => write!(f, "\\{character}"),
            other => f.write_char(other),
        })
    }
}
