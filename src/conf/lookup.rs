//! The block `tirreno_identity name { … }`.

use core::ffi::c_char;
use std::time::Duration;

use nginx_sys::ngx_conf_t;
use tirreno_pipeline::config::header::check_header;
use tirreno_pipeline::config::secret::Secret;
use tirreno_pipeline::event::Param;
use tirreno_pipeline::identity::lookup::{LookupConfig, MARK, SendAs, parse_format, parse_url};

use super::block::{self, Block, Parameter, Setting, put};
use super::ext::ConfExt;
use super::tls::{self, HasTls, Tls};

/// The most lookups at a time.
const MAX_CONCURRENCY: usize = 32;
/// Header fields that the module itself sends.
const OURS: [&str; 6] =
    ["Authorization", "Cookie", "Host", "If-None-Match", "X-Forwarded-For", MARK];

const PARAMETERS: &[Parameter<Draft>] = &[
    Parameter::one("url", |draft, s| put(&mut draft.url, Ok(s.text().to_string()))),
    Parameter::one("send", |draft, s| put(&mut draft.send, read_send(s))),
    Parameter::one("token_format", |draft, s| {
        put(&mut draft.token_format, Ok(s.text().to_string()))
    }),
    Parameter::of("map", 2..=2, |draft: &mut Draft, s| {
        draft.map.push(read_map(s)?);
        Ok(())
    })
    .repeated(),
    Parameter::one("cache", |draft, s| put(&mut draft.cache, s.time(1))),
    Parameter::one("concurrency", |draft, s| put(&mut draft.concurrency, s.count(MAX_CONCURRENCY))),
    Parameter::one("rate", |draft, s| {
        let must = "a rate like \"20r/s\" or \"300r/m\"";
        put(&mut draft.rate, s.rate().ok_or_else(|| s.invalid(must)))
    }),
    Parameter::one("timeout", |draft, s| put(&mut draft.timeout, s.time(1))),
    Parameter::of("header", 2..=2, |draft: &mut Draft, s| {
        draft.headers.push(read_header(s)?);
        Ok(())
    })
    .repeated(),
];

/// A block while it is read; `None` is the default.
#[derive(Default)]
struct Draft {
    url: Option<String>,
    send: Option<SendAs>,
    token_format: Option<String>,
    map: Vec<(Box<str>, Param)>,
    cache: Option<Duration>,
    concurrency: Option<usize>,
    rate: Option<f64>,
    timeout: Option<Duration>,
    headers: Vec<(String, Secret)>,
    tls: Tls,
}

impl Block for Draft {
    const NAME: &'static str = "tirreno_identity";

    fn tables() -> &'static [&'static [Parameter<Self>]] {
        const TABLES: [&[Parameter<Draft>]; 2] = [PARAMETERS, &tls::parameters()];
        &TABLES
    }
}

impl HasTls for Draft {
    fn tls(&mut self) -> &mut Tls {
        &mut self.tls
    }
}

/// Reads the block that follows.
///
/// # Errors
/// What nginx returns for it, when it has said what is wrong.
pub(crate) fn read(cf: &mut ngx_conf_t, name: &str) -> Result<LookupConfig, *mut c_char> {
    let place = cf.place();
    let mut draft = Draft::default();
    block::read(cf, &mut draft)?;
    draft.finish(name).map_err(|message| cf.error_at(&place, message))
}

fn read_send(s: &mut Setting<'_>) -> Result<SendAs, String> {
    let text = s.text().to_string();
    let cookie = text.strip_prefix("cookie:").filter(|name| !name.is_empty());
    match (text.as_str(), cookie) {
        ("bearer", _) => Ok(SendAs::Bearer),
        (_, Some(name)) => Ok(SendAs::Cookie(name.into())),
        _ => Err(s.invalid("\"bearer\" or \"cookie:NAME\"")),
    }
}

fn read_map(s: &mut Setting<'_>) -> Result<(Box<str>, Param), String> {
    let (field, parameter) = (s.args[0].to_string(), s.args[1].to_string());
    let known = Param::from_name(parameter.as_bytes()).filter(|known| MAPPED.contains(known));
    known.map(|known| (field.into(), known)).ok_or_else(|| {
        format!(
            "unknown parameter \"{parameter}\" in \"map\" directive, it must be one of {}",
            MAPPED.map(Param::name).join(", ")
        )
    })
}

fn read_header(s: &mut Setting<'_>) -> Result<(String, Secret), String> {
    let (name, content) = (s.args[0].to_string(), s.args[1].to_string());
    if OURS.iter().any(|ours| ours.eq_ignore_ascii_case(&name)) {
        return Err(format!("\"header\" directive cannot change \"{name}\""));
    }
    check_header(&name, &content)
        .map_err(|what| format!("invalid {what} of \"{name}\" in \"header\" directive"))?;
    Ok((name, Secret::new(content)))
}

impl Draft {
    fn finish(self, name: &str) -> Result<LookupConfig, String> {
        let missing = |what| format!("\"tirreno_identity {name}\" has no {what}, add it,");
        let url = self.url.ok_or_else(|| missing("\"url\""))?;
        let url = parse_url(&url)
            .ok_or("the \"url\" must be like \"http://127.0.0.1:8065/api/v4/users/me\"")?;
        if !self.map.iter().any(|(_, param)| *param == Param::UserName) {
            return Err(missing("\"map FIELD userName\", which names the user"));
        }
        let is_tls = url.scheme_str() == Some("https");
        if !is_tls && self.tls.is_set() {
            return Err("\"ssl_…\" need a \"url\" that begins with \"https://\"".into());
        }
        let token_format = match &self.token_format {
            Some(text) => Some(parse_format(text).map_err(|error| {
                format!("the regular expression of \"token_format\" is wrong: {error}")
            })?),
            None => None,
        };
        Ok(LookupConfig {
            name: name.to_owned(),
            url,
            send: self.send.unwrap_or(SendAs::Bearer),
            token_format,
            map: self.map,
            cache: self.cache.unwrap_or(Duration::from_secs(600)),
            concurrency: self.concurrency.unwrap_or(4),
            rate: self.rate.unwrap_or(20.0),
            timeout: self.timeout.unwrap_or(Duration::from_secs(2)),
            headers: self.headers,
            tls: match is_tls {
                true => Some(self.tls.finish(&format!("\"tirreno_identity {name}\""))?),
                false => None,
            },
        })
    }
}

/// The parameters that an answer may set.
const MAPPED: [Param; 6] = [
    Param::UserName,
    Param::EmailAddress,
    Param::FirstName,
    Param::LastName,
    Param::FullName,
    Param::UserCreated,
];
