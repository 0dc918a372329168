//! The block `tirreno_identity name { … }`.

use core::ffi::{c_char, c_void};
use core::ptr;
use std::time::Duration;

use nginx_sys::{ngx_command_t, ngx_conf_include, ngx_conf_parse, ngx_conf_t, ngx_str_t};
use ngx::core::{NGX_CONF_ERROR, NGX_CONF_OK};
use tirreno_pipeline::config::{Secret, check_header};
use tirreno_pipeline::event::Param;
use tirreno_pipeline::identity::lookup::{LookupConfig, MARK, SendAs, parse_format, parse_url};

use super::ext::ConfExt;
use super::target::{Argument, Tls, read_client_certificate, read_roots};
use crate::guarded;

/// The most questions at a time.
const MAX_CONCURRENCY: usize = 32;
/// Header fields that the module itself sends.
const OURS: [&str; 6] =
    ["Authorization", "Cookie", "Host", "If-None-Match", "X-Forwarded-For", MARK];

/// A block while it is read; `None` is the default.
#[derive(Default)]
struct Draft {
    seen: Vec<String>,
    config: Parts,
    tls: Tls,
}

#[derive(Default)]
struct Parts {
    url: Option<String>,
    send: Option<SendAs>,
    token_format: Option<String>,
    map: Vec<(Box<str>, Param)>,
    cache: Option<Duration>,
    concurrency: Option<usize>,
    rate: Option<f64>,
    timeout: Option<Duration>,
    headers: Vec<(String, Secret)>,
}

/// Reads the block that follows.
///
/// # Errors
/// What nginx returns for it, when it has said what is wrong.
pub(crate) fn read(cf: &mut ngx_conf_t, name: &str) -> Result<LookupConfig, *mut c_char> {
    let place = cf.place();
    let mut draft = Draft::default();
    let mut block = *cf;
    block.handler = Some(parameter);
    block.handler_conf = ptr::addr_of_mut!(draft).cast();
    // SAFETY: `block` is a copy of a valid context, as nginx's own block directives make it.
    let rc = unsafe { ngx_conf_parse(&mut block, ptr::null_mut()) };
    if rc != NGX_CONF_OK {
        return Err(rc);
    }
    draft.finish(name).map_err(|message| cf.error_at(&place, message))
}

extern "C" fn parameter(
    cf: *mut ngx_conf_t,
    cmd: *mut ngx_command_t,
    draft: *mut c_void,
) -> *mut c_char {
    guarded(NGX_CONF_ERROR, || {
        // SAFETY: nginx passes the context that `read` made.
        let cf = unsafe { &mut *cf };
        let args = cf.args();
        if let [name, _] = args
            && name.as_bytes() == b"include"
        {
            // SAFETY: as in nginx's own blocks with a handler; it comes back here.
            return unsafe { ngx_conf_include(cf, cmd, draft) };
        }
        // SAFETY: the draft that `read` put into the context.
        let draft = unsafe { &mut *draft.cast::<Draft>() };
        match draft.set(cf, &args[0].to_string(), &args[1..]) {
            Ok(()) => NGX_CONF_OK,
            Err(message) => cf.error(message),
        }
    })
}

impl Draft {
    fn set(&mut self, cf: &mut ngx_conf_t, name: &str, args: &[ngx_str_t]) -> Result<(), String> {
        let wanted = match name {
            "send" => 1..=1,
            "map" | "header" => 2..=2,
            "url"
            | "token_format"
            | "cache"
            | "concurrency"
            | "rate"
            | "timeout"
            | "ssl_trusted_certificate"
            | "ssl_verify"
            | "ssl_certificate"
            | "ssl_certificate_key" => 1..=1,
            _ => return Err(format!("unknown directive \"{name}\" in \"tirreno_identity\"")),
        };
        if !wanted.contains(&args.len()) {
            return Err(format!("invalid number of arguments in \"{name}\" directive"));
        }
        if !matches!(name, "map" | "header") && self.seen.iter().any(|seen| seen == name) {
            return Err(format!("\"{name}\" directive is duplicate"));
        }
        self.seen.push(name.to_owned());
        let (value, text) = (Argument { name, text: args[0] }, args[0].to_string());
        let parts = &mut self.config;
        match name {
            "url" => parts.url = Some(text),
            "send" => {
                let cookie = text.strip_prefix("cookie:").filter(|name| !name.is_empty());
                parts.send = Some(match (text.as_str(), cookie) {
                    ("bearer", _) => SendAs::Bearer,
                    (_, Some(name)) => SendAs::Cookie(name.into()),
                    _ => return Err(value.invalid("\"bearer\" or \"cookie:NAME\"")),
                });
            }
            "token_format" => parts.token_format = Some(text),
            "map" => {
                let parameter = args[1].to_string();
                let known = Param::from_name(parameter.as_bytes());
                let Some(known) = known.filter(|known| MAPPED.contains(known)) else {
                    return Err(format!(
                        "unknown parameter \"{parameter}\" in \"map\" directive, it must be one of {}",
                        MAPPED.map(Param::name).join(", ")
                    ));
                };
                parts.map.push((text.into(), known));
            }
            "cache" => parts.cache = Some(value.time(1)?),
            "concurrency" => parts.concurrency = Some(value.count(MAX_CONCURRENCY)?),
            "rate" => {
                let rate = text.strip_suffix("r/s").map(|n| (n, 1.0));
                let rate = rate.or_else(|| text.strip_suffix("r/m").map(|n| (n, 60.0)));
                let rate = rate.and_then(|(n, per)| Some(n.parse::<u32>().ok()? as f64 / per));
                let rate = rate.filter(|rate| *rate > 0.0);
                parts.rate =
                    Some(rate.ok_or_else(|| value.invalid("a rate like \"20r/s\" or \"300r/m\""))?);
            }
            "timeout" => parts.timeout = Some(value.time(1)?),
            "header" => {
                let content = args[1].to_string();
                if OURS.iter().any(|ours| ours.eq_ignore_ascii_case(&text)) {
                    return Err(format!("\"header\" directive cannot change \"{text}\""));
                }
                check_header(&text, &content).map_err(|what| {
                    format!("invalid {what} of \"{text}\" in \"header\" directive")
                })?;
                parts.headers.push((text, Secret::new(content)));
            }
            "ssl_verify" => self.tls.verify = Some(value.flag()?),
            "ssl_trusted_certificate" => self.tls.trusted = Some(read_roots(cf, name, args[0])?),
            _ => read_client_certificate(cf, name, args[0], &mut self.tls)?,
        }
        Ok(())
    }

    fn finish(self, name: &str) -> Result<LookupConfig, String> {
        let Self { config: parts, tls, .. } = self;
        let missing = |what| format!("\"tirreno_identity {name}\" has no {what}, add it,");
        let url = parts.url.ok_or_else(|| missing("\"url\""))?;
        let url = parse_url(&url)
            .ok_or("the \"url\" must be like \"http://127.0.0.1:8065/api/v4/users/me\"")?;
        if !parts.map.iter().any(|(_, param)| *param == Param::UserName) {
            return Err(missing("\"map FIELD userName\", which names the user"));
        }
        let is_tls = url.scheme_str() == Some("https");
        if !is_tls && tls.is_set() {
            return Err("\"ssl_…\" need a \"url\" that begins with \"https://\"".into());
        }
        let token_format = match &parts.token_format {
            Some(text) => Some(parse_format(text).map_err(|error| {
                format!("the regular expression of \"token_format\" is wrong: {error}")
            })?),
            None => None,
        };
        Ok(LookupConfig {
            name: name.to_owned(),
            url,
            send: parts.send.unwrap_or(SendAs::Bearer),
            token_format,
            map: parts.map,
            cache: parts.cache.unwrap_or(Duration::from_secs(600)),
            concurrency: parts.concurrency.unwrap_or(4),
            rate: parts.rate.unwrap_or(20.0),
            timeout: parts.timeout.unwrap_or(Duration::from_secs(2)),
            headers: parts.headers,
            tls: match is_tls {
                true => Some(tls.finish(&format!("\"tirreno_identity {name}\""))?),
                false => None,
            },
        })
    }
}

/// What an answer may tell of a user.
const MAPPED: [Param; 6] = [
    Param::UserName,
    Param::EmailAddress,
    Param::FirstName,
    Param::LastName,
    Param::FullName,
    Param::UserCreated,
];
