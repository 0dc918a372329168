//! An exchange out of plain facts, for tests.

use crate::capture::cookie::{Name, cookie_pairs};
use crate::capture::exchange::{Exchange, Session, Text};
use crate::capture::extract::{BodyFormat, Field, Found};
use crate::capture::value::Value;

/// A text of nginx in which `$NAME` or `${NAME}` alone is a variable.
#[derive(Clone, Debug)]
pub(crate) struct Template(pub(crate) &'static str);

impl Text for Template {
    fn constant(&self) -> Option<&[u8]> {
        (!self.0.contains('$')).then_some(self.0.as_bytes())
    }

    fn has_own_variable(&self) -> bool {
        self.0.contains("_map")
    }
}

/// Compiles any text but that of an unknown variable.
pub(crate) fn compile(text: &'static [u8]) -> Option<Template> {
    let text = str::from_utf8(text).ok()?;
    (!text.contains("$none")).then_some(Template(text))
}

/// Reads a value.
pub(crate) fn value(text: &'static str) -> Value<Template> {
    let purpose = crate::capture::value::Purpose::Send;
    Value::parse(text.as_bytes(), purpose, Some(BodyFormat::Php), &mut compile).unwrap()
}

/// The facts.
#[derive(Clone, Debug)]
pub(crate) struct Facts {
    pub(crate) method: &'static str,
    pub(crate) path: &'static str,
    pub(crate) query: &'static str,
    /// The values of nginx's variables.
    pub(crate) variables: Vec<(&'static str, &'static str)>,
    pub(crate) headers: Vec<(&'static str, &'static str)>,
    pub(crate) body: Vec<(&'static str, Found<'static>)>,
    pub(crate) answer: Vec<(&'static str, Found<'static>)>,
    pub(crate) answer_text: &'static str,
    pub(crate) status: u16,
    pub(crate) answer_headers: Vec<(&'static str, &'static str)>,
    pub(crate) is_applications: bool,
    pub(crate) is_refused: bool,
    pub(crate) session: Session<'static>,
}

impl Default for Facts {
    fn default() -> Self {
        Self {
            method: "GET",
            path: "/",
            query: "",
            variables: Vec::new(),
            headers: Vec::new(),
            body: Vec::new(),
            answer: Vec::new(),
            answer_text: "",
            status: 200,
            answer_headers: Vec::new(),
            is_applications: true,
            is_refused: false,
            session: Session::None,
        }
    }
}

impl Facts {
    fn set_cookies(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        let headers = self.answer_headers.iter().filter(|(name, _)| *name == "set-cookie");
        headers.filter_map(|(_, value)| cookie_pairs(value.as_bytes()).next())
    }
}

impl Exchange for Facts {
    type Text = Template;

    fn method(&self) -> &[u8] {
        self.method.as_bytes()
    }

    fn path(&self) -> Option<&[u8]> {
        Some(self.path.as_bytes())
    }

    fn query(&self) -> &[u8] {
        self.query.as_bytes()
    }

    fn text(&self, text: &Template) -> &[u8] {
        let Some(name) = text.0.strip_prefix('$') else { return text.0.as_bytes() };
        let name = name.trim_matches(['{', '}']);
        let found = self.variables.iter().find(|(known, _)| *known == name);
        found.map_or(&[], |(_, value)| value.as_bytes())
    }

    fn header(&self, name: &str) -> Option<&[u8]> {
        let found = self.headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_bytes())
    }

    fn cookies(&self) -> impl Iterator<Item = &[u8]> {
        let cookies = self.headers.iter().filter(|(name, _)| name.eq_ignore_ascii_case("cookie"));
        cookies.map(|(_, value)| value.as_bytes())
    }

    fn body(&self, _: BodyFormat, field: &Field, _: bool) -> Found<'_> {
        let mut body = self.body.iter();
        let found = body.find(|(name, _)| *name == field.as_str() || *name == "*");
        found.map_or(Found::Absent, |(_, found)| *found)
    }

    fn answer(&self, field: &Field) -> Found<'_> {
        let found = self.answer.iter().find(|(name, _)| *name == field.as_str());
        found.map_or(Found::Absent, |(_, found)| *found)
    }

    fn answer_has(&self, text: &[u8]) -> bool {
        self.answer_text.as_bytes().windows(text.len()).any(|part| part == text)
    }

    fn status(&self) -> u16 {
        self.status
    }

    fn answer_header(&self, name: &str) -> Option<&[u8]> {
        let mut headers = self.answer_headers.iter();
        let found = headers.find(|(known, _)| known.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_bytes())
    }

    fn location(&self) -> &[u8] {
        self.answer_header("location").unwrap_or_default()
    }

    fn set_cookie(&self, name: &Name) -> Option<&[u8]> {
        let is_it = |(known, value): &(&[u8], &[u8])| name.matches(known) && !value.is_empty();
        self.set_cookies().find(is_it).map(|(_, value)| value)
    }

    fn clears_cookie(&self, name: &Name) -> bool {
        self.set_cookies().any(|(known, value)| name.matches(known) && value.is_empty())
    }

    fn is_applications(&self) -> bool {
        self.is_applications
    }

    fn is_refused(&self) -> bool {
        self.is_refused
    }

    fn is_hung_up(&self) -> bool {
        matches!(self.status, 0 | 499)
    }

    fn session(&self) -> Session<'_> {
        self.session.clone()
    }
}
