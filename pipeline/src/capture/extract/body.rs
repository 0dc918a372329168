//! Reads a request's body as one application does.

use super::form::{Rules, UrlEncoded};
use super::json::Json;
use super::kept::{Room, Share};
use super::multipart::Multipart;
use super::xmlrpc::{self, XmlRpc};
use super::{BodyFormat, MAX_SCANNED, State, Values, Wanted};

/// The parts of a request's head that determine how its body is read.
#[derive(Clone, Copy, Debug)]
pub struct Head<'h> {
    /// The method in the request line.
    pub method: &'h [u8],
    /// The value of each header `Content-Type`.
    pub content_types: &'h [&'h [u8]],
    /// `Content-Length`, if present.
    pub length: Option<u64>,
}

/// Reads a request's body in chunks of any size.
#[derive(Debug)]
pub struct BodyReader {
    format: BodyFormat,
    kind: Kind,
    scanned: usize,
    // Declared before the share, because fields are dropped in this order and the values' room belongs to
    // the share.
    values: Values,
    share: Share,
}

#[derive(Debug)]
enum Kind {
    Json(Box<Json>),
    UrlEncoded(Box<UrlEncoded>),
    Multipart(Box<Multipart>),
    XmlRpc(Box<XmlRpc>),
    /// The application reads no fields from such a body.
    Nothing,
}

impl BodyReader {
    /// A reader for a request with that head. Without room for a reader, the body is unreadable.
    pub fn new(wanted: &Wanted, head: &Head<'_>, room: &Room) -> Self {
        let mut share = room.share();
        let mut values = Values::new(wanted);
        let kind = Kind::new(wanted.format(), head, &values);
        let is_long = head.length.is_some_and(|length| length > MAX_SCANNED as u64);
        let own = size_of::<Self>() + kind.as_ref().map_or(0, Kind::room);
        let kind = match kind {
            Some(Kind::Nothing) => Kind::Nothing,
            Some(kind) if !is_long && share.take(own) => kind,
            _ => {
                values.give_up();
                Kind::Nothing
            }
        };
        Self { format: wanted.format(), kind, scanned: 0, values, share }
    }

    /// Reads a chunk of the body.
    pub fn push(&mut self, chunk: &[u8]) {
        let Self { kind, scanned, values, share, .. } = self;
        if values.is_read() || chunk.is_empty() {
            return;
        }
        let within = &chunk[..chunk.len().min(MAX_SCANNED - *scanned)];
        *scanned += within.len();
        match kind {
            Kind::Json(json) => json.push(within, values, share),
            Kind::UrlEncoded(form) => form.push(within, values, share),
            Kind::Multipart(form) => form.push(within, values, share),
            Kind::XmlRpc(call) => call.push(within, values, share),
            Kind::Nothing => return,
        }
        if within.len() < chunk.len() && !values.is_read() {
            values.give_up();
        }
        self.end();
    }

    /// Makes the body unreadable, because a part of it cannot be read.
    pub fn give_up(&mut self) {
        if !self.values.is_read() {
            self.values.give_up();
            self.end();
        }
    }

    /// The body is complete.
    pub fn finish(&mut self) {
        let Self { kind, values, share, .. } = self;
        match kind {
            Kind::Json(json) => json.finish(values),
            Kind::UrlEncoded(form) => form.finish(values, share),
            Kind::Multipart(form) => form.finish(values),
            Kind::XmlRpc(call) => call.finish(values),
            Kind::Nothing if values.is_read() => {}
            Kind::Nothing => values.state = State::Read,
        }
        self.end();
    }

    /// The format in which the body is read.
    pub fn format(&self) -> BodyFormat {
        self.format
    }

    /// The values read so far.
    pub fn values(&self) -> &Values {
        &self.values
    }

    /// Frees the parser once reading has ended.
    fn end(&mut self) {
        if self.values.is_read() {
            self.kind = Kind::Nothing;
        }
    }
}

impl Kind {
    /// `None` if applications differ in how they read such a body.
    fn new(format: BodyFormat, head: &Head<'_>, values: &Values) -> Option<Self> {
        let media_type = |ends: fn(&u8) -> bool| {
            let text: &[u8] = head.content_types.first().copied().unwrap_or_default();
            text.split(&ends).next().unwrap_or_default()
        };
        // Of several `Content-Type` headers, some applications take the first, and some join them all.
        let is_one = head.content_types.windows(2).all(|pair| pair[0] == pair[1]);
        match format {
            BodyFormat::Json | BodyFormat::XmlRpc => {}
            _ if !is_one => return None,
            BodyFormat::Php if head.method != b"POST" => return Some(Self::Nothing),
            _ => {}
        }
        let full = head.content_types.first().copied().unwrap_or_default();
        let form = |media_type: &[u8], rules| {
            if media_type.eq_ignore_ascii_case(b"application/x-www-form-urlencoded") {
                return Some(Self::UrlEncoded(Box::new(UrlEncoded::new(rules))));
            }
            if media_type.eq_ignore_ascii_case(b"multipart/form-data") {
                return Some(Self::Multipart(Box::new(Multipart::new(full, rules)?)));
            }
            Some(Self::Nothing)
        };
        match format {
            BodyFormat::Json => Some(Self::Json(Box::new(Json::new(values, false)))),
            BodyFormat::XmlRpc => Some(Self::XmlRpc(Box::new(XmlRpc::new()))),
            BodyFormat::Php => form(media_type(|b| matches!(b, b';' | b',' | b' ')), Rules::Php),
            BodyFormat::Rails => {
                let media_type = media_type(|b| matches!(b, b';' | b',')).trim_ascii();
                let text = String::from_utf8_lossy(media_type).to_ascii_lowercase();
                match &*text {
                    "" if head.method == b"POST" => {
                        Some(Self::UrlEncoded(Box::new(UrlEncoded::new(Rules::Rails))))
                    }
                    "application/json" => Some(Self::Json(Box::new(Json::new(values, true)))),
                    // Depending on version and settings, Rails reads these as JSON, forms or XML, or not at
                    // all.
                    text if text.contains("json") || text.contains("xml") => None,
                    text if text.starts_with("multipart/") && text != "multipart/form-data" => None,
                    _ => form(media_type, Rules::Rails),
                }
            }
        }
    }

    fn room(&self) -> usize {
        match self {
            Self::Json(json) => size_of_val(&**json),
            Self::UrlEncoded(form) => size_of_val(&**form),
            Self::Multipart(form) => size_of_val(&**form),
            Self::XmlRpc(call) => size_of_val(&**call) + xmlrpc::MOST_FOR_STACKS,
            Self::Nothing => 0,
        }
    }
}
