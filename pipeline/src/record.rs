//! One captured request as it lies in the ring: raw bytes and integers, no encoding yet.
//!
//! ```text
//!  0  u32       length of the whole record, a multiple of 8
//!  4  u32       targets, a bit each
//!  8  u64       stamp: monotonic nanoseconds, the order of capture
//! 16  i64       start of the request, milliseconds since the epoch, UTC
//! 24  u16       response status, 0: none
//! 26  u8        event type
//! 27  u8        family of the address: 0 none, 4, 6
//! 28  u32       parameters and extras that follow, a bit each
//! 32  [u8; 16]  address
//! 48  [u8; 32]  trace id
//! 80  u8        by what evidence the user is known
//! 81  u8        rank
//! 82  u8        1: an attempt, 2: a first step
//! 83  u8        zero
//! 84  u32       for how many events it stands, 0: for itself
//! 88  u16 …     length of each parameter, in order of their bits
//!     [u8] …    the parameters' bytes, then padding
//! ```
//!
//! Numbers have the machine's own byte order: a record never leaves the machine.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::capture::identity::Identity;
use crate::capture::rank::Rank;
use crate::event::{EventType, OverLimit, Param};

/// Bytes before the lengths of the parameters.
const FIXED: usize = 88;
/// The bits of the flags.
const ATTEMPT: u8 = 1;
const FIRST_STEP: u8 = 2;
/// Records start on this boundary.
const ALIGN: usize = 8;
/// How many bytes are captured beyond a parameter's limit: a character that the limit cuts in two is then
/// complete and gets dropped, instead of looking like invalid UTF-8.
const SLACK: usize = 4;

/// The longest record; longer captures are refused.
pub const MAX_RECORD: usize = 32 * 1024;

/// The longest URL that Tirreno keeps, in bytes.
const MAX_URL: usize = 2047;

/// Length of a trace id, the same as of nginx's `$request_id`. Tirreno takes 36 bytes at most.
pub const TRACE_LEN: usize = 32;

/// The fields of a record besides Tirreno's parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Extra {
    /// The account that a login's body names: a keyed hash of the name, 8 bytes.
    Account,
    /// The name of the audit record that the rule sets.
    Audit,
    /// The number of the audit record's [level](crate::capture::level): a `u16` in the machine's byte order.
    Level,
    /// The named segments of the path, as [`push_segment`] and [`segments`] write and read them.
    Segments,
    /// SHA-256 of the session's token, 32 bytes.
    Session,
    /// The realm: accounts and sessions are learned separately for each.
    Realm,
    /// The user whom the client claims to be, if it is another one than the user.
    Claimed,
    /// Fields of audit records that the rule adds, as [`push_segment`] and [`segments`] write and read them.
    Fields,
    /// The URL that Tirreno sees, if it is the rule's page.
    Page,
}

impl Extra {
    /// How many there are.
    const COUNT: usize = 9;

    fn place(self) -> usize {
        Param::COUNT + self as usize
    }

    /// The most bytes; longer values are left out.
    fn limit(self) -> usize {
        match self {
            Self::Account => 8,
            Self::Audit => 100,
            Self::Level => 2,
            Self::Segments => 2048,
            Self::Session => 32,
            Self::Realm | Self::Claimed => 255,
            Self::Fields => 2048,
            Self::Page => MAX_URL,
        }
    }
}

/// Appends a named segment of a path to the value of [`Extra::Segments`]: name, NUL, value, NUL. A segment that
/// does not fit, or contains a NUL, is left out.
pub fn push_segment(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    let room = Extra::Segments.limit().saturating_sub(out.len());
    if name.len() + value.len() + 2 <= room && !value.contains(&0) {
        out.extend_from_slice(name.as_bytes());
        out.push(0);
        out.extend_from_slice(value);
        out.push(0);
    }
}

/// The names and values in [`Extra::Segments`].
pub fn segments(bytes: &[u8]) -> impl Iterator<Item = (&str, &[u8])> {
    let mut parts = bytes.split(|b| *b == 0);
    std::iter::from_fn(move || Some((parts.next()?, parts.next()?)))
        .filter_map(|(name, value)| Some((str::from_utf8(name).ok()?, value)))
}

/// The fields that tell something about a person, as bits.
const OF_A_PERSON: u32 = 1 << Param::EmailAddress as u32
    | 1 << Param::FirstName as u32
    | 1 << Param::LastName as u32
    | 1 << Param::FullName as u32
    | 1 << Param::PhoneNumber as u32
    | 1 << Param::UserCreated as u32
    | 1 << (Param::COUNT + Extra::Account as usize)
    | 1 << (Param::COUNT + Extra::Session as usize)
    | 1 << (Param::COUNT + Extra::Claimed as usize);

/// Parameters and extras.
const FIELDS: usize = Param::COUNT + Extra::COUNT;

/// What a worker copies from a request.
#[derive(Clone, Debug)]
pub struct Capture<'a> {
    /// The targets that get it, as bits.
    pub targets: u32,
    /// Start of the request in milliseconds since the epoch, UTC.
    pub time_ms: i64,
    /// Status of the response, 0 if there was none.
    pub status: u16,
    /// The event's type.
    pub kind: EventType,
    /// The evidence for the user.
    pub identity: Identity,
    /// How important the event is if there is no room for all.
    pub rank: Rank,
    /// Whether it is unknown how the request ended.
    pub is_attempt: bool,
    /// Whether it is a failed login that a successful login withdraws.
    pub is_first_step: bool,
    /// The peer's address; `None` for a Unix socket.
    pub ip: Option<IpAddr>,
    /// The trace id, sent as `X-Request-Id`.
    pub trace: [u8; TRACE_LEN],
    /// The fields that are not empty, as bits; only their elements in `fields` are valid.
    present: u32,
    /// Bytes of the fields and their lengths.
    size: usize,
    fields: [&'a [u8]; FIELDS],
}

impl<'a> Capture<'a> {
    /// A page view without parameters.
    pub fn new(time_ms: i64) -> Self {
        Self {
            targets: 0,
            time_ms,
            status: 0,
            kind: EventType::PageView,
            identity: Identity::None,
            rank: Rank::Four,
            is_attempt: false,
            is_first_step: false,
            ip: None,
            trace: [b'0'; TRACE_LEN],
            present: 0,
            size: 0,
            fields: [&[]; FIELDS],
        }
    }

    /// Sets a parameter that was not set before; an empty value omits it. Bytes that cannot be sent, and values
    /// that are invalid for the parameter, are left out here.
    ///
    /// # Errors
    /// The value is left out: it is over the parameter's limit, and half of it would mean something else.
    pub fn set(&mut self, param: Param, value: &'a [u8]) -> Result<(), TooLong> {
        let limit = param.limit();
        let value = if value.len() <= limit {
            value
        } else {
            match param.over_limit() {
                OverLimit::Cut => &value[..value.len().min(limit + SLACK)],
                OverLimit::LeftOut => return Ok(()),
                OverLimit::Counted => return Err(TooLong(param)),
            }
        };
        self.put(param as usize, value);
        Ok(())
    }

    /// Sets an extra that was not set before; an empty or too long value omits it.
    pub fn set_extra(&mut self, extra: Extra, value: &'a [u8]) {
        if value.len() <= extra.limit() {
            self.put(extra.place(), value);
        }
    }

    fn put(&mut self, place: usize, value: &'a [u8]) {
        if !value.is_empty() {
            self.present |= 1 << place;
            self.size += 2 + value.len();
            self.fields[place] = value;
        }
    }

    /// Length of the record in bytes.
    pub fn record_len(&self) -> usize {
        (FIXED + self.size).next_multiple_of(ALIGN)
    }

    /// Sets a parameter, even if it was set before; see [`set`](Self::set).
    ///
    /// # Errors
    /// As there.
    pub fn replace(&mut self, param: Param, value: &'a [u8]) -> Result<(), TooLong> {
        let (place, bit) = (param as usize, 1 << param as usize);
        if self.present & bit != 0 {
            self.present &= !bit;
            self.size -= 2 + self.fields[place].len();
        }
        self.set(param, value)
    }

    /// A copy that does not refer to the request.
    pub fn hold(&self) -> Held {
        let present = (0..FIELDS).filter(|place| self.present & 1 << place != 0);
        let fields = present.map(|place| (place, self.fields[place].into())).collect();
        let head = Capture {
            targets: self.targets,
            status: self.status,
            kind: self.kind,
            identity: self.identity,
            rank: self.rank,
            is_attempt: self.is_attempt,
            is_first_step: self.is_first_step,
            ip: self.ip,
            trace: self.trace,
            ..Capture::new(self.time_ms)
        };
        Held { head, fields }
    }

    fn present_fields(&self) -> impl Iterator<Item = &'a [u8]> + '_ {
        let mut left = self.present;
        std::iter::from_fn(move || {
            let place = left.trailing_zeros() as usize;
            left &= left.wrapping_sub(1);
            self.fields.get(place).copied()
        })
    }

    /// Writes the record; `out` has [`record_len`](Self::record_len) bytes.
    pub fn write(&self, stamp: u64, out: &mut [u8]) {
        let (family, address) = match self.ip {
            None => (0, [0; 16]),
            Some(IpAddr::V4(v4)) => (4, v4.to_ipv6_mapped().octets()),
            Some(IpAddr::V6(v6)) => (6, v6.octets()),
        };
        let len = out.len() as u32;
        let mut lengths = FIXED;
        let mut data = FIXED + 2 * self.present.count_ones() as usize;
        for field in self.present_fields() {
            out[lengths..lengths + 2].copy_from_slice(&(field.len() as u16).to_ne_bytes());
            out[data..data + field.len()].copy_from_slice(field);
            (lengths, data) = (lengths + 2, data + field.len());
        }
        out[0..4].copy_from_slice(&len.to_ne_bytes());
        out[4..8].copy_from_slice(&self.targets.to_ne_bytes());
        out[8..16].copy_from_slice(&stamp.to_ne_bytes());
        out[16..24].copy_from_slice(&self.time_ms.to_ne_bytes());
        out[24..26].copy_from_slice(&self.status.to_ne_bytes());
        out[26] = self.kind as u8;
        out[27] = family;
        out[28..32].copy_from_slice(&self.present.to_ne_bytes());
        out[32..48].copy_from_slice(&address);
        out[48..80].copy_from_slice(&self.trace);
        out[80] = self.identity as u8;
        out[81] = self.rank as u8;
        out[82] =
            (u8::from(self.is_attempt) * ATTEMPT) | (u8::from(self.is_first_step) * FIRST_STEP);
        out[83..88].fill(0);
    }
}

/// A capture that waits while its request ends.
#[derive(Clone, Debug)]
pub struct Held {
    head: Capture<'static>,
    fields: Vec<(usize, Box<[u8]>)>,
}

impl Held {
    /// Bytes of its fields.
    pub fn len(&self) -> usize {
        self.fields.iter().map(|(_, field)| field.len()).sum()
    }

    /// Whether it has no field.
    pub fn is_empty(&self) -> bool {
        self.fields.is_empty()
    }

    /// The capture.
    pub fn capture(&self) -> Capture<'_> {
        let mut capture: Capture<'_> = self.head.clone();
        self.fields.iter().for_each(|(place, field)| capture.put(*place, field));
        capture
    }
}

/// A value over its parameter's limit, which must not be cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooLong(pub Param);

/// A record's bytes, checked.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    bytes: &'a [u8],
    present: u32,
    kind: EventType,
    identity: Identity,
    rank: Rank,
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

impl<'a> Record<'a> {
    /// The record at the start of `bytes`; `None` if they contain no whole record.
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        let len = u32::from_ne_bytes(array(bytes, 0)?) as usize;
        if len < FIXED || !len.is_multiple_of(ALIGN) {
            return None;
        }
        let bytes = bytes.get(..len)?;
        let present = u32::from_ne_bytes(array(bytes, 28)?);
        let kind = EventType::from_number(bytes[26])?;
        let identity = Identity::from_number(bytes[80])?;
        let rank = Rank::from_number(bytes[81])?;
        let record = Self { bytes, present, kind, identity, rank };
        let mut end = record.data_start();
        if present >> FIELDS != 0 || end > len {
            return None;
        }
        for i in 0..present.count_ones() as usize {
            end += record.length(i);
        }
        (end <= len).then_some(record)
    }

    fn data_start(&self) -> usize {
        FIXED + 2 * self.present.count_ones() as usize
    }

    /// Length of the `i`th field that is present, which `parse` has checked.
    fn length(&self, i: usize) -> usize {
        array(self.bytes, FIXED + 2 * i).map_or(0, |b| usize::from(u16::from_ne_bytes(b)))
    }

    /// The whole record.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// The targets that get it, as bits.
    pub fn targets(&self) -> u32 {
        array(self.bytes, 4).map_or(0, u32::from_ne_bytes)
    }

    /// The time of capture in monotonic nanoseconds; records are ordered by it.
    pub fn stamp(&self) -> u64 {
        array(self.bytes, 8).map_or(0, u64::from_ne_bytes)
    }

    /// Start of the request in milliseconds since the epoch, UTC.
    pub fn time_ms(&self) -> i64 {
        array(self.bytes, 16).map_or(0, i64::from_ne_bytes)
    }

    /// Status of the response, 0 when there was none.
    pub fn status(&self) -> u16 {
        array(self.bytes, 24).map_or(0, u16::from_ne_bytes)
    }

    /// The event's type.
    pub fn kind(&self) -> EventType {
        self.kind
    }

    /// The evidence for the user.
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// How many events it stands for, itself included.
    pub fn repeated(&self) -> u32 {
        array(self.bytes, 84).map_or(1, u32::from_ne_bytes).max(1)
    }

    /// The same record, standing for `count` events. With `user` it gets that user, and no other field about a
    /// person.
    pub fn standing_for(&self, count: u32, user: Option<&[u8]>) -> Vec<u8> {
        let mut capture = Capture::new(self.time_ms());
        (capture.targets, capture.status) = (self.targets(), self.status());
        (capture.kind, capture.identity, capture.rank) = (self.kind, self.identity, self.rank);
        capture.ip = self.ip();
        if let Some(trace) = array(self.bytes, 48) {
            capture.trace = trace;
        }
        for place in 0..FIELDS {
            let value = match user {
                Some(user) if place == Param::UserName as usize => Some(user),
                Some(_) if OF_A_PERSON & (1 << place) != 0 => None,
                _ => self.field(place),
            };
            capture.put(place, value.unwrap_or_default());
        }
        let mut bytes = vec![0; capture.record_len()];
        capture.write(self.stamp(), &mut bytes);
        bytes[84..88].copy_from_slice(&count.to_ne_bytes());
        bytes
    }

    /// How important it is if there is no room for all.
    pub fn rank(&self) -> Rank {
        self.rank
    }

    /// Whether it is unknown how the request ended.
    pub fn is_attempt(&self) -> bool {
        self.bytes[82] & ATTEMPT != 0
    }

    /// Whether it is a failed login that a successful login withdraws.
    pub fn is_first_step(&self) -> bool {
        self.bytes[82] & FIRST_STEP != 0
    }

    /// The peer's address; an IPv4 address from an IPv6 socket is IPv4.
    pub fn ip(&self) -> Option<IpAddr> {
        let v6 = Ipv6Addr::from(array::<16>(self.bytes, 32)?);
        match self.bytes[27] {
            4 => v6.to_ipv4_mapped().map(IpAddr::V4),
            6 => Some(IpAddr::V6(v6).to_canonical()),
            _ => None,
        }
    }

    /// The trace id.
    pub fn trace(&self) -> &'a str {
        self.bytes.get(48..80).and_then(|b| str::from_utf8(b).ok()).unwrap_or_default()
    }

    /// A parameter's bytes as the client sent them, up to a little over the parameter's limit.
    pub fn get(&self, param: Param) -> Option<&'a [u8]> {
        self.field(param as usize)
    }

    /// A field besides the parameters.
    pub fn extra(&self, extra: Extra) -> Option<&'a [u8]> {
        self.field(extra.place())
    }

    fn field(&self, place: usize) -> Option<&'a [u8]> {
        let bit = 1 << place;
        if self.present & bit == 0 {
            return None;
        }
        let i = (self.present & (bit - 1)).count_ones() as usize;
        let before: usize = (0..i).map(|i| self.length(i)).sum();
        let start = self.data_start() + before;
        self.bytes.get(start..start + self.length(i))
    }
}

/// The address `0.0.0.0`, which Tirreno stores and flags if there is no address.
pub const NO_ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

#[cfg(test)]
mod tests {
    use super::*;

    fn capture<'a>(kind: EventType, params: &[(Param, &'a [u8])]) -> Capture<'a> {
        let mut capture = Capture::new(1_700_000_000_123);
        capture.kind = kind;
        capture.targets = 5;
        for (param, value) in params {
            capture.set(*param, value).unwrap();
        }
        capture
    }

    fn written(capture: &Capture<'_>) -> Vec<u8> {
        let mut bytes = vec![0; capture.record_len()];
        capture.write(42, &mut bytes);
        bytes
    }

    #[test]
    fn what_is_written_is_read() {
        let params: &[(Param, &[u8])] =
            &[(Param::Url, b"/a?b=\xff"), (Param::UserName, b"u1"), (Param::FullName, b"")];
        let mut capture = capture(EventType::AccountLogin, params);
        capture.status = 302;
        capture.identity = Identity::Session;
        capture.rank = Rank::One;
        capture.trace = [b'a'; 32];
        capture.ip = Some("::ffff:192.0.2.7".parse().unwrap());
        let bytes = written(&capture);
        let record = Record::parse(&bytes).unwrap();
        assert_eq!(record.targets(), 5);
        assert_eq!(record.stamp(), 42);
        assert_eq!(record.time_ms(), 1_700_000_000_123);
        assert_eq!(record.status(), 302);
        assert_eq!(record.kind(), EventType::AccountLogin);
        assert_eq!((record.identity(), record.rank()), (Identity::Session, Rank::One));
        assert_eq!(record.ip(), Some("192.0.2.7".parse().unwrap()));
        assert_eq!(record.trace(), "a".repeat(32));
        assert_eq!(record.get(Param::Url), Some(&b"/a?b=\xff"[..]));
        assert_eq!(record.get(Param::UserName), Some(&b"u1"[..]));
        assert_eq!(record.get(Param::FullName), None);
    }

    #[test]
    fn one_record_stands_for_many() {
        let params: &[(Param, &[u8])] =
            &[(Param::Url, b"/login"), (Param::UserName, b"u1"), (Param::FullName, b"U")];
        let mut capture = capture(EventType::AccountLoginFail, params);
        capture.ip = Some("192.0.2.7".parse().unwrap());
        capture.set_extra(Extra::Account, &[7; 8]);
        capture.set_extra(Extra::Realm, b"r");
        let bytes = written(&capture);
        let one = Record::parse(&bytes).unwrap();
        assert_eq!(one.repeated(), 1);
        let same = one.standing_for(57, None);
        let same = Record::parse(&same).unwrap();
        assert_eq!((same.repeated(), same.get(Param::UserName)), (57, Some(&b"u1"[..])));
        assert_eq!(&same.bytes()[..84], &bytes[..84]);
        let many = one.standing_for(57, Some(b"unknown-many"));
        let many = Record::parse(&many).unwrap();
        assert_eq!(many.get(Param::UserName), Some(&b"unknown-many"[..]));
        assert_eq!((many.get(Param::FullName), many.extra(Extra::Account)), (None, None));
        assert_eq!(
            (many.get(Param::Url), many.extra(Extra::Realm)),
            (Some(&b"/login"[..]), Some(&b"r"[..]))
        );
        assert_eq!(
            (many.ip(), many.stamp(), many.kind()),
            (one.ip(), 42, EventType::AccountLoginFail)
        );
    }

    #[test]
    fn no_bytes_make_it_panic() {
        let params: &[(Param, &[u8])] = &[(Param::Url, b"/"), (Param::HttpReferer, &[b'r'; 300])];
        let good = written(&capture(EventType::PageView, params));
        for cut in 0..good.len() {
            assert!(Record::parse(&good[..cut]).is_none());
        }
        for at in 0..good.len() {
            for value in [0, 1, 0x7f, 0xff] {
                let mut bad = good.clone();
                bad[at] = value;
                if let Some(record) = Record::parse(&bad) {
                    for param in Param::ALL {
                        let _ = record.get(param);
                    }
                    let _ = (record.ip(), record.trace());
                }
            }
        }
    }

    #[test]
    fn long_values_are_cut_left_out_or_refused() {
        let mut capture = Capture::new(0);
        let long = vec![b'x'; 70_000];
        for param in Param::ALL {
            let refused = param.over_limit() == OverLimit::Counted;
            assert_eq!(capture.set(param, &long).is_err(), refused, "{param:?}");
        }
        capture.set_extra(Extra::Audit, &long);
        capture.set_extra(Extra::Session, &[7; 32]);
        assert!(capture.record_len() < MAX_RECORD);
        let bytes = written(&capture);
        let record = Record::parse(&bytes).unwrap();
        for param in Param::ALL {
            let cut = param.over_limit() == OverLimit::Cut;
            assert_eq!(record.get(param).is_some(), cut, "{param:?}");
        }
        assert_eq!(record.extra(Extra::Audit), None);
        assert_eq!(record.extra(Extra::Session), Some(&[7; 32][..]));
    }

    #[test]
    fn named_segments() {
        let mut held = Vec::new();
        push_segment(&mut held, "team_id", b"t1");
        push_segment(&mut held, "forged", b"x\0post_id\0p1");
        push_segment(&mut held, "rest", &[b'x'; 2048]);
        push_segment(&mut held, "empty", b"");
        push_segment(&mut held, "id", b"\xff");
        let read: Vec<_> = segments(&held).collect();
        assert_eq!(read, [("team_id", &b"t1"[..]), ("empty", b""), ("id", b"\xff")]);
        let mut capture = Capture::new(0);
        while held.len() + 9 <= 2048 {
            push_segment(&mut held, "i", &[b'x'; 6]);
        }
        capture.set_extra(Extra::Segments, &held);
        assert!(Record::parse(&written(&capture)).unwrap().extra(Extra::Segments).is_some());
        assert_eq!(segments(b"a\0b").collect::<Vec<_>>(), [("a", &b"b"[..])]);
    }
}
