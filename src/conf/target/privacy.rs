//! What a target of any type is not to know.

use nginx_sys::{ngx_conf_t, ngx_str_t};
use tirreno_pipeline::event::Param;
use tirreno_pipeline::privacy::{IpMask, Privacy, UserKey};

use super::{Argument, checked_key, read_key};
use crate::conf::ext::ConfExt;

/// A shorter key is easier to guess than what HMAC-SHA-256 makes of it, says RFC 2104.
const MIN_USER_KEY: usize = 32;
/// What Tirreno does not do without.
const REQUIRED: [Param; 3] = [Param::IpAddress, Param::Url, Param::EventTime];

pub(super) fn set(
    privacy: &mut Privacy,
    cf: &mut ngx_conf_t,
    name: &str,
    args: &[ngx_str_t],
) -> Result<(), String> {
    let value = Argument { name, text: args[0] };
    let arg = value.text;
    match name {
        "ip_mask" => {
            let prefix = |arg: ngx_str_t, most: u8, what: &str| {
                let prefix = arg.to_str().ok().and_then(|a| a.parse().ok());
                prefix.filter(|n| *n <= most).ok_or_else(|| {
                    format!(
                        "invalid value \"{arg}\" in \"{name}\" directive, the prefix of {what} \
                             addresses must be a number from 0 to {most}"
                    )
                })
            };
            let (v4, v6) = (prefix(arg, 32, "IPv4")?, prefix(args[1], 128, "IPv6")?);
            privacy.ip_mask = Some(IpMask { v4, v6 });
        }
        "hash_user" => privacy.hash_user = Some(read_user_key(cf, arg)?),
        "omit" => privacy.omit = read_omitted(args)?,
        "query" => privacy.cut_query = !value.flag()?,
        _ => return Err(format!("unknown directive \"{name}\" in \"tirreno_target\"")),
    }
    Ok(())
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

fn read_user_key(cf: &mut ngx_conf_t, path: ngx_str_t) -> Result<UserKey, String> {
    const WHAT: &str = "the key for users";
    let key = read_key(cf, path, "hash_user", WHAT)?;
    let key = checked_key(&key, "hash_user", WHAT)?;
    if key.len() < MIN_USER_KEY {
        cf.warn(format_args!(
            "the key of \"hash_user\" is shorter than {MIN_USER_KEY} characters, make one with \
             \"openssl rand -hex 32\""
        ));
    }
    Ok(UserKey::new(key.as_bytes()))
}
