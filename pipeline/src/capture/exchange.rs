//! A request with its answer, as rules and decisions see it.

use std::borrow::Cow;

use crate::capture::cookie::Name;
use crate::capture::extract::{BodyFormat, Field, Found};
use crate::capture::identity::Identity;

/// A text of nginx that may have variables.
pub trait Text: 'static {
    /// The text, if it does not depend on the request.
    fn constant(&self) -> Option<&[u8]>;
    /// Whether a variable of the text is defined in the configuration (by `map`), whatever its name.
    fn has_own_variable(&self) -> bool;
}

/// The facts about a request and its answer that a decision needs.
pub trait Exchange {
    /// nginx's text with variables.
    type Text: Text;

    /// The method in the request line.
    fn method(&self) -> &[u8];
    /// The path in the request line, normalized, without the prefix; `None` if no rule can match it.
    fn path(&self) -> Option<&[u8]>;
    /// The query in the request line, without its question mark.
    fn query(&self) -> &[u8];
    /// The value of nginx's text; empty where it has none.
    fn text(&self, text: &Self::Text) -> &[u8];
    /// The request's header of that name, in any case; the first of several.
    fn header(&self, name: &str) -> Option<&[u8]>;
    /// The `Cookie` headers.
    fn cookies(&self) -> impl Iterator<Item = &[u8]>;
    /// A field of the request's body, as the application's parser reads it; with `is_name`, a number is no
    /// value.
    fn body(&self, format: BodyFormat, field: &Field, is_name: bool) -> Found<'_>;
    /// Whether the request's body may have that field, which includes that it is unknown.
    fn has_field(&self, format: BodyFormat, field: &Field) -> bool {
        self.body(format, field, false) != Found::Absent
    }
    /// A field of the JSON answer.
    fn answer(&self, field: &Field) -> Found<'_>;
    /// Whether these bytes are in the answer's first 64 KB.
    fn answer_has(&self, text: &[u8]) -> bool;
    /// The answer's status; 0 without an answer.
    fn status(&self) -> u16;
    /// The answer's header of that name, in any case.
    fn answer_header(&self, name: &str) -> Option<&[u8]>;
    /// The answer's `Location`; empty without one.
    fn location(&self) -> &[u8];
    /// The value of the cookie that the answer sets, where it is not empty and not expired.
    fn set_cookie(&self, name: &Name) -> Option<&[u8]>;
    /// Whether the answer clears a cookie of that name.
    fn clears_cookie(&self, name: &Name) -> bool;
    /// Whether the application itself gave this answer, and neither nginx nor a cache.
    fn is_applications(&self) -> bool;
    /// Whether nginx or the application has refused the request, even if an error page hides it.
    fn is_refused(&self) -> bool;
    /// Whether the client went away, or nginx stopped waiting, before the application's header came.
    fn is_hung_up(&self) -> bool;
    /// Whether the path in the request line is the normalized one or its ordinary encoding
    /// ([`is_ordinary`](crate::capture::path::is_ordinary)), and no header or argument overrides the method. Only then, and if the body does not override the method either, the application
    /// certainly sees the same path and method as the rules.
    fn is_exact(&self) -> bool {
        true
    }
    /// The session that the request belongs to.
    fn session(&self) -> Session<'_> {
        Session::None
    }
}

/// The session that a request belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Session<'e> {
    /// The request carries no token.
    None,
    /// It carries what may be a token to the application, but is not certainly one.
    Unreadable,
    /// It carries a token whose user is unknown; the name that stands for the session.
    Unknown(Cow<'e, [u8]>),
    /// It carries a token of this user, by that evidence.
    Bound(Cow<'e, [u8]>, Identity),
}
