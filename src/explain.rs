//! `ci/explain`: which rule a request would match, and why the ones before it would not.
//!
//! It runs inside of `nginx -t` with [`VARIABLE`] in the environment: nginx has read the configuration, so its
//! variables, maps and locations can be evaluated for a request that no client made.

use core::slice;
use std::borrow::Cow;
use std::env;
use std::fmt::Write as _;

use nginx_sys::{
    NGX_OK, ngx_array_t, ngx_cycle_t, ngx_http_conf_addr_t, ngx_http_conf_port_t,
    ngx_http_core_main_conf_t, ngx_http_core_srv_conf_t, ngx_http_regex_exec,
    ngx_http_server_name_t, ngx_int_t, ngx_str_t, ngx_test_config,
};
use ngx::http::{HttpModuleLocationConf as _, HttpModuleMainConf as _, NgxHttpCoreModule};
use tirreno_pipeline::capture::cookie::Name;
use tirreno_pipeline::capture::decision::decide;
use tirreno_pipeline::capture::exchange::{Exchange, Session};
use tirreno_pipeline::capture::extract::{
    AnswerReader, BUDGET, BodyFormat, BodyReader, Encoding, Field, Found, Head, Reads, Room, Text,
    Wanted,
};
use tirreno_pipeline::capture::redact::{self, Redaction};
use tirreno_pipeline::capture::rule::{Rule, is_off, read};
use tirreno_pipeline::capture::rules::{Methods, Pattern, Rules};
use tirreno_pipeline::event::{EventType, Param};

use crate::capture::{PageOf, SegmentScratch};
use crate::conf::LocationConf;
use crate::conf::value::ComplexValue;
use crate::exchange::HttpExchange;
use crate::identity;
use crate::request::Request;
use asked::Asked;
use request::{Made, NoMemory};

mod asked;
mod request;

/// The environment variable with the exchange to explain, in lines.
pub(crate) const VARIABLE: &str = "TIRRENO_EXPLAIN";

/// Prints the explanation, if one was asked for.
///
/// # Safety
/// nginx has read the configuration of this cycle, and has not begun to serve.
pub(crate) unsafe fn run(cycle: &ngx_cycle_t) {
    // SAFETY: nginx sets it before it reads the configuration.
    if unsafe { ngx_test_config } == 0 {
        return;
    }
    let Some(asked) = env::var_os(VARIABLE) else { return };
    let explained = match asked.to_str() {
        // SAFETY: the caller's promise.
        Some(asked) => Asked::parse(asked).and_then(|asked| unsafe { explain(cycle, &asked) }),
        None => Err("what is asked is not UTF-8".into()),
    };
    match explained {
        Ok(text) => print!("{text}"),
        Err(error) => println!("error: {error}"),
    }
}

impl From<NoMemory> for String {
    fn from(_: NoMemory) -> Self {
        "no memory".into()
    }
}

/// # Safety
/// As for [`run`].
unsafe fn explain(cycle: &ngx_cycle_t, asked: &Asked) -> Result<String, String> {
    let core = NgxHttpCoreModule::main_conf(cycle).ok_or("there is no \"http\" block")?;
    // SAFETY: the caller's promise; the request is whole.
    let (server, made, in_location) = unsafe {
        let servers = Servers::for_port(core, asked.host().1);
        let first = servers.default.ok_or("no server listens there")?;
        let mut made = Made::new(cycle, core, first, servers.port, asked)?;
        let mut server = first;
        if let Some(found) = servers.named(&made, asked.host().0.as_bytes()) {
            if !core::ptr::eq(found, first) {
                made = Made::new(cycle, core, found, servers.port, asked)?;
            }
            server = found;
        }
        let in_location = made.find_location();
        (server, made, in_location)
    };
    // SAFETY: nothing ends this request before the process does.
    let request = unsafe { Request::new(made.r) };
    let mut out = String::new();
    let (target, _) = asked.split_target();
    // Writing to a String does not fail.
    let _ = writeln!(out, "request: {} {target}, answered {}", asked.method, asked.status);
    let _ = writeln!(out, "server: {} in {}", server_name(server), place(server));
    // SAFETY: the request has a location.
    let core_location = unsafe { NgxHttpCoreModule::location_conf(&*made.r) };
    let _ = writeln!(out, "location: {}", core_location.map_or_else(String::new, location_name));
    if !in_location {
        out += "note: nginx redirects this to the same path with a slash\n";
    }
    let location = request.location().ok_or("the module is not in this configuration")?;
    describe(&mut out, request, location, asked);
    Ok(out)
}

/// Writes what the module makes of the request.
fn describe(out: &mut String, request: Request<'_>, location: &LocationConf, asked: &Asked) {
    if location.enabled().is_none_or(|on| on.is_constant_off() || is_off(request.evaluate(on))) {
        out.push_str("event: none, \"tirreno\" is off here\n");
        return;
    }
    let mut normalized = Vec::new();
    let path = request.path_for_rules(location, &mut normalized);
    let _ = match path {
        Some(path) => writeln!(out, "path: {}", shown(path)),
        None => writeln!(out, "path: none, it is not below \"tirreno_event_prefix\""),
    };
    let http = HttpExchange::new(request, path).with_session(identity::session);
    let exchange = Explained { http, asked };
    let mut settings = location.settings();
    settings.has_session =
        request.main_conf().is_some_and(|main| identity::has_sessions(location, main));
    let decision = decide(&exchange, &settings, None);
    let matched = decision.as_ref().and_then(|decision| decision.rule());
    // A rule of the type `off` also decides, but yields no event.
    let mut found = None;
    for (methods, pattern, rule) in location.rules().into_iter().flat_map(|rules| rules.iter()) {
        let why = mismatch(&exchange, methods, pattern, rule);
        let is_it = match matched {
            Some(matched) => core::ptr::eq(matched, rule),
            None => why.is_none(),
        };
        let kind = rule.event.map_or("off", EventType::name);
        let verdict = match (&why, is_it) {
            (_, true) => "yes".into(),
            (Some(why), _) => format!("no, {why}"),
            (None, _) => "no, where there is no answer one about a failure stands behind".into(),
        };
        let _ = writeln!(out, "{}: {kind} {methods} {}: {verdict}", rule.place, rule.path);
        if is_it {
            found = Some(rule);
            break;
        }
    }
    let Some(decision) = decision else {
        out.push_str(match found {
            Some(_) => "event: none, this rule says so\n",
            None => "event: none, no rule is for it and \"tirreno_default_event\" is off\n",
        });
        return;
    };
    let source = match found {
        Some(rule) => format!("by {}", rule.place),
        None => "by \"tirreno_default_event\"".into(),
    };
    let _ = writeln!(out, "event: {}, {source}", decision.kind.name());
    if decision.is_attempt {
        out.push_str("outcome: attempt\n");
    }
    if decision.is_first_step {
        out.push_str("first step: yes, a successful login withdraws it\n");
    }
    let whose = &decision.whose;
    let _ = match &*whose.user {
        [] if decision.is_skipped() => {
            writeln!(out, "user: none, and without a user it is skipped")
        }
        [] => writeln!(out, "user: none"),
        user => writeln!(out, "user: {}", shown(user)),
    };
    let _ = writeln!(out, "identity: {}", whose.identity.name());
    if !whose.claimed.is_empty() {
        let _ = writeln!(out, "claimed: {}", shown(&whose.claimed));
    }
    if whose.unreadable_session {
        out.push_str("session: unreadable\n");
    }
    let off = Redaction::off();
    let redaction = location.redaction().unwrap_or(&off);
    let find = |path: &[u8], out: &mut Vec<_>| {
        if let Some(rules) = location.rules() {
            rules.secret_segments(location.event_prefix(), path, out);
        }
    };
    let has_own_url = location.params().iter().any(|(param, _)| *param == Param::Url);
    let page = decision.matched.filter(|_| location.url_is_page() && !has_own_url);
    let (mut scratch, mut url) = (SegmentScratch::default(), Vec::new());
    if let Some((rule, segments)) = page {
        let page = PageOf { exchange: &exchange, location, rule, segments };
        page.write(redaction, Some(&find), &mut scratch, &mut url);
    } else {
        let paths = redact::Paths { own: Some(&find), nested: Some(&find), normalized: None };
        let mut scratch = redact::Scratch::default();
        url.extend_from_slice(redaction.url(request.target(), paths, &mut scratch));
    }
    let _ = writeln!(out, "url: {}", shown(&url));
    let title = |rule: &'_ Rule<ComplexValue>| {
        let given = rule.params.iter().find(|(param, _)| *param == Param::PageTitle);
        let value = rule.title.as_ref().or(given.map(|(_, value)| value))?;
        Some(read(value, Some(rule), &exchange).text().into_owned())
    };
    if let Some(title) = found.and_then(title).filter(|title| !title.is_empty()) {
        let _ = writeln!(out, "title: {}", shown(&title));
    }
}

/// Why a rule does not match the exchange; `None` if it matches.
fn mismatch(
    exchange: &Explained<'_, '_>,
    methods: &Methods,
    pattern: &Pattern,
    rule: &Rule<ComplexValue>,
) -> Option<String> {
    let path = exchange.path().unwrap_or_default();
    let is_for = |methods: Methods| {
        let one = Rules::new(vec![(methods, pattern.clone(), ())]);
        one.first(exchange.method(), path, |(), _| true).is_some()
    };
    if !is_for(Methods::any()) {
        Some("another path".into())
    } else if !is_for(methods.clone()) {
        Some("another method".into())
    } else {
        rule.check(exchange, !exchange.is_hung_up()).err().map(|why| why.to_string())
    }
}

/// Text for a terminal.
fn shown(text: &[u8]) -> String {
    String::from_utf8_lossy(text).replace(char::is_control, "\u{fffd}")
}

/// The servers of one address.
struct Servers<'c> {
    port: u16,
    default: Option<&'c ngx_http_core_srv_conf_t>,
    names: Vec<&'c ngx_http_server_name_t>,
}

impl<'c> Servers<'c> {
    /// The servers that listen on a port; without one, those of the first port in the configuration.
    ///
    /// # Safety
    /// nginx has read the configuration, and has not dropped what it needs only for that.
    unsafe fn for_port(core: &'c ngx_http_core_main_conf_t, port: Option<u16>) -> Self {
        // SAFETY: the caller's promise; the arrays hold these types.
        unsafe {
            let ports = core.ports.as_ref().map(|ports| elements::<ngx_http_conf_port_t>(ports));
            let ports = ports.unwrap_or_default();
            let wanted = |conf: &&ngx_http_conf_port_t| Some(conf.port) == port;
            let first = ports.iter().find(wanted).or(ports.first());
            let mut servers = Self { port: 0, default: None, names: Vec::new() };
            let Some(first) = first else { return servers };
            servers.port = first.port;
            for conf in ports.iter().filter(|conf| conf.port == first.port) {
                for address in elements::<ngx_http_conf_addr_t>(&conf.addrs) {
                    servers.default = servers.default.or(address.default_server.as_ref());
                    for server in elements::<*const ngx_http_core_srv_conf_t>(&address.servers) {
                        let names = server.as_ref().map(|server| &server.server_names);
                        let names = names.map(|n| elements::<ngx_http_server_name_t>(n));
                        servers.names.extend(names.unwrap_or_default());
                    }
                }
            }
            servers
        }
    }

    /// The server of that name, as nginx looks for it: by the exact name, the longest one that begins
    /// with an asterisk, the longest that ends with one, the first regular expression.
    ///
    /// # Safety
    /// As for [`for_port`](Self::for_port).
    unsafe fn named(&self, made: &Made, host: &[u8]) -> Option<&'c ngx_http_core_srv_conf_t> {
        let literals = || self.names.iter().filter(|name| name.regex.is_null());
        let ends = |name: &[u8]| match name {
            [b'.', rest @ ..] => host == rest || host.ends_with(name),
            [b'*', suffix @ ..] => host.len() > suffix.len() && host.ends_with(suffix),
            _ => false,
        };
        let starts = |name: &[u8]| {
            let prefix = name.strip_suffix(b"*");
            prefix.is_some_and(|prefix| host.len() > prefix.len() && host.starts_with(prefix))
        };
        let longest = |is: &dyn Fn(&[u8]) -> bool| {
            literals().filter(|name| is(name.name.as_bytes())).max_by_key(|name| name.name.len)
        };
        let mut text = ngx_str_t { len: host.len(), data: host.as_ptr().cast_mut() };
        let by_regex = |name: &&&ngx_http_server_name_t| {
            // SAFETY: the caller's promise; the expression is nginx's.
            !name.regex.is_null()
                && unsafe {
                    ngx_http_regex_exec(made.r, name.regex, &mut text) == NGX_OK as ngx_int_t
                }
        };
        let found = literals()
            .find(|name| name.name.as_bytes() == host)
            .or_else(|| longest(&ends))
            .or_else(|| longest(&starts))
            .or_else(|| self.names.iter().find(by_regex));
        // SAFETY: a name has a server, which lives as long as the configuration.
        found.and_then(|name| unsafe { name.server.as_ref() })
    }
}

/// # Safety
/// The array holds elements of that type.
unsafe fn elements<T>(array: &ngx_array_t) -> &[T] {
    match array.elts.cast::<T>() {
        elts if elts.is_null() => &[],
        // SAFETY: the caller's promise.
        elts => unsafe { slice::from_raw_parts(elts, array.nelts) },
    }
}

fn server_name(server: &ngx_http_core_srv_conf_t) -> Cow<'_, str> {
    match server.server_name.as_bytes() {
        b"" => "without a name".into(),
        name => String::from_utf8_lossy(name),
    }
}

/// Where a server's block begins.
fn place(server: &ngx_http_core_srv_conf_t) -> String {
    if server.file_name.is_null() {
        return String::new();
    }
    // SAFETY: nginx's names of files end with a NUL.
    let file = unsafe { core::ffi::CStr::from_ptr(server.file_name.cast()) };
    format!("{}:{}", file.to_string_lossy(), server.line)
}

fn location_name(core: &nginx_sys::ngx_http_core_loc_conf_t) -> String {
    let name = core.name.to_string();
    let modifier = if !core.regex.is_null() {
        "~ "
    } else if core.exact_match() == 1 {
        "= "
    } else if core.noregex() == 1 {
        "^~ "
    } else {
        ""
    };
    if name.is_empty() { "none, the server itself".into() } else { format!("{modifier}{name}") }
}

/// An exchange whose bodies are given.
struct Explained<'r, 'a> {
    http: HttpExchange<'r, 'a>,
    asked: &'a Asked,
}

/// Leaks the value: the process ends soon.
fn keep<T>(value: T) -> &'static T {
    Box::leak(Box::new(value))
}

impl Explained<'_, '_> {
    fn content_encoding(&self) -> Encoding {
        Encoding::parse(self.http.answer_header("content-encoding").unwrap_or_default())
    }

    fn read_answer(&self, reads: &Reads) -> Option<&'static AnswerReader> {
        let answer = self.asked.answer.as_ref()?;
        let mut reader = AnswerReader::new(reads, self.content_encoding(), &Room::new(&BUDGET));
        reader.push(answer);
        reader.finish();
        Some(keep(reader))
    }
}

impl Exchange for Explained<'_, '_> {
    type Text = ComplexValue;

    fn method(&self) -> &[u8] {
        self.http.method()
    }

    fn path(&self) -> Option<&[u8]> {
        self.http.path()
    }

    fn query(&self) -> &[u8] {
        self.http.query()
    }

    fn text(&self, text: &ComplexValue) -> &[u8] {
        self.http.text(text)
    }

    fn header(&self, name: &str) -> Option<&[u8]> {
        self.http.header(name)
    }

    fn cookies(&self) -> impl Iterator<Item = &[u8]> {
        self.http.cookies()
    }

    fn body(&self, format: BodyFormat, field: &Field, is_name: bool) -> Found<'_> {
        let Some(body) = &self.asked.body else { return Found::Unread };
        let types: Vec<_> = self.http.header("content-type").into_iter().collect();
        let head = Head { method: self.http.method(), content_types: &types, length: None };
        let mut reader = BodyReader::new(&Wanted::new(format, [field]), &head, &Room::new(&BUDGET));
        reader.push(body);
        reader.finish();
        let values = keep(reader).values();
        if is_name { values.name(field.as_str()) } else { values.get(field.as_str()) }
    }

    fn has_field(&self, format: BodyFormat, field: &Field) -> bool {
        self.asked.body.is_some() && self.body(format, field, false) != Found::Absent
    }

    fn answer(&self, field: &Field) -> Found<'_> {
        let wanted = Wanted::new(BodyFormat::Json, [field]);
        let reads = Reads { answer: Some(wanted), ..Reads::default() };
        self.read_answer(&reads).map_or(Found::Unread, |reader| reader.get(field.as_str()))
    }

    fn answer_has(&self, text: &[u8]) -> bool {
        let Ok(wanted) = Text::new(text) else { return false };
        let reads = Reads { texts: vec![wanted], ..Reads::default() };
        self.read_answer(&reads).is_some_and(|reader| reader.has(text) == Some(true))
    }

    fn status(&self) -> u16 {
        self.http.status()
    }

    fn answer_header(&self, name: &str) -> Option<&[u8]> {
        self.http.answer_header(name)
    }

    fn location(&self) -> &[u8] {
        self.http.location()
    }

    fn set_cookie(&self, name: &Name) -> Option<&[u8]> {
        self.http.set_cookie(name)
    }

    fn clears_cookie(&self, name: &Name) -> bool {
        self.http.clears_cookie(name)
    }

    fn is_exact(&self) -> bool {
        self.http.is_exact()
    }

    fn is_applications(&self) -> bool {
        self.http.is_applications()
    }

    fn is_refused(&self) -> bool {
        self.http.is_refused()
    }

    fn is_hung_up(&self) -> bool {
        self.http.is_hung_up()
    }

    fn session(&self) -> Session<'_> {
        self.http.session()
    }
}
