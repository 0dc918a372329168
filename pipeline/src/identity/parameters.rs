//! The parameters of `tirreno_identity name { … }`.

#[cfg(test)]
mod tests;

use std::time::Duration;

use crate::capture::rule::Place;
use crate::config::address::is_local_host;
use crate::config::block::{Block, BlockError, Parameter, Seen, Setting, Table, put};
use crate::config::file::ConfigFile;
use crate::config::header::check_header;
use crate::config::secret::Secret;
use crate::delivery::tls::parameters::{self as tls, Draft as Tls};
use crate::event::Param;
use crate::identity::lookup::{LookupConfig, MARK, SendAs, parse_format, parse_url};
use crate::text::readable;

/// The most lookups at a time.
const MAX_CONCURRENCY: usize = 32;
/// Header fields that the module itself sends.
const OURS: [&str; 6] =
    ["Authorization", "Cookie", "Host", "If-None-Match", "X-Forwarded-For", MARK];

const PARAMETERS: &[Parameter<Draft>] = &[
    Parameter::one("url", |draft, s| put(&mut draft.url, Ok(s.text()))),
    Parameter::one("send", |draft, s| put(&mut draft.send, read_send(s))),
    Parameter::one("token_format", |draft, s| {
        let is_given = !s.bytes().is_empty();
        let must = "a regular expression of a whole token";
        put(&mut draft.token_format, is_given.then(|| s.text()).ok_or_else(|| s.invalid(must)))
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

/// The block while it is read.
#[derive(Default)]
pub struct IdentityBlock {
    name: String,
    lookup: Draft,
    tls: Tls,
}

/// What the block says; `None` is the default.
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
}

impl Block for IdentityBlock {
    const NAME: &'static str = "tirreno_identity";
    type Config = LookupConfig;

    fn new(name: &str) -> Result<Self, String> {
        Ok(Self { name: name.to_owned(), ..Self::default() })
    }

    fn tables(&mut self) -> Vec<Table<'_>> {
        // There is one kind of block.
        let own = Table::new(1, PARAMETERS, &mut self.lookup);
        vec![own, Table::new(1, tls::PARAMETERS, &mut self.tls)]
    }

    fn finish(
        self,
        place: &Place,
        seen: &[Seen],
        file: &mut dyn ConfigFile,
    ) -> Result<LookupConfig, BlockError> {
        let Self { name, lookup, tls } = self;
        let lookup = lookup
            .finish(&name, tls)
            .map_err(|message| BlockError { place: place.clone(), message })?;
        if lookup.tls.is_none()
            && !lookup.url.host().is_some_and(is_local_host)
            && let Some(url) = seen.iter().find(|seen| seen.name == "url")
        {
            file.warn_at(
                &url.place,
                "\"url\" sends sessions' tokens to another host over plain http, write \"https://\",",
            );
        }
        Ok(lookup)
    }
}

fn read_send(s: &mut Setting<'_>) -> Result<SendAs, String> {
    let text = s.text();
    let cookie = text.strip_prefix("cookie:").filter(|name| !name.is_empty());
    match (text.as_str(), cookie) {
        ("bearer", _) => Ok(SendAs::Bearer),
        (_, Some(name)) => Ok(SendAs::Cookie(name.into())),
        _ => Err(s.invalid("\"bearer\" or \"cookie:NAME\"")),
    }
}

fn read_map(s: &mut Setting<'_>) -> Result<(Box<str>, Param), String> {
    let (field, parameter) = (readable(s.args[0]), readable(s.args[1]));
    if field.split('.').any(str::is_empty) {
        return Err(s.invalid("a field of the answer, like \"id\" or \"user.id\""));
    }
    let known = Param::from_name(parameter.as_bytes()).filter(|known| MAPPED.contains(known));
    known.map(|known| (field.into(), known)).ok_or_else(|| {
        format!(
            "unknown parameter \"{parameter}\" in \"map\" directive, it must be one of {}",
            MAPPED.map(Param::name).join(", ")
        )
    })
}

fn read_header(s: &mut Setting<'_>) -> Result<(String, Secret), String> {
    let (name, content) = (readable(s.args[0]), readable(s.args[1]));
    if OURS.iter().any(|ours| ours.eq_ignore_ascii_case(&name)) {
        return Err(format!("\"header\" directive cannot change \"{name}\""));
    }
    check_header(&name, &content)
        .map_err(|what| format!("invalid {what} of \"{name}\" in \"header\" directive"))?;
    Ok((name, Secret::new(content)))
}

impl Draft {
    fn finish(self, name: &str, tls: Tls) -> Result<LookupConfig, String> {
        let missing = |what| format!("\"tirreno_identity {name}\" has no {what}, add it,");
        let url = self.url.ok_or_else(|| missing("\"url\""))?;
        let url = parse_url(&url)
            .ok_or("the \"url\" must be like \"http://127.0.0.1:8065/api/v4/users/me\"")?;
        if !self.map.iter().any(|(_, param)| *param == Param::UserName) {
            return Err(missing("\"map FIELD userName\", which names the user"));
        }
        let is_tls = url.scheme_str() == Some("https");
        if !is_tls && tls.is_set() {
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
                true => Some(tls.finish(&format!("\"tirreno_identity {name}\""))?),
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
