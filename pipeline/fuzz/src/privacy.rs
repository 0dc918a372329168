//! A target gets nothing that it is not to know.

use std::net::IpAddr;

use arbitrary::{Result, Unstructured};
use tirreno_pipeline::event::{EventType, Param};
use tirreno_pipeline::privacy::{IpMask, Privacy, UserKey};
use tirreno_pipeline::record::{Extra, Record};
use tirreno_pipeline::tirreno::form::encode;

use crate::form::{capture, check_payload, is_address, pairs, values};
use crate::{decode, spell};

const USERS: &[&str] = &["h3dy", "hedy@example.org", "4dm1n x", "id__two", "é", "a%41b"];
const AROUND: &[&str] = &["/", "?", "&", "=", "-", "__", "@", ".", "%2f", "%40", "~"];
const BETWEEN: &[&str] = &["", "users", "a", "h3dyx", "9", "%", "%zz", "c%61t"];

/// # Panics
/// It does not hold.
/// # Errors
/// There are too few bytes.
pub fn check(u: &mut Unstructured<'_>) -> Result<()> {
    let user = *u.choose(USERS)?;
    let mut url = String::new();
    for _ in 0..u.int_in_range(1..=4)? {
        url += &format!("/{}{}", u.choose(BETWEEN)?, u.choose(AROUND)?);
        url += &format!("{}{}", spell(u, user)?, u.choose(AROUND)?);
    }
    let mut given = values(u)?;
    given.retain(|(param, _)| !matches!(param, Param::UserName | Param::Url | Param::HttpReferer));
    given.push((Param::UserName, user.into()));
    given.push((Param::Url, url.clone().into()));
    given.push((Param::HttpReferer, url.clone().into()));
    let segments = format!("id\0{user}\0rest\0x/{user}\0");
    let mut capture = capture(u, &given)?;
    capture.set_extra(Extra::Segments, segments.as_bytes());
    let mut bytes = vec![0; capture.record_len()];
    capture.write(1, &mut bytes);
    let privacy = privacy(u)?;
    let view = privacy.view(Record::parse(&bytes).expect("what was written"));

    let pairs = pairs(&encode(&view));
    let kept = |param: Param| {
        let given = given.iter().find(|(known, _)| *known == param).map(|(_, value)| &**value);
        given.filter(|value| !value.is_empty() && privacy.omit & param.bit() == 0)
    };
    let is_hashed = privacy.hash_user.is_some();
    // A search has a payload in any case, or Tirreno complains; what was searched for is not in it where it is
    // not to be known.
    let of_user = view.record().kind() == EventType::AccountEmailChange;
    let payload = kept(Param::Payload).filter(|_| !(is_hashed && of_user));
    check_payload(view.record().kind(), payload, &pairs);
    let is_named = kept(Param::UserName).is_some() && !is_hashed;
    let address = kept(Param::EmailAddress).filter(|address| is_named && is_address(address));
    let sent = pairs.iter().find(|(param, _)| *param == Param::EmailAddress);
    assert_eq!(sent.map(|(_, address)| &**address), address);
    for (param, value) in pairs {
        assert!(param == Param::Payload || privacy.omit & param.bit() == 0, "{param:?}");
        let is_url = matches!(param, Param::Url | Param::HttpReferer);
        if privacy.hash_user.is_some() {
            if param == Param::UserName {
                assert!(value.len() == 64 && value.iter().all(u8::is_ascii_hexdigit));
            }
            if is_url {
                let once = if param == Param::Url { value.clone() } else { decode(&value) };
                assert!(!names(&decode(&once), user), "{url} {value:?}");
            }
            assert!(!matches!(param, Param::EmailAddress | Param::FullName | Param::FieldHistory));
        }
        assert!(!(privacy.cut_query && is_url && value.contains(&b'?')), "{value:?}");
        if let (Param::IpAddress, Some(mask)) = (param, privacy.ip_mask) {
            let text = String::from_utf8(value).expect("text");
            assert!(is_masked(text.parse().expect("an address"), mask), "{text} {mask:?}");
        }
    }
    if privacy.hash_user.is_some() {
        let segments: Vec<_> = view.segments().collect();
        assert!(!segments.iter().any(|(_, value)| names(value, user)), "{segments:?}");
        assert_eq!(segments.len(), 2);
    }
    Ok(())
}

/// Any settings.
pub(crate) fn privacy(u: &mut Unstructured<'_>) -> Result<Privacy> {
    let mut privacy = Privacy { cut_query: u.arbitrary()?, ..Privacy::default() };
    if u.arbitrary()? {
        let mask = IpMask { v4: u.int_in_range(0..=32)?, v6: u.int_in_range(0..=128)? };
        privacy.ip_mask = Some(mask);
    }
    if u.arbitrary()? {
        privacy.hash_user = Some(UserKey::new(b"key"));
    }
    for param in Param::ALL {
        let required = matches!(param, Param::IpAddress | Param::Url | Param::EventTime);
        if !required && u.ratio(1, 8)? {
            privacy.omit |= param.bit();
        }
    }
    Ok(privacy)
}

/// Whether `text` names the user, as a word of its own.
fn names(text: &[u8], user: &str) -> bool {
    let ends = |byte: Option<&u8>| !byte.is_some_and(u8::is_ascii_alphanumeric);
    text.windows(user.len()).enumerate().any(|(at, window)| {
        window.eq_ignore_ascii_case(user.as_bytes())
            && ends(text[..at].last())
            && ends(text.get(at + user.len()))
    })
}

fn is_masked(ip: IpAddr, mask: IpMask) -> bool {
    match ip {
        IpAddr::V4(ip) => u64::from(ip.to_bits()) % (1 << (32 - mask.v4)) == 0,
        IpAddr::V6(ip) => (mask.v6..128).all(|bit| ip.to_bits() >> (127 - bit) & 1 == 0),
    }
}
