//! The exchange that `ci/explain` passes to the module.

use std::fs;

/// A request and its answer.
#[derive(Debug, Default)]
pub(super) struct Asked {
    pub(super) method: String,
    /// As in a request line, or as a URL.
    pub(super) target: String,
    pub(super) status: u16,
    pub(super) headers: Vec<(String, String)>,
    pub(super) answer_headers: Vec<(String, String)>,
    pub(super) body: Option<Vec<u8>>,
    pub(super) answer: Option<Vec<u8>>,
    /// Whether the answer is nginx's own.
    pub(super) is_by_nginx: bool,
}

impl Asked {
    /// Reads lines: the method, the target and the status, then `> NAME: VALUE` for a header of the
    /// request, `< NAME: VALUE` for one of the answer, `body FILE`, `answer FILE` and `by-nginx`.
    ///
    /// # Errors
    /// What is wrong with them.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let mut lines = text.lines();
        let mut next = |what| lines.next().filter(|line| !line.is_empty()).ok_or(what);
        let mut asked = Self {
            method: next("the method is missing")?.to_owned(),
            target: next("the target is missing")?.to_owned(),
            ..Self::default()
        };
        let status = next("the status is missing")?;
        let is_status = |status: &u16| matches!(status, 0 | 100..=999);
        asked.status =
            status.parse().ok().filter(is_status).ok_or_else(|| {
                format!("invalid status \"{status}\", it must be a number like 200")
            })?;
        // nginx reads no other request lines.
        if !asked.method.bytes().all(|b| b.is_ascii_uppercase() || matches!(b, b'_' | b'-')) {
            return Err(format!("invalid method \"{}\", it must be like \"GET\"", asked.method));
        }
        let (target, _) = asked.split_target();
        if target.bytes().any(|b| b == b' ' || b.is_ascii_control()) || has_bad_escape(target) {
            return Err(format!(
                "nginx answers 400 to the target \"{target}\": it has a blank, a control character, or a \"%\" \
                 without two hexadecimal digits"
            ));
        }
        if !asked.target.starts_with('/') && !asked.target.contains("://") {
            return Err(format!(
                "invalid target \"{}\", it must begin with \"/\" or be a URL",
                asked.target
            ));
        }
        for line in lines {
            let (kind, rest) = line.split_once(' ').unwrap_or((line, ""));
            match kind {
                ">" => asked.headers.push(header(rest)?),
                "<" => asked.answer_headers.push(header(rest)?),
                "body" => asked.body = Some(read(rest)?),
                "answer" => asked.answer = Some(read(rest)?),
                "by-nginx" => asked.is_by_nginx = true,
                _ => return Err(format!("invalid line \"{line}\"")),
            }
        }
        Ok(asked)
    }

    /// The request's header of that name.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        let mut headers = self.headers.iter();
        let found = headers.find(|(known, _)| known.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    /// The path with the query, and the authority if the target is a URL.
    pub(super) fn split_target(&self) -> (&str, Option<&str>) {
        let Some((_, rest)) =
            self.target.split_once("://").filter(|_| !self.target.starts_with('/'))
        else {
            return (&self.target, None);
        };
        match rest.find(['/', '?', '#']) {
            Some(end) if rest[end..].starts_with('/') => (&rest[end..], Some(&rest[..end])),
            _ => ("/", Some(rest.split(['?', '#']).next().unwrap_or(rest))),
        }
    }

    /// The name and the port of the server to choose.
    pub(super) fn host(&self) -> (String, Option<u16>) {
        let (_, in_target) = self.split_target();
        let host = in_target.or_else(|| self.header("host")).unwrap_or_default();
        // An IPv6 address has colons of its own.
        let is_port = |(_, port): &(&str, &str)| !port.contains(']');
        let (name, port) = match host.rsplit_once(':').filter(is_port) {
            Some((name, port)) => (name, port.parse().ok()),
            None => (host, None),
        };
        let scheme = self.target.starts_with("https://").then_some(443);
        (name.trim_end_matches('.').to_ascii_lowercase(), port.or(scheme))
    }
}

/// Whether the path has a `%` that encodes no character.
fn has_bad_escape(target: &str) -> bool {
    let path = target.split(['?', '#']).next().unwrap_or_default();
    path.split('%').skip(1).any(|escape| match escape.as_bytes() {
        [b'0', b'0', ..] => true,
        [a, b, ..] => !a.is_ascii_hexdigit() || !b.is_ascii_hexdigit(),
        _ => true,
    })
}

fn header(line: &str) -> Result<(String, String), String> {
    let (name, value) = line
        .split_once(':')
        .ok_or_else(|| format!("invalid header \"{line}\", it must be \"NAME: VALUE\""))?;
    Ok((name.trim().to_owned(), value.trim().to_owned()))
}

fn read(path: &str) -> Result<Vec<u8>, String> {
    fs::read(path).map_err(|error| format!("cannot read \"{path}\": {error}"))
}
