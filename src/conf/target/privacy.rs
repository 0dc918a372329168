//! What a target of any type is not to know.

use nginx_sys::ngx_str_t;
use tirreno_pipeline::event::Param;
use tirreno_pipeline::privacy::{IpMask, UserKey};

use super::Draft;
use crate::conf::block::{Parameter, Setting, put};
use crate::conf::ext::ConfExt;
use crate::conf::key;

/// A shorter key is easier to guess than what HMAC-SHA-256 makes of it, says RFC 2104.
const MIN_USER_KEY: usize = 32;
/// What Tirreno does not do without.
const REQUIRED: [Param; 3] = [Param::IpAddress, Param::Url, Param::EventTime];

pub(super) const PARAMETERS: &[Parameter<Draft>] = &[
    Parameter::of("ip_mask", 2..=2, |draft, s| put(&mut draft.privacy.ip_mask, read_mask(s))),
    Parameter::one("hash_user", |draft, s| put(&mut draft.privacy.hash_user, read_user_key(s))),
    Parameter::of("omit", 1..=usize::MAX, |draft, s| {
        draft.privacy.omit = read_omitted(s.args)?;
        Ok(())
    }),
    Parameter::one("query", |draft, s| {
        draft.privacy.cut_query = !s.flag()?;
        Ok(())
    }),
];

fn read_mask(s: &mut Setting<'_>) -> Result<IpMask, String> {
    let prefix = |arg: ngx_str_t, most: u8, what: &str| {
        let prefix = arg.to_str().ok().and_then(|a| a.parse().ok());
        prefix.filter(|n| *n <= most).ok_or_else(|| {
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
fn read_omitted(names: &[ngx_str_t]) -> Result<u32, String> {
    let mut omitted = 0;
    for name in names {
        let Some(param) = Param::from_name(name.as_bytes()) else {
            return Err(format!(
                "unknown parameter \"{name}\" in \"omit\" directive, it must be one of {}",
                Param::ALL.map(Param::name).join(", ")
            ));
        };
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
    let key = key::read(s.cf, s.text(), s.name, "the key for users")?;
    if key.len() < MIN_USER_KEY {
        s.cf.warn(format_args!(
            "the key of \"hash_user\" is shorter than {MIN_USER_KEY} characters, make one with \
             \"openssl rand -hex 32\""
        ));
    }
    Ok(UserKey::new(key.as_bytes()))
}
