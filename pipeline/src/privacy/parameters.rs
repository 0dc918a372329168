//! The parameters of a target's privacy settings.

use super::{IpMask, Privacy, UserKey};
use crate::config::block::{Parameter, Setting, put};
use crate::config::key;
use crate::event::Param;
use crate::text::readable;

/// A shorter key is easier to guess than what HMAC-SHA-256 makes of it, says RFC 2104.
const MIN_USER_KEY: usize = 32;
/// What Tirreno does not do without.
const REQUIRED: [Param; 3] = [Param::IpAddress, Param::Url, Param::EventTime];

pub(crate) const PARAMETERS: &[Parameter<Privacy>] = &[
    Parameter::of("ip_mask", 2..=2, |privacy, s| put(&mut privacy.ip_mask, read_mask(s))),
    Parameter::one("hash_user", |privacy, s| put(&mut privacy.hash_user, read_user_key(s))),
    Parameter::of("omit", 1..=usize::MAX, |privacy, s| {
        privacy.omit = read_omitted(s.args)?;
        Ok(())
    }),
    Parameter::one("query", |privacy, s| {
        privacy.cut_query = !s.flag()?;
        Ok(())
    }),
];

fn read_mask(s: &mut Setting<'_>) -> Result<IpMask, String> {
    let prefix = |arg: &[u8], most: u8, what: &str| {
        let arg = readable(arg);
        arg.parse().ok().filter(|n| *n <= most).ok_or_else(|| {
            format!(
                "invalid value \"{arg}\" in \"{}\" directive, the prefix of {what} addresses must be a \
                 number from 0 to {most}",
                s.name
            )
        })
    };
    Ok(IpMask { v4: prefix(s.args[0], 32, "IPv4")?, v6: prefix(s.args[1], 128, "IPv6")? })
}

/// The parameters' bits.
fn read_omitted(names: &[&[u8]]) -> Result<u32, String> {
    let mut omitted = 0;
    for name in names {
        let Some(param) = Param::from_name(name) else {
            return Err(format!(
                "unknown parameter \"{}\" in \"omit\" directive, it must be one of {}",
                readable(name),
                Param::ALL.map(Param::name).join(", ")
            ));
        };
        let name = param.name();
        if REQUIRED.contains(&param) {
            return Err(format!(
                "\"{name}\" in \"omit\" directive is required by Tirreno, see \"ip_mask\" and \
                 \"query\" for less of it"
            ));
        }
        if omitted & param.bit() != 0 {
            return Err(format!("duplicate parameter \"{name}\" in \"omit\" directive"));
        }
        omitted |= param.bit();
    }
    Ok(omitted)
}

fn read_user_key(s: &mut Setting<'_>) -> Result<UserKey, String> {
    let key = key::read(s.file, s.args[0], s.name, "the key for users")?;
    if key.len() < MIN_USER_KEY {
        s.file.warn(&format!(
            "the key of \"hash_user\" is shorter than {MIN_USER_KEY} characters, make one with \
             \"openssl rand -hex 32\""
        ));
    }
    Ok(UserKey::new(key.as_bytes()))
}
