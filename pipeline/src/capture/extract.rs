//! What rules want of a request's body and of its answer, read as the bytes pass.
//!
//! Nothing is kept but the wanted values. A body is read as the rule says that the application reads
//! it, whatever the client's `Content-Type` claims; where the application could read something else
//! than what stands here, the value is [`Found::Unreadable`], never a guess.
//!
//! [`BodyReader`] reads a request's body: as JSON, as PHP's or as Rails' form. [`AnswerReader`] reads an
//! answer: fields of its JSON, and [`Text`]s. Both are bound by [`MAX_SCANNED`], [`MAX_KEPT`] and the
//! [`BUDGET`] of all requests together.

use std::fmt;
use std::rc::Rc;

mod answer;
mod body;
mod form;
mod json;
mod kept;
mod multipart;
mod text;
mod xmlrpc;

pub use answer::{AnswerReader, Encoding};
pub use body::{BodyReader, Head};
pub use form::{form_text, php_argument, php_cookie_name, php_has, rails_query_has};
pub use kept::{BUDGET, Budget, MAX_KEPT, Room};
pub use text::{MAX_TEXT_SCANNED, Text, TextError};

use kept::Kept;

/// How much of a body is looked at, in bytes; a longer one is unreadable.
pub const MAX_SCANNED: usize = 1 << 20;

/// The most fields that are read of one body; more are unreadable.
pub const MAX_FIELDS: usize = 64;

/// The most steps of a field, as `a.b[]` has three.
pub const MAX_STEPS: usize = 8;

/// The longest field, in bytes as it is written in a rule.
const MAX_FIELD: usize = 256;

/// How an application reads a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyFormat {
    /// As one JSON value, under any `Content-Type`; what follows it is ignored.
    Json,
    /// As PHP fills `$_POST`: by `Content-Type` up to the first `;`, `,` or blank, and only of a POST.
    Php,
    /// As Rails fills `params`: forms, and JSON where the `Content-Type` says so, if nothing follows its value.
    Rails,
    /// As a call of XML-RPC, under any `Content-Type`.
    XmlRpc,
}

impl BodyFormat {
    /// All formats.
    pub const ALL: [Self; 4] = [Self::Json, Self::Php, Self::Rails, Self::XmlRpc];

    /// The name of `body=`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Json => "json",
            Self::Php => "php",
            Self::Rails => "rails",
            Self::XmlRpc => "xmlrpc",
        }
    }

    /// The format of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|format| format.name() == name)
    }
}

/// What is wrong with a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldError {
    /// It, or one of its steps, is empty.
    Empty,
    /// It has a variable.
    Variable,
    /// It is too long, or has too many steps.
    TooLong,
    /// `[` and `]` do not stand where the format has them.
    Bracket,
    /// It has a control byte.
    Control,
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("a field's name is missing"),
            Self::Variable => f.write_str("a field's name cannot contain variables"),
            Self::TooLong => write!(
                f,
                "a field must not be longer than {MAX_FIELD} bytes or have more than {MAX_STEPS} steps"
            ),
            Self::Bracket => f.write_str(
                "\"[]\" follows a name, as in \"ids[]\"; in forms also \"[name]\", as in \"user[login]\"",
            ),
            Self::Control => f.write_str("a field's name cannot contain control characters"),
        }
    }
}

/// One step from a body's value to a field.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    /// The member of that name.
    Name(Box<str>),
    /// The first element that has the rest.
    Each,
}

/// A field as a rule names it: `a.b` or `a[]` of JSON, the literal name of a form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field(Rc<FieldParts>);

#[derive(Debug, PartialEq, Eq)]
struct FieldParts {
    text: Box<str>,
    steps: Box<[Step]>,
}

impl Field {
    /// Reads a field of a body of that format; the fields of answers are of [`BodyFormat::Json`].
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str, format: BodyFormat) -> Result<Self, FieldError> {
        if text.is_empty() {
            return Err(FieldError::Empty);
        }
        if text.contains('$') {
            return Err(FieldError::Variable);
        }
        if text.contains(char::is_control) {
            return Err(FieldError::Control);
        }
        let steps = match format {
            BodyFormat::Json => json_steps(text)?,
            BodyFormat::Php => form::php_steps(text)?,
            BodyFormat::Rails => form::rails_steps(text)?,
            BodyFormat::XmlRpc => xmlrpc::steps(text)?,
        };
        if text.len() > MAX_FIELD || steps.len() > MAX_STEPS {
            return Err(FieldError::TooLong);
        }
        Ok(Self(Rc::new(FieldParts { text: text.into(), steps: steps.into() })))
    }

    /// As it is written in the rule.
    pub fn as_str(&self) -> &str {
        &self.0.text
    }

    fn steps(&self) -> &[Step] {
        &self.0.steps
    }
}

/// The steps of `a.b[].c`.
fn json_steps(text: &str) -> Result<Vec<Step>, FieldError> {
    let mut steps = Vec::new();
    for part in text.split('.') {
        let name = part.trim_end_matches("[]");
        if name.is_empty() {
            return Err(FieldError::Empty);
        }
        if name.contains(['[', ']']) {
            return Err(FieldError::Bracket);
        }
        steps.push(Step::Name(name.into()));
        steps.extend((0..(part.len() - name.len()) / 2).map(|_| Step::Each));
    }
    Ok(steps)
}

/// Fields that are wanted of one body or answer.
#[derive(Clone, Debug)]
pub struct Wanted {
    format: BodyFormat,
    fields: Rc<[Field]>,
}

impl Wanted {
    /// Fields of a body of that format; a field may be named more than once.
    pub fn new<'f>(format: BodyFormat, fields: impl IntoIterator<Item = &'f Field>) -> Self {
        let mut own: Vec<Field> = Vec::new();
        for field in fields {
            if !own.contains(field) {
                own.push(field.clone());
            }
        }
        Self { format, fields: own.into() }
    }

    /// How the body is read.
    pub fn format(&self) -> BodyFormat {
        self.format
    }

    /// The fields, each once.
    pub fn fields(&self) -> &[Field] {
        &self.fields
    }
}

/// What rules want to know of one exchange.
#[derive(Clone, Debug, Default)]
pub struct Reads {
    /// Of the request's body; of several formats where rules for the same request differ in it.
    pub bodies: Vec<Wanted>,
    /// Of the JSON of the answer.
    pub answer: Option<Wanted>,
    /// Bytes that may be in the answer.
    pub texts: Vec<Text>,
}

impl Reads {
    /// Whether nothing is wanted.
    pub fn is_empty(&self) -> bool {
        !self.wants_body() && !self.wants_answer()
    }

    /// Whether something of the request's body is wanted.
    pub fn wants_body(&self) -> bool {
        !self.bodies.is_empty()
    }

    /// Whether something of the answer is wanted.
    pub fn wants_answer(&self) -> bool {
        self.answer.is_some() || !self.texts.is_empty()
    }
}

/// What a body says in a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found<'v> {
    /// The body did not come, or not all of it.
    Unread,
    /// Applications could read different things there.
    Unreadable,
    /// The application reads no value there; in JSON also where there is a list or an object.
    Absent,
    /// The value, which may be empty; without control characters.
    Value(&'v str),
}

impl<'v> Found<'v> {
    /// The value, if there is one.
    pub fn value(self) -> Option<&'v str> {
        match self {
            Self::Value(value) => Some(value),
            _ => None,
        }
    }
}

/// What a body says in the wanted fields. It is overwritten when it is dropped: people type passwords
/// into the wrong field.
#[derive(Debug, Default)]
pub struct Values {
    fields: Rc<[Field]>,
    slots: Vec<Slot>,
    state: State,
}

/// How far a body has been read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    /// Parts of it may still come.
    #[default]
    Reading,
    /// It came as a whole, and says what stands in the slots.
    Read,
    /// It came, but says different things to different readers.
    Unreadable,
}

/// What was found of one field so far.
#[derive(Debug, Default)]
enum Slot {
    #[default]
    Absent,
    Unreadable,
    /// A text.
    Text(Kept),
    /// A JSON number or boolean, as it is written.
    Scalar(Kept),
}

impl Values {
    fn new(wanted: &Wanted) -> Self {
        let slots = wanted.fields.iter().enumerate().map(|(i, _)| match i {
            ..MAX_FIELDS => Slot::Absent,
            _ => Slot::Unreadable,
        });
        Self { fields: Rc::clone(&wanted.fields), slots: slots.collect(), state: State::Reading }
    }

    /// Whether the body has been read to its end, or to where it is known to be unreadable.
    pub fn is_read(&self) -> bool {
        self.state != State::Reading
    }

    /// What the field of that name says, JSON numbers and booleans as they are written; `Unread` where it
    /// was not wanted.
    pub fn get(&self, field: &str) -> Found<'_> {
        let Some(place) = self.fields.iter().position(|own| own.as_str() == field) else {
            return Found::Unread;
        };
        match (self.state, self.slots.get(place)) {
            (State::Reading, _) => Found::Unread,
            (State::Unreadable, _) | (_, None | Some(Slot::Unreadable)) => Found::Unreadable,
            (_, Some(Slot::Text(kept) | Slot::Scalar(kept))) => kept.text(),
            (_, Some(Slot::Absent)) => Found::Absent,
        }
    }

    /// As [`get`](Self::get), for a name: readers differ on whether a number is one, so that it is
    /// unreadable.
    pub fn name(&self, field: &str) -> Found<'_> {
        let scalar =
            |(own, slot): (&Field, &Slot)| own.as_str() == field && matches!(slot, Slot::Scalar(_));
        let is_scalar = self.fields.iter().zip(&self.slots).any(scalar);
        if is_scalar && self.state == State::Read { Found::Unreadable } else { self.get(field) }
    }

    fn give_up(&mut self) {
        self.state = State::Unreadable;
        self.slots = Vec::new();
    }
}

#[cfg(test)]
mod applications;

#[cfg(test)]
mod tests {
    use super::*;

    const URL_ENCODED: &str = "application/x-www-form-urlencoded";

    /// What a body says in a field, the same in chunks of any size.
    fn read(format: BodyFormat, content_type: &str, body: &[u8], field: &str) -> String {
        let field = Field::parse(field, format).unwrap();
        let wanted = Wanted::new(format, [&field]);
        let types = [content_type.as_bytes()];
        let head = Head { method: b"POST", content_types: &types, length: None };
        let read = |size: usize| {
            let mut reader = BodyReader::new(&wanted, &head, &Room::new(&BUDGET));
            body.chunks(size).for_each(|chunk| reader.push(chunk));
            reader.finish();
            assert!(reader.values().is_read());
            match reader.values().get(field.as_str()) {
                Found::Value(value) => format!("={value}"),
                other => format!("{other:?}"),
            }
        };
        let whole = read(body.len().max(1));
        let sizes = if body.len() < 500 { &[1, 2, 3, 7][..] } else { &[1000, 4096] };
        for size in sizes {
            assert_eq!(read(*size), whole, "{size} {}", String::from_utf8_lossy(body));
        }
        whole
    }

    #[track_caller]
    fn assert_json(body: impl AsRef<[u8]>, field: &str, found: &str) {
        let body = body.as_ref();
        let text = String::from_utf8_lossy(body);
        // Whatever the client calls it.
        assert_eq!(read(BodyFormat::Json, URL_ENCODED, body, field), found, "{text}");
        assert_eq!(read(BodyFormat::Rails, "application/json", body, field), found, "{text}");
    }

    #[track_caller]
    fn assert_php(body: impl AsRef<[u8]>, field: &str, found: &str) {
        let body = body.as_ref();
        let text = String::from_utf8_lossy(body);
        assert_eq!(read(BodyFormat::Php, URL_ENCODED, body, field), found, "{text}");
    }

    #[track_caller]
    fn assert_rails(body: impl AsRef<[u8]>, field: &str, found: &str) {
        let body = body.as_ref();
        let text = String::from_utf8_lossy(body);
        assert_eq!(read(BodyFormat::Rails, URL_ENCODED, body, field), found, "{text}");
    }

    #[test]
    fn json_says_what_all_readers_find() {
        for (body, found) in [
            (r#"{"id":"ann","password":"5ecret"}"#, "=ann"),
            (" \r\n\t{ \"x\" : [ 1 , {} , [] ] , \"id\" : \"ann\" } ", "=ann"),
            (r#"{"i\u0064":"\u0061\"\\\/\u00e9\ud83d\ude00n"}"#, "=a\"\\/é\u{1f600}n"),
            (r#"{"id":"é€😀"}"#, "=é€😀"),
            (r#"{"id":""}"#, "="),
            (r#"{"id":-1.5e+3}"#, "=-1.5e+3"),
            (r#"{"id":0}"#, "=0"),
            (r#"{"id":true}"#, "=true"),
            (r#"{"id":null}"#, "Absent"),
            (r#"{"id":{"id":"no"}}"#, "Absent"),
            (r#"{"id":["no"]}"#, "Absent"),
            (r#"{"deep":{"id":"no"},"list":["id",{"id":1}]}"#, "Absent"),
            (r#"{"idx":"no","i":"no"}"#, "Absent"),
            (r#"["id"]"#, "Absent"),
            (r#""id""#, "Absent"),
            ("12", "Absent"),
            ("null", "Absent"),
            ("", "Absent"),
            ("  ", "Absent"),
        ] {
            assert_json(body, "id", found);
        }
    }

    #[test]
    fn rails_reads_json_only_to_its_end() {
        for (body, found) in [
            (r#"{"id":"ann"} {"id":"bob"}"#, "Unreadable"),
            (r#"{"id":"ann"}trailing"#, "Unreadable"),
            (r#"{"id":"ann"},"#, "Unreadable"),
            ("{\"id\":\"ann\"}\0", "Unreadable"),
            ("{\"id\":\"ann\"} \r\n\t", "=ann"),
        ] {
            assert_eq!(read(BodyFormat::Json, "", body.as_bytes(), "id"), "=ann", "{body}");
            let rails = read(BodyFormat::Rails, "application/json", body.as_bytes(), "id");
            assert_eq!(rails, found, "{body}");
        }
    }

    #[test]
    fn json_that_readers_differ_on_is_unreadable() {
        for body in [
            &br#"{"id":"victim","id":"me"}"#[..],
            br#"{"id":"victim","Id":"me"}"#,
            br#"{"id":"victim","i\u0064":"me"}"#,
            br#"{"ID":"victim"}"#,
            br#"{"id\u0000":"victim"}"#,
            br#"{"x\u0001":"","id":"victim"}"#,
            br#"{"id":"vic\u0000tim"}"#,
            br#"{"id":"vic\ntim"}"#,
            b"{\"id\":\"vic\ntim\"}",
            b"{\"id\":\"\xff\"}",
            b"{\"id\":\"victim\",\"x\":\"\xc3\"}",
            b"{\"id\":\"victim\",\"x\":\"\xed\xa0\x80\"}",
            br#"{"id":"\ud800"}"#,
            br#"{"id":"victim","x":"\ud800x"}"#,
            br#"{"id":"victim","x":"\ud800\n"}"#,
            br#"{"id":"victim","x":"\ud800\ud800"}"#,
            br#"{"id":"victim","x":"\udc00"}"#,
            b"\xef\xbb\xbf{\"id\":\"victim\"}",
            b"\xff\xfe{\0\"\0i\0d\0\"\0:\0\"\0x\0\"\0}\0",
            b"{\0\"\0i\0d\0\"\0:\0\"\0x\0\"\0}\0",
            br#"{"id":"victim""#,
            br#"{"id":"victim"#,
            br#"{"id":"victim",}"#,
            br#"{"id":"victim" "x":1}"#,
            br#"{"id":"victim","x":01}"#,
            br#"{"id":"victim","x":1.}"#,
            br#"{"id":"victim","x":tru}"#,
            br#"{"id":"victim","x":{"a":}}"#,
            br#"{"id":"victim","x":[1,]}"#,
            br#"{"id":"victim","x":[1}"#,
            br#"{"id":"victim","x":"\x41"}"#,
            br#"{"id":"victim","x":"\u00g0"}"#,
            br#"{id:"victim"}"#,
            br#"{'id':'victim'}"#,
            br#"{"id":"victim"/**/}"#,
            b"id=victim",
            b"\0",
            b"-",
        ] {
            assert_json(body, "id", "Unreadable");
        }
        assert_json(r#"{"Login.ID":"victim"}"#, "login_id", "Unreadable");
        assert_json("{\"u\u{17f}er\":\"victim\"}", "user", "Unreadable");
        assert_json("{\"\u{212a}ey\":\"victim\"}", "key", "Unreadable");
        let deep = format!(r#"{{"id":"ann","x":{}1{}}}"#, "[".repeat(99), "]".repeat(99));
        assert_json(deep, "id", "=ann");
        let deep = format!(r#"{{"id":"ann","x":{}1{}}}"#, "[".repeat(100), "]".repeat(100));
        assert_json(deep, "id", "Unreadable");
    }

    #[test]
    fn fields_lie_in_objects_and_lists() {
        let body = r#"{"user":{"login":"ann","ids":[null,7,8],"x":{"login":"no"}},
            "rows":[{"a":"b"},{"name":"first"},{"name":"second"}],"m":[[],["x"]],"login":"no"}"#;
        for (field, found) in [
            ("user.login", "=ann"),
            ("user.ids[]", "=7"),
            ("rows[].name", "=first"),
            ("m[][]", "=x"),
            ("login", "=no"),
            ("user", "Absent"),
            ("user.login.x", "Absent"),
            ("rows", "Absent"),
            ("rows[]", "Absent"),
        ] {
            assert_eq!(read(BodyFormat::Json, "", body.as_bytes(), field), found, "{field}");
        }
        for body in [
            r#"{"a":{"b":"1"},"a":{"b":"2"}}"#,
            r#"{"a":{"b":"1"},"a":null}"#,
            r#"{"a":{"b":"1","b":"2"}}"#,
            r#"{"a":{"b":"1"},"A":{"b":"2"}}"#,
        ] {
            assert_eq!(read(BodyFormat::Json, "", body.as_bytes(), "a.b"), "Unreadable", "{body}");
        }
        // What is twice in another object concerns nobody.
        let body = r#"{"a":{"b":"1"},"c":{"a":1,"a":2,"b":1,"b":2},"d":1,"d":2}"#;
        assert_eq!(read(BodyFormat::Json, "", body.as_bytes(), "a.b"), "=1");
        assert_json(r#"{"user":{"login":"ann"}}"#, "user", "Absent");
        let body = br#"{"user":{"login":"ann"}}"#;
        assert_eq!(read(BodyFormat::Rails, "application/json", body, "user[login]"), "=ann");
    }

    #[test]
    fn forms_are_read_as_php_does() {
        for (body, found) in [
            ("log=ann&pwd=5ecret", "=ann"),
            ("pwd=log=no&log=x+y%40z", "=x y@z"),
            ("log=ann&log=bob", "=bob"),
            ("log%00z=ann", "=ann"),
            ("log%00z=ann&log=", "="),
            ("%20+log=ann", "=ann"),
            ("l%6fg=ann", "=ann"),
            ("log", "="),
            ("log&", "="),
            ("log=a%4", "=a%4"),
            ("log=a%4g%zz%", "=a%4g%zz%"),
            ("log=a=b", "=a=b"),
            ("log=a;log=b", "=a;log=b"),
            ("Log=no", "Absent"),
            ("log[]=no", "Unreadable"),
            ("log=ann&log[x]=no", "Unreadable"),
            ("log[x]=no&log=ann", "=ann"),
            ("=no&&log=ann", "=ann"),
            ("", "Absent"),
            ("log[=no", "Absent"),
            ("log=ann&log[]x=no", "Unreadable"),
            ("log=%ff", "Unreadable"),
            ("log=a%00b", "Unreadable"),
        ] {
            assert_php(body, "log", found);
        }
        for (body, field, found) in [
            ("user[login]=ann", "user[login]", "=ann"),
            ("user%5Blogin%5D=ann", "user[login]", "=ann"),
            ("user[login]=ann&user[login]=bob", "user[login]", "=bob"),
            ("user[login]=ann&user=bob", "user[login]", "Unreadable"),
            ("user=bob&user[login]=ann", "user[login]", "=ann"),
            ("user[login][x]=ann", "user[login]", "Unreadable"),
            ("user[login]x=ann", "user[login]", "=ann"),
            ("user[login=ann", "user[login]", "Absent"),
            ("user[login=ann", "user_login", "=ann"),
            ("user[login][z=ann", "user[login]", "Unreadable"),
            ("user[.=ann", "user__", "Unreadable"),
            ("a.b=ann", "a_b", "=ann"),
            ("a b=ann", "a.b", "=ann"),
            ("ids[]=1&ids[]=2", "ids[]", "=1"),
            ("ids=1&ids[]=2", "ids[]", "=2"),
            ("ids[]=1&ids=2", "ids[]", "Unreadable"),
            ("ids[ ]=1", "ids[]", "=1"),
            ("ids[0]=1", "ids[]", "Unreadable"),
            ("ids[]=1", "ids[0]", "Unreadable"),
            ("ids[]=1&ids[][x]=2", "ids[]", "Unreadable"),
        ] {
            assert_php(body, field, found);
        }
        let many = |count: usize| "x&".repeat(count) + "log=ann";
        assert_php(many(999), "log", "=ann");
        assert_php(many(1000), "log", "Unreadable");
        let form = |content_type: &str| read(BodyFormat::Php, content_type, b"log=ann", "log");
        for content_type in [
            "application/x-www-form-urlencoded; charset=utf-8",
            "APPLICATION/x-www-form-urlencoded,x",
            "application/x-www-form-urlencoded multipart/form-data",
        ] {
            assert_eq!(form(content_type), "=ann", "{content_type}");
        }
        for content_type in ["", "text/plain", "application/x-www-form-urlencoded\t;x"] {
            assert_eq!(form(content_type), "Absent", "{content_type}");
        }
    }

    #[test]
    fn forms_are_read_as_rails_does() {
        for (body, found) in [
            ("user[login]=ann&user[password]=5ecret", "=ann"),
            ("utf8=%E2%9C%93&user%5Blogin%5D=a+b", "=a b"),
            ("user[login]=", "="),
            ("user[login]", "Absent"),
            ("login=no", "Absent"),
            ("user[login]=ann&user[login]=bob", "Unreadable"),
            ("user[login]=ann&user=bob", "Unreadable"),
            ("user[login]=ann&user[]=bob", "Unreadable"),
            ("user[login]=ann&user[login][]=bob", "Unreadable"),
            ("user[login]=ann&[user][login]=bob", "Unreadable"),
            ("user[login]=ann&user[login]%00=bob", "Unreadable"),
            ("+user[login]=ann", "Unreadable"),
            ("user[login]=ann;user[login]=bob", "Unreadable"),
            ("user[login]=ann&x=%zz", "Unreadable"),
            ("user[login]=ann&x=%", "Unreadable"),
            ("user[login]=%ff", "Unreadable"),
        ] {
            assert_rails(body, "user[login]", found);
        }
        let form = |content_type: &str| read(BodyFormat::Rails, content_type, b"log=ann", "log");
        assert_eq!(form(""), "=ann");
        assert_eq!(form("text/plain"), "Absent");
        assert_eq!(form("application/vnd.api+json"), "Unreadable");
    }

    fn part(disposition: &str, value: &str) -> String {
        format!("--X\r\nContent-Disposition: form-data; {disposition}\r\n\r\n{value}\r\n")
    }

    #[test]
    fn multipart_is_read_where_all_read_it_alike() {
        const TYPE: &str = "multipart/form-data; boundary=X";
        let read_as = |content_type: &str, body: &str| {
            let php = read(BodyFormat::Php, content_type, body.as_bytes(), "log");
            let rails = read(BodyFormat::Rails, content_type, body.as_bytes(), "log");
            (php, rails)
        };
        let both = |found: &str| (found.to_owned(), found.to_owned());
        let ann = part("name=\"log\"", "ann");
        let file = part("name=\"f\"; filename=\"log\"", "no\r\n--\r\r\n-X\n");
        let form = format!("{}{file}{ann}--X--\r\n", part("name=\"pwd\"", "5ecret\r\n--Y"));
        for content_type in [
            TYPE,
            "Multipart/Form-Data;boundary=\"X\"",
            "multipart/form-data; charset=utf-8; boundary=X; x=y",
        ] {
            assert_eq!(read_as(content_type, &form), both("=ann"), "{content_type}");
        }
        let twice = format!("{ann}{}--X--", part("name=\"log\"", "bob"));
        assert_eq!(read_as(TYPE, &twice), ("=bob".to_owned(), "Unreadable".to_owned()));
        assert_eq!(read_as(TYPE, "--X--"), both("Absent"));
        let file = format!("{}{ann}--X--", part("name=\"log\"; filename=\"x\"", "no"));
        assert_eq!(read_as(TYPE, &file), ("=ann".to_owned(), "Unreadable".to_owned()));
        let inside = format!("{}--X--", part("name=\"log\"", "a---X--"));
        assert_eq!(read_as(TYPE, &inside), ("=a---X--".to_owned(), "Unreadable".to_owned()));
        let empty = format!("{}--X--", part("name=\"log\"", ""));
        assert_eq!(read_as(TYPE, &empty), both("="));
        for body in [
            String::new(),
            ann.clone(),
            format!("\r\n{ann}--X--"),
            format!("preamble\r\n{ann}--X--"),
            format!("{ann}--X--\r\n{}", part("name=\"log\"", "bob")),
            format!("{ann}--X-"),
            format!("{ann}--Xyz\r\n--X--"),
            format!("{}--X--", part("name=\"log\"", "ann\n--X\r\n")),
            format!("{}--X--", part("name=log", "ann")),
            format!("{}--X--", part("name=\"lo\\g\"", "ann")),
            format!("{}--X--", part("name=\"lo%67\"", "ann")),
            format!("{}--X--", part("name=\"log\"; name=\"pwd\"", "ann")),
            format!("{}--X--", part("name=\"log\"; filename*=utf-8''x", "ann")),
            format!("{}--X--", ann.replace("\r\n\r\n", "\r\n folded\r\n\r\n")),
            format!(
                "{}--X--",
                ann.replace("\r\n\r\n", "\r\nContent-Transfer-Encoding: base64\r\n\r\n")
            ),
            format!(
                "{}--X--",
                ann.replace("\r\n\r\n", "\r\nContent-Disposition: form-data\r\n\r\n")
            ),
            format!("{}--X--", ann.replace("\r\n\r\n", "\n\r\n")),
            "--X\r\n\r\nann\r\n--X--".to_owned(),
        ] {
            assert_eq!(read_as(TYPE, &body), both("Unreadable"), "{body}");
        }
        for content_type in [
            "multipart/form-data",
            "multipart/form-data; boundary=",
            "multipart/form-data; boundary=X,Y",
            "multipart/form-data; xboundary=Y; boundary=X",
            "multipart/form-data; boundary =X",
        ] {
            assert_eq!(read_as(content_type, &form), both("Unreadable"), "{content_type}");
        }
    }

    #[test]
    fn only_so_much_is_looked_at_and_kept() {
        for size in [4_200, 63 << 10, 65 << 10, 900 << 10] {
            let pad = "x".repeat(size);
            assert_json(format!(r#"{{"pad":"{pad}","id":"ann"}}"#), "id", "=ann");
            assert_json(format!(r#"{{"id":"ann","pad":"{pad}"}}"#), "id", "=ann");
            assert_json(format!(r#"{{"id":"ann"}}{}"#, " ".repeat(size)), "id", "=ann");
            assert_php(format!("pad={pad}&log=ann"), "log", "=ann");
            assert_php(format!("log=ann&{pad}=x"), "log", "=ann");
            assert_rails(format!("log=ann&pad={pad}"), "log", "=ann");
        }
        let pad = "x".repeat(MAX_SCANNED);
        assert_json(format!(r#"{{"id":"ann","pad":"{pad}"}}"#), "id", "Unreadable");
        assert_php(format!("log=ann&pad={pad}"), "log", "Unreadable");
        let followed = format!(r#"{{"id":"ann"}}{pad}"#);
        assert_eq!(read(BodyFormat::Json, "", followed.as_bytes(), "id"), "=ann");
        let long = "x".repeat(MAX_KEPT + 1);
        assert_json(format!(r#"{{"id":"{long}"}}"#), "id", "Unreadable");
        assert_php(format!("log={long}"), "log", "Unreadable");
        assert_php(format!("log={long}&log=ann"), "log", "=ann");
        assert_json(format!(r#"{{"id":{}}}"#, "1".repeat(65)), "id", "Unreadable");
    }

    #[test]
    fn a_reader_takes_little_and_all_of_them_no_more_than_the_budget() {
        static SMALL: Budget = Budget::new(100_000);
        let field = Field::parse("id", BodyFormat::Json).unwrap();
        let wanted = Wanted::new(BodyFormat::Json, [&field]);
        let head = Head { method: b"POST", content_types: &[], length: None };
        let slow = || {
            let mut reader = BodyReader::new(&wanted, &head, &Room::new(&SMALL));
            reader.push(br#"{"id":"ann"#);
            reader
        };
        let mut readers = vec![slow()];
        assert_eq!(readers[0].values().get("id"), Found::Unread);
        assert!(SMALL.used() < 1024, "{}", SMALL.used());
        readers.extend((0..1000).map(|_| slow()));
        assert!(SMALL.used() <= 100_000 && SMALL.refused() > 0);
        readers[0].push(b"\"}");
        assert_eq!(readers[0].values().get("id"), Found::Value("ann"));
        assert_eq!(readers[1000].values().get("id"), Found::Unreadable);
        drop(readers);
        assert_eq!(SMALL.used(), 0);
    }

    #[test]
    fn fields_are_checked() {
        use BodyFormat::{Json, Php, Rails};
        for (format, text, error) in [
            (Json, "", FieldError::Empty),
            (Json, "a..b", FieldError::Empty),
            (Json, "[]", FieldError::Empty),
            (Json, "a[b]", FieldError::Bracket),
            (Json, "a[", FieldError::Bracket),
            (Json, "$arg_user", FieldError::Variable),
            (Json, "a\nb", FieldError::Control),
            (Json, "a.b.c.d.e.f.g.h.i", FieldError::TooLong),
            (Php, "user[login", FieldError::Bracket),
            (Php, "user[login]x", FieldError::Bracket),
            (Php, " user", FieldError::Bracket),
            (Php, "[user]", FieldError::Empty),
            (Rails, "user]", FieldError::Bracket),
            (Rails, "user[]x", FieldError::Bracket),
        ] {
            assert_eq!(Field::parse(text, format), Err(error), "{text}");
            assert!(!error.to_string().is_empty());
        }
        assert_eq!(Field::parse("user[a.b]", Rails).unwrap().as_str(), "user[a.b]");
        let long = "a".repeat(MAX_FIELD + 1);
        assert_eq!(Field::parse(&long, Json), Err(FieldError::TooLong));
    }

    #[test]
    fn a_name_is_a_text() {
        let field = Field::parse("id", BodyFormat::Json).unwrap();
        let head = Head { method: b"POST", content_types: &[], length: None };
        let wanted = Wanted::new(BodyFormat::Json, [&field]);
        let mut reader = BodyReader::new(&wanted, &head, &Room::new(&BUDGET));
        reader.push(br#"{"id":7}"#);
        assert_eq!(reader.values().get(field.as_str()), Found::Value("7"));
        assert_eq!(reader.values().name(field.as_str()), Found::Unreadable);
    }

    #[test]
    fn php_reads_only_one_content_type_of_a_post() {
        let field = Field::parse("log", BodyFormat::Php).unwrap();
        let wanted = Wanted::new(BodyFormat::Php, [&field]);
        let read = |method: &[u8], content_types: &[&[u8]]| {
            let head = Head { method, content_types, length: None };
            let mut reader = BodyReader::new(&wanted, &head, &Room::new(&BUDGET));
            reader.push(b"log=ann");
            reader.finish();
            reader.values().get(field.as_str()).value().map(str::to_owned)
        };
        let form = URL_ENCODED.as_bytes();
        assert_eq!(read(b"POST", &[form]).as_deref(), Some("ann"));
        assert_eq!(read(b"POST", &[form, form]).as_deref(), Some("ann"));
        assert_eq!(read(b"POST", &[form, b"text/plain"]), None);
        assert_eq!(read(b"PUT", &[form]), None);
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        use std::io::Write;
        let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        out.write_all(bytes).unwrap();
        out.finish().unwrap()
    }

    #[test]
    fn answers_are_read_plain_and_compressed() {
        let field = Field::parse("user.id", BodyFormat::Json).unwrap();
        let text = Text::new(b"sorry").unwrap();
        let reads = Reads {
            bodies: Vec::new(),
            answer: Some(Wanted::new(BodyFormat::Json, [&field])),
            texts: vec![text],
        };
        let body = br#"{"user":{"id":"u1"},"error":"we are sorry"}"#;
        let read = |encoding: Encoding, body: &[u8], size: usize| {
            let mut reader = AnswerReader::new(&reads, encoding, &Room::new(&BUDGET));
            body.chunks(size).for_each(|chunk| reader.push(chunk));
            assert!(reader.get("user.id").value().is_none(), "not before its end");
            reader.finish();
            (format!("{:?}", reader.get("user.id")), reader.has(b"sorry"))
        };
        let good = ("Value(\"u1\")".to_owned(), Some(true));
        let bad = ("Unreadable".to_owned(), None);
        for size in [1, 5, 1000] {
            assert_eq!(read(Encoding::parse(b""), body, size), good);
            assert_eq!(read(Encoding::parse(b"GZIP"), &gzip(body), size), good);
            assert_eq!(read(Encoding::parse(b"br"), body, size), bad);
            assert_eq!(read(Encoding::Gzip, body, size), bad);
            let compressed = gzip(body);
            assert_eq!(read(Encoding::Gzip, &compressed[..compressed.len() - 20], size), bad);
        }
        let long =
            [br#"{"a":""#, &vec![b'x'; MAX_SCANNED][..], br#"","user":{"id":"u1"}}"#].concat();
        assert_eq!(read(Encoding::Plain, &long, 4096), ("Unreadable".to_owned(), Some(false)));
        assert_eq!(
            read(Encoding::Gzip, &gzip(&long), 4096),
            ("Unreadable".to_owned(), Some(false))
        );
        let bomb = gzip(&vec![b' '; 64 << 20]);
        assert_eq!(read(Encoding::Gzip, &bomb, 4096), ("Unreadable".to_owned(), Some(false)));
        let mut reader = AnswerReader::new(&reads, Encoding::Plain, &Room::new(&BUDGET));
        reader.push(body);
        reader.give_up();
        reader.finish();
        assert_eq!((reader.get("user.id"), reader.has(b"sorry")), (Found::Unreadable, None));
    }
}
