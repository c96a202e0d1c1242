//! The `combined` format of Apache and nginx, for tools that read nothing else.

use std::fmt::{self, Write as _};

use super::Entry;

/// Text between quotes, which it cannot end.
struct Quoted<'a>(&'a str);

/// `entry` without a line end. The host is not in this format, nor is anything of the upstream.
pub(super) fn line(entry: &Entry<'_>) -> Vec<u8> {
    let mut line = String::with_capacity(256);
    // Writing to a string does not fail.
    let _written = write(&mut line, entry);
    line.into_bytes()
}

fn write(line: &mut String, entry: &Entry<'_>) -> fmt::Result {
    let Entry { exchange, logged, .. } = entry;
    let time = entry.began().strftime("%d/%b/%Y:%H:%M:%S +0000");
    write!(line, "{} - - [{time}] \"{} {}", logged.client_ip, exchange.method, Quoted(&logged.path))?;
    if let Some(query) = &logged.query {
        write!(line, "?{}", Quoted(query))?;
    }
    write!(line, " HTTP/{}\" {} ", entry.protocol(), exchange.status.as_u16())?;
    match exchange.response_bytes {
        0 => line.push('-'),
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
