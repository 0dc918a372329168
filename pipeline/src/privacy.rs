//! What is hidden from a target: a record as that target sees it.

pub(crate) mod parameters;

use std::borrow::Cow;
use std::fmt::{self, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::capture::path;
use crate::event::{EventType, Param};
use crate::hash::stable_hash;
use crate::record::{self, Extra, Record};
use crate::text::{self, parse_ip};

/// A target's privacy settings; the default hides nothing.
#[derive(Clone, Debug, Default)]
pub struct Privacy {
    /// How many bits of addresses are kept.
    pub ip_mask: Option<IpMask>,
    /// The key of the hash that replaces the user's name.
    pub hash_user: Option<UserKey>,
    /// Parameters that are left out, by their [bits](Param::bit).
    pub omit: u32,
    /// Whether the query is cut off URLs.
    pub cut_query: bool,
}

impl Privacy {
    /// The record as the target sees it.
    pub fn view<'a>(&'a self, record: Record<'a>) -> View<'a> {
        View { record, privacy: self }
    }
}

/// How many leading bits of an address are kept; the others become 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IpMask {
    /// Of 32.
    pub v4: u8,
    /// Of 128.
    pub v6: u8,
}

impl IpMask {
    fn apply(self, ip: IpAddr) -> IpAddr {
        match ip {
            IpAddr::V4(ip) => {
                let hidden = 32_u32.saturating_sub(self.v4.into());
                let mask = u32::MAX.checked_shl(hidden).unwrap_or(0);
                Ipv4Addr::from_bits(ip.to_bits() & mask).into()
            }
            IpAddr::V6(ip) => {
                let hidden = 128_u32.saturating_sub(self.v6.into());
                let mask = u128::MAX.checked_shl(hidden).unwrap_or(0);
                Ipv6Addr::from_bits(ip.to_bits() & mask).into()
            }
        }
    }
}

/// A key for hashes of users' names.
#[derive(Clone)]
pub struct UserKey(Hmac<Sha256>);

impl fmt::Debug for UserKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl UserKey {
    /// The key with these bytes.
    pub fn new(key: &[u8]) -> Self {
        Self(Hmac::new_from_slice(key).expect("any length is a key's"))
    }

    /// HMAC-SHA-256, in hexadecimal, of the name as a target without a key would get it.
    fn hash(&self, user: &[u8]) -> String {
        let name = text::valid(user, Param::UserName.limit());
        let mut hex = String::with_capacity(64);
        for byte in self.0.clone().chain_update(name.as_bytes()).finalize().into_bytes() {
            // Writing to a String does not fail.
            let _ = write!(hex, "{byte:02x}");
        }
        hex
    }
}

/// Whether a field of that name may tell who a person is.
fn names_people(field: &str) -> bool {
    ["user", "login", "mail", "patch", "name"].iter().any(|word| field.contains(word))
}

/// A record as one target sees it.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    record: Record<'a>,
    privacy: &'a Privacy,
}

impl<'a> View<'a> {
    /// The record, for the fields that no setting hides: trace id, time, type, status.
    pub fn record(&self) -> &Record<'a> {
        &self.record
    }

    /// A parameter's bytes.
    pub fn get(&self, param: Param) -> Option<Cow<'a, [u8]>> {
        if self.omits(param) {
            return None;
        }
        let value = self.record.get(param)?;
        let Privacy { ip_mask, hash_user, cut_query, .. } = self.privacy;
        match (param, ip_mask, hash_user) {
            (Param::IpAddress, Some(mask), _) => {
                Some(mask.apply(parse_ip(value)?).to_string().into_bytes().into())
            }
            (Param::UserName, _, Some(key)) => Some(key.hash(value).into_bytes().into()),
            (Param::Url | Param::HttpReferer, ..) => {
                let query = value.iter().position(|b| *cut_query && matches!(b, b'?' | b'#'));
                let url = &value[..query.unwrap_or(value.len())];
                Some(self.without_user(url, path::decode_with_places))
            }
            _ => Some(Cow::Borrowed(value)),
        }
    }

    /// An extra of the record; [`segments`](Self::segments), [`fields`](Self::fields) and [`page`](Self::page)
    /// return the others.
    pub fn extra(&self, extra: Extra) -> Option<Cow<'a, [u8]>> {
        let extra = Some(extra)
            .filter(|extra| !matches!(extra, Extra::Segments | Extra::Fields | Extra::Page))?;
        let value = self.record.extra(extra)?;
        Some(match (extra, &self.privacy.hash_user) {
            (Extra::Claimed, Some(key)) => key.hash(value).into_bytes().into(),
            _ => Cow::Borrowed(value),
        })
    }

    /// The rule's page, if Tirreno shall see it instead of the URL.
    pub fn page(&self) -> Option<Cow<'a, [u8]>> {
        let page = self.record.extra(Extra::Page)?;
        let query = page.iter().position(|b| self.privacy.cut_query && *b == b'?');
        Some(self.without_user(&page[..query.unwrap_or(page.len())], path::decode_with_places))
    }

    /// The fields that the rule adds. If the user is a hash, fields that may name him are left out.
    pub fn fields(&self) -> impl Iterator<Item = (&'a str, Cow<'a, [u8]>)> + use<'a> {
        let view = *self;
        let held = self.record.extra(Extra::Fields).unwrap_or_default();
        record::segments(held)
            .filter(move |(name, _)| view.privacy.hash_user.is_none() || !names_people(name))
            .map(move |(name, value)| (name, view.without_user(value, as_it_is)))
    }

    /// The named segments of the path.
    pub fn segments(&self) -> impl Iterator<Item = (&'a str, Cow<'a, [u8]>)> + use<'a> {
        let view = *self;
        let held = self.record.extra(Extra::Segments).unwrap_or_default();
        record::segments(held).map(move |(name, value)| (name, view.without_user(value, as_it_is)))
    }

    /// The client's address: the given one, else the peer's.
    pub fn ip(&self) -> Option<IpAddr> {
        let ip = self.record.get(Param::IpAddress).and_then(parse_ip).or(self.record.ip())?;
        Some(self.privacy.ip_mask.map_or(ip, |mask| mask.apply(ip)))
    }

    /// A key that differs between users: events with the same key go over one connection, in order. The spool
    /// stores it, so it tells no more about the user than the target may know.
    pub fn user_key(&self) -> u64 {
        match self.get(Param::UserName) {
            Some(user) => stable_hash([&*user]),
            None => {
                let address = self.ip().map(|ip| ip.to_string()).unwrap_or_default();
                // An anonymous client differs from a user with that address as name.
                stable_hash([b"", address.as_bytes()])
            }
        }
    }

    /// Whether the target does not get the parameter at all.
    pub fn omits(&self, param: Param) -> bool {
        if self.privacy.omit & param.bit() != 0 {
            return true;
        }
        // These parameters would tell which user the hash belongs to.
        self.privacy.hash_user.is_some()
            && match param {
                Param::EmailAddress
                | Param::FirstName
                | Param::LastName
                | Param::FullName
                | Param::PhoneNumber
                | Param::FieldHistory => true,
                // The payload has the old and the new address.
                Param::Payload => self.record.kind() == EventType::AccountEmailChange,
                _ => false,
            }
    }

    /// `text` with the hash instead of the user's name, where the name stands between characters other than
    /// letters and digits. `decode` yields the decoded bytes and their places in `text`.
    fn without_user(
        &self,
        text: &'a [u8],
        decode: impl Fn(&[u8]) -> (Vec<u8>, Vec<usize>),
    ) -> Cow<'a, [u8]> {
        // Only a damaged record has an empty name, which would match everywhere.
        let user = self.record.get(Param::UserName).filter(|user| !user.is_empty());
        let (Some(key), Some(user)) = (&self.privacy.hash_user, user) else {
            return Cow::Borrowed(text);
        };
        let (decoded, places) = decode(text);
        let is_end = |byte: Option<&u8>| !byte.is_some_and(u8::is_ascii_alphanumeric);
        let mut out = Vec::new();
        let (mut from, mut done) = (0, 0);
        while let Some(end) = Some(from + user.len()).filter(|end| *end <= decoded.len()) {
            let here = decoded[from..end].eq_ignore_ascii_case(user)
                && is_end(decoded[..from].last())
                && is_end(decoded.get(end));
            if here {
                out.extend_from_slice(&text[done..places[from]]);
                out.extend_from_slice(key.hash(user).as_bytes());
                done = places[end];
            }
            from = if here { end } else { from + 1 };
        }
        if done == 0 {
            return Cow::Borrowed(text);
        }
        out.extend_from_slice(&text[done..]);
        out.into()
    }
}

fn as_it_is(text: &[u8]) -> (Vec<u8>, Vec<usize>) {
    (text.to_vec(), (0..=text.len()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Capture;
    use crate::tirreno::form;

    const USER: &str = "what do ya want for nothing?";
    /// RFC 4231, test case 2.
    const HASH: &str = "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843";

    fn hashed() -> Privacy {
        Privacy { hash_user: Some(UserKey::new(b"Jefe")), ..Privacy::default() }
    }

    fn mask(v4: u8, v6: u8) -> Privacy {
        Privacy { ip_mask: Some(IpMask { v4, v6 }), ..Privacy::default() }
    }

    /// What a target with this `privacy` gets of an event, as pairs.
    fn pairs(privacy: &Privacy, capture: &Capture<'_>) -> Vec<(String, String)> {
        let bytes = written(capture);
        let form = form::encode(&privacy.view(Record::parse(&bytes).unwrap()));
        serde_urlencoded::from_str(&form).unwrap()
    }

    fn written(capture: &Capture<'_>) -> Vec<u8> {
        let mut bytes = vec![0; capture.record_len()];
        capture.write(1, &mut bytes);
        bytes
    }

    fn sent(privacy: &Privacy, capture: &Capture<'_>, param: Param) -> Option<String> {
        let pairs = pairs(privacy, capture);
        pairs.into_iter().find(|(name, _)| name == param.name()).map(|(_, value)| value)
    }

    fn capture<'a>(params: &[(Param, &'a str)]) -> Capture<'a> {
        let mut capture = Capture::new(0);
        capture.ip = Some("192.0.2.77".parse().unwrap());
        for (param, value) in params {
            capture.set(*param, value.as_bytes()).unwrap();
        }
        capture
    }

    #[test]
    fn addresses() {
        let cases = [
            (24, 56, "203.0.113.99", "203.0.113.0"),
            (25, 56, "203.0.113.199", "203.0.113.128"),
            (32, 0, "203.0.113.99", "203.0.113.99"),
            (0, 128, "203.0.113.99", "0.0.0.0"),
            (24, 56, "::ffff:203.0.113.99", "203.0.113.0"),
            (24, 56, "2001:db8:1:2fff:3:4:5:6", "2001:db8:1:2f00::"),
            (0, 128, "2001:db8:1:2fff:3:4:5:6", "2001:db8:1:2fff:3:4:5:6"),
            (32, 0, "2001:db8:1:2fff:3:4:5:6", "::"),
            (24, 56, "203.0.113.99, 198.51.100.9", "192.0.2.0"),
        ];
        for (v4, v6, given, expected) in cases {
            let capture = capture(&[(Param::IpAddress, given)]);
            let address = sent(&mask(v4, v6), &capture, Param::IpAddress);
            assert_eq!(address.as_deref(), Some(expected), "{v4} {v6} {given}");
            let (privacy, bytes) = (mask(v4, v6), written(&capture));
            let view = privacy.view(Record::parse(&bytes).unwrap());
            assert!(view.get(Param::IpAddress).is_none_or(|ip| *ip == *expected.as_bytes()));
        }
        let own = sent(&mask(16, 56), &capture(&[]), Param::IpAddress);
        assert_eq!(own.as_deref(), Some("192.0.0.0"));
    }

    #[test]
    fn a_user_is_a_hash() {
        let who = [
            Param::EmailAddress,
            Param::FirstName,
            Param::LastName,
            Param::FullName,
            Param::PhoneNumber,
            Param::FieldHistory,
            Param::Payload,
        ];
        let mut params = who.map(|param| (param, "ada@example.com")).to_vec();
        params.extend([(Param::UserName, USER), (Param::PageTitle, "title")]);
        let mut capture = capture(&params);
        capture.kind = EventType::AccountEmailChange;
        assert_eq!(sent(&hashed(), &capture, Param::UserName).as_deref(), Some(HASH));
        for param in who {
            assert_eq!(sent(&hashed(), &capture, param), None, "{param:?}");
            assert!(sent(&Privacy::default(), &capture, param).is_some(), "{param:?}");
        }
        assert_eq!(sent(&hashed(), &capture, Param::PageTitle).as_deref(), Some("title"));
        capture.kind = EventType::PageSearch;
        let payload = sent(&hashed(), &capture, Param::Payload).unwrap();
        assert!(payload.contains("ada@example.com"), "{payload}");
    }

    #[test]
    fn nobody_stays_nobody() {
        assert_eq!(sent(&hashed(), &capture(&[(Param::Url, "/")]), Param::UserName), None);
    }

    #[test]
    fn the_hash_is_that_of_the_name_as_it_is_sent() {
        let long = "é".repeat(60);
        let cut = sent(&Privacy::default(), &capture(&[(Param::UserName, &long)]), Param::UserName);
        let cut = cut.unwrap();
        assert_eq!(cut, "é".repeat(50));
        let hash = |user| sent(&hashed(), &capture(&[(Param::UserName, user)]), Param::UserName);
        assert_eq!(hash(&long), hash(&cut));
    }

    #[test]
    fn a_name_in_a_url_is_the_hash_too() {
        let cases = [
            ("ada", "/users/ada", "/users/#"),
            ("ada", "/users/ADA/x?u=ada&v=adam&w=nevada", "/users/#/x?u=#&v=adam&w=nevada"),
            ("ada", "/ada__bob/@ada/ada.json?ada", "/#__bob/@#/#.json?#"),
            ("ada", "/%61d%41%2fx/ad%61m?to=%2fada", "/#%2fx/ad%61m?to=%2f#"),
            ("ada", "/ada/ada%zz%", "/#/#%zz%"),
            ("a@b.c", "/a%40b.c?x=a@b.c&y=aa@b.c", "/#?x=#&y=aa@b.c"),
            ("é", "/é/%c3%a9/%C3%A9x/%c3", "/#/#/%C3%A9x/%c3"),
            ("ada", "/", "/"),
        ];
        for (user, url, expected) in cases {
            let params = [(Param::UserName, user), (Param::Url, url), (Param::HttpReferer, url)];
            let capture = capture(&params);
            let hash = sent(&hashed(), &capture, Param::UserName).unwrap();
            let expected = expected.replace('#', &hash);
            assert_eq!(sent(&hashed(), &capture, Param::Url).unwrap(), expected, "{url}");
            let referer = sent(&hashed(), &capture, Param::HttpReferer).unwrap();
            assert_eq!(referer, expected.replace('%', "%25"), "{url}");
            assert_eq!(sent(&Privacy::default(), &capture, Param::Url).unwrap(), url);
        }
    }

    #[test]
    fn a_damaged_record_may_have_an_empty_name() {
        let mut bytes = written(&capture(&[(Param::UserName, "ada"), (Param::Url, "/ada")]));
        // The length of the first field that is there.
        bytes[88..90].copy_from_slice(&[0, 0]);
        let hashed = hashed();
        let view = hashed.view(Record::parse(&bytes).unwrap());
        assert_eq!(*view.get(Param::Url).unwrap(), *b"ada/");
    }

    #[test]
    fn what_tells_users_apart_tells_no_more_than_the_target_may_know() {
        let key = |privacy: &Privacy, params: &[(Param, &str)]| {
            let bytes = written(&capture(params));
            privacy.view(Record::parse(&bytes).unwrap()).user_key()
        };
        let (plain, hashed, masked) = (Privacy::default(), hashed(), mask(24, 56));
        let (ann, bob) = ([(Param::UserName, "ann")], [(Param::UserName, "bob")]);
        assert_ne!(key(&plain, &ann), key(&hashed, &ann));
        assert_ne!(key(&hashed, &ann), key(&hashed, &bob));
        assert_eq!(key(&hashed, &ann), key(&hashed, &ann));
        let (here, near) = ([(Param::IpAddress, "192.0.2.1")], [(Param::IpAddress, "192.0.2.9")]);
        assert_ne!(key(&plain, &here), key(&plain, &near));
        assert_eq!(key(&masked, &here), key(&masked, &near));
    }

    #[test]
    fn segments_name_no_user() {
        let mut capture = capture(&[(Param::UserName, "user")]);
        capture.set_extra(Extra::Segments, b"user\0user\0team\0user-team\0user_id\0us%65r\0");
        let bytes = written(&capture);
        let record = Record::parse(&bytes).unwrap();
        let segments = |privacy: &Privacy| {
            let text = |value: &[u8]| String::from_utf8(value.to_vec()).unwrap();
            let segments = privacy.view(record).segments();
            segments.map(|(name, value)| format!("{name}={}", text(&value))).collect::<Vec<_>>()
        };
        let hash = sent(&hashed(), &capture, Param::UserName).unwrap();
        let expected = ["user=#", "team=#-team", "user_id=us%65r"].map(|s| s.replace('#', &hash));
        assert_eq!(segments(&hashed()), expected);
        assert_eq!(
            segments(&Privacy::default()),
            ["user=user", "team=user-team", "user_id=us%65r"]
        );
    }

    #[test]
    fn queries() {
        let cut = Privacy { cut_query: true, ..Privacy::default() };
        let cases =
            [("/a?b=c", "/a"), ("/a#b?c", "/a"), ("?a", ""), ("https://h/a?b", "https://h/a")];
        for (url, expected) in cases {
            let params = [(Param::Url, url), (Param::HttpReferer, url), (Param::PageTitle, url)];
            let capture = capture(&params);
            assert_eq!(sent(&cut, &capture, Param::Url).as_deref(), Some(expected));
            assert_eq!(sent(&cut, &capture, Param::HttpReferer).as_deref(), Some(expected));
            assert_eq!(sent(&cut, &capture, Param::PageTitle).as_deref(), Some(url));
        }
    }

    #[test]
    fn what_is_omitted_is_not_there() {
        let capture = capture(&[
            (Param::UserName, "ada"),
            (Param::EmailAddress, "ada@example.com"),
            (Param::UserAgent, "curl"),
        ]);
        let omitted = [Param::UserName, Param::EventType, Param::HttpCode];
        let omit = omitted.iter().fold(0, |bits, param| bits | param.bit());
        let pairs = pairs(&Privacy { omit, ..Privacy::default() }, &capture);
        let names: Vec<_> = pairs.iter().map(|(name, _)| name.as_str()).collect();
        // An address without a user is not sent.
        assert_eq!(names, ["ipAddress", "url", "userAgent", "eventTime"]);
    }
}
