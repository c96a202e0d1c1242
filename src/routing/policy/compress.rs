//! Which responses are compressed, and how (RFC 9110 sections 8.4, 12.5.3).

use http::header::{
    ACCEPT_ENCODING, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderMap,
};
use http::{Method, StatusCode};

use crate::settings::policy::CompressSettings;

/// Which responses are compressed.
#[derive(Debug)]
pub struct Compress {
    min_bytes: u64,
    types: Box<[String]>,
}

/// A content coding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coding {
    Zstd,
    Gzip,
}

impl Coding {
    /// As `Content-Encoding` names it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Zstd => "zstd",
            Self::Gzip => "gzip",
        }
    }

    /// The one that a client likes best, zstd where it likes both as much; `None` if it takes neither or likes it better
    /// as it is.
    #[must_use]
    pub fn accepted(headers: &HeaderMap) -> Option<Self> {
        let (mut zstd, mut gzip, mut any, mut identity) = (None, None, None, None);
        for line in headers.get_all(ACCEPT_ENCODING) {
            for part in line.to_str().unwrap_or_default().split(',') {
                let mut parameters = part.split(';').map(str::trim);
                let name = parameters.next().unwrap_or_default().to_ascii_lowercase();
                let quality = parameters.find_map(|text| {
                    text.strip_prefix("q=").or_else(|| text.strip_prefix("Q="))?.trim().parse::<f32>().ok()
                });
                let place = match name.as_str() {
                    "zstd" => &mut zstd,
                    "gzip" | "x-gzip" => &mut gzip,
                    "*" => &mut any,
                    "identity" => &mut identity,
                    _ => continue,
                };
                *place = Some(quality.unwrap_or(1.0));
            }
        }
        let quality = |own: Option<f32>| own.or(any).unwrap_or(0.0);
        let (zstd, gzip) = (quality(zstd), quality(gzip));
        let best = if zstd > 0.0 && zstd >= gzip { (Self::Zstd, zstd) } else { (Self::Gzip, gzip) };
        (best.1 > 0.0 && best.1 >= identity.unwrap_or(0.0)).then_some(best.0)
    }
}

impl Compress {
    pub(super) fn new(settings: &CompressSettings) -> Self {
        let types = settings.types.iter().map(|text| text.to_ascii_lowercase()).collect();
        Self { min_bytes: settings.min_bytes, types }
    }

    /// Whether a response is one that is compressed for whom it suits; caches are to be told of it then.
    #[must_use]
    pub fn suits(&self, method: &Method, status: StatusCode, headers: &HeaderMap) -> bool {
        let has_body = *method != Method::HEAD
            && !status.is_informational()
            && !matches!(
                status,
                StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED | StatusCode::PARTIAL_CONTENT
            );
        let is_whole = !headers.contains_key(CONTENT_RANGE) && !headers.contains_key(CONTENT_ENCODING);
        let length = headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
        let is_long = length.is_none_or(|length| length >= self.min_bytes);
        // RFC 9110 section 7.7.
        let may_be_changed = !headers
            .get_all(CACHE_CONTROL)
            .iter()
            .any(|line| line.to_str().is_ok_and(|line| line.to_ascii_lowercase().contains("no-transform")));
        has_body && is_whole && is_long && may_be_changed && self.is_of_type(headers)
    }

    fn is_of_type(&self, headers: &HeaderMap) -> bool {
        let Some(text) = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()) else {
            return false;
        };
        let essence = text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        // Events are passed on one by one, and those of gRPC are compressed already.
        essence != "text/event-stream"
            && self.types.iter().any(|known| match known.strip_suffix('*') {
                Some(kind) => essence.starts_with(kind),
                None => *known == essence,
            })
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn headers(all: &[(&'static str, &'static str)]) -> HeaderMap {
        all.iter().map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn a_client_gets_the_coding_that_it_likes_best() {
        use Coding::{Gzip, Zstd};
        for (accept, coding) in [
            ("gzip, deflate, br, zstd", Some(Zstd)),
            ("gzip, deflate, br", Some(Gzip)),
            ("GZIP;q=0.5", Some(Gzip)),
            ("zstd;q=0.2, gzip;q=0.8", Some(Gzip)),
            ("zstd;q=0, gzip", Some(Gzip)),
            ("gzip;q=0", None),
            ("*", Some(Zstd)),
            ("*;q=0", None),
            ("identity;q=1, *;q=0.5", None),
            ("identity;q=0, gzip;q=0.1", Some(Gzip)),
            ("br", None),
            ("", None),
        ] {
            assert_eq!(Coding::accepted(&headers(&[("accept-encoding", accept)])), coding, "{accept}");
        }
        assert_eq!(Coding::accepted(&HeaderMap::new()), None);
    }

    #[test]
    fn what_is_not_to_be_changed_is_not() {
        let compress = Compress::new(&CompressSettings::default());
        let suits = |all: &[(&'static str, &'static str)]| {
            compress.suits(&Method::GET, StatusCode::OK, &headers(all))
        };
        assert!(suits(&[("content-type", "text/html; charset=utf-8")]));
        assert!(suits(&[("content-type", "Application/JSON"), ("content-length", "1024")]));
        for all in [
            &[][..],
            &[("content-type", "text/event-stream")],
            &[("content-type", "application/grpc")],
            &[("content-type", "image/png")],
            &[("content-type", "text/html"), ("content-length", "1023")],
            &[("content-type", "text/html"), ("content-encoding", "br")],
            &[("content-type", "text/html"), ("content-range", "bytes 0-1/2")],
            &[("content-type", "text/html"), ("cache-control", "public, No-Transform")],
        ] {
            assert!(!suits(all), "{all:?}");
        }
        let html = headers(&[("content-type", "text/html")]);
        assert!(!compress.suits(&Method::HEAD, StatusCode::OK, &html));
        assert!(!compress.suits(&Method::GET, StatusCode::PARTIAL_CONTENT, &html));
    }
}
