//! The account that a login's body names, and nothing else of it: a password stands beside it.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use zeroize::Zeroizing;

/// The longest body that is looked into.
pub const MAX_BODY: usize = 4096;

/// What is wrong with the name of a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldError {
    /// It is empty.
    Empty,
    /// What has such a name is a secret.
    Secret,
    /// It has a variable.
    Variable,
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Empty => "a field's name is missing",
            Self::Secret => "what has such a name is a secret, and no user",
            Self::Variable => "a field's name cannot contain variables",
        })
    }
}

/// Names of fields, the first that has a value first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fields(Box<[Box<str>]>);

impl Fields {
    /// Reads `login_id,id`.
    ///
    /// # Errors
    /// What is wrong with a name.
    pub fn parse(text: &str) -> Result<Self, FieldError> {
        let check = |name: &str| match name {
            "" => Err(FieldError::Empty),
            name if name.contains('$') => Err(FieldError::Variable),
            name if is_secret(name) => Err(FieldError::Secret),
            name => Ok(name.into()),
        };
        Ok(Self(text.split(',').map(check).collect::<Result<_, _>>()?))
    }

    /// The fields of those names.
    pub fn of(names: &[&str]) -> Self {
        Self(names.iter().map(|name| Box::from(*name)).collect())
    }

    /// Both's fields.
    pub fn with(&self, other: &Self) -> Self {
        let new = other.0.iter().filter(|name| !self.0.contains(name));
        Self(self.0.iter().chain(new).cloned().collect())
    }

    /// The field of that name.
    ///
    /// # Errors
    /// It is another one's name for some applications, which take `Login.ID` for `login_id`.
    fn place(&self, name: &str) -> Result<Option<usize>, Ambiguous> {
        let own = self.0.iter().position(|own| **own == *name);
        let like = own.is_none() && self.0.iter().any(|own| canonical(own) == canonical(name));
        if like { Err(Ambiguous) } else { Ok(own) }
    }
}

/// The body says different things to different applications.
#[derive(Debug)]
struct Ambiguous;

impl fmt::Display for Ambiguous {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ambiguous")
    }
}

/// A name without what some applications do not look at: case, blanks, and which sign it has between
/// letters and digits.
fn canonical(name: &str) -> String {
    let sign = |c: char| if c.is_alphanumeric() { c } else { '_' };
    let name: String = name.to_lowercase().chars().map(sign).collect();
    name.trim_matches('_').to_owned()
}

/// Whether a field of that name may hold a secret: the names, and parts of names, under which
/// applications take passwords, tokens and second factors.
pub(crate) fn is_secret(name: &str) -> bool {
    const PARTS: [&str; 9] = [
        "passw",
        "passphrase",
        "passcode",
        "passkey",
        "pwd",
        "psw",
        "secret",
        "token",
        "credential",
    ];
    const WORDS: [&str; 9] =
        ["pass", "pin", "otp", "totp", "code", "mfa", "key", "answer", "private"];
    let name = canonical(name);
    let mut words = name.split('_').map(|word| word.trim_end_matches(|c: char| c.is_ascii_digit()));
    PARTS.iter().any(|part| name.contains(part)) || words.any(|word| WORDS.contains(&word))
}

/// What a body says in some fields. It is overwritten when it is dropped: people type passwords into
/// the wrong field.
#[derive(Clone, Debug, Default)]
pub struct Values {
    fields: Vec<(Box<str>, Zeroizing<String>)>,
}

impl Values {
    /// Reads the fields of a whole body: of a form where `content_type` says
    /// `application/x-www-form-urlencoded`, else of a JSON object. Where applications could read it in
    /// different ways, there is nothing in it: a mistake anywhere, a field twice, a name that is one only
    /// for some.
    pub fn read(content_type: &[u8], body: &[u8], fields: &Fields) -> Self {
        let mut found = vec![None; fields.0.len()];
        let media_type = content_type.split(|b| *b == b';').next().unwrap_or_default().trim_ascii();
        let whole = if media_type.eq_ignore_ascii_case(b"application/x-www-form-urlencoded") {
            read_form(body, fields, &mut found).is_ok()
        } else {
            read_json(body, fields, &mut found).is_ok()
        };
        let fields = fields.0.iter().cloned().zip(found).filter(|_| whole);
        let fields = fields.filter_map(|(name, value)| Some((name, value?)));
        Self { fields: fields.filter(|(_, value)| !value.trim().is_empty()).collect() }
    }

    /// The field of that name, where it has a value.
    pub fn get(&self, name: &str) -> Option<&str> {
        let found = self.fields.iter().find(|(own, _)| **own == *name);
        found.map(|(_, value)| value.trim())
    }

    /// The first of the fields that has a value.
    pub fn first(&self, fields: &Fields) -> Option<&str> {
        let value = |name| self.fields.iter().find(|(own, _)| own == name).map(|(_, value)| value);
        fields.0.iter().find_map(value).map(|value| value.trim())
    }
}

type Found = [Option<Zeroizing<String>>];

fn read_form(body: &[u8], fields: &Fields, found: &mut Found) -> Result<(), Ambiguous> {
    let mut seen = vec![false; fields.0.len()];
    for pair in body.split(|b| *b == b'&') {
        let end = pair.iter().position(|b| *b == b'=').unwrap_or(pair.len());
        let (name, value) = pair.split_at(end);
        // Values are decoded only where they are wanted.
        let Some((name, _)) = form_urlencoded::parse(name).next() else { continue };
        if let Some(place) = fields.place(&name)? {
            if std::mem::replace(&mut seen[place], true) {
                return Err(Ambiguous);
            }
            // As the value of an empty name.
            let value = form_urlencoded::parse(value).next().map(|(_, value)| value.into_owned());
            found[place] = value.map(Zeroizing::new);
        }
    }
    Ok(())
}

fn read_json(body: &[u8], fields: &Fields, found: &mut Found) -> serde_json::Result<()> {
    let mut json = serde_json::Deserializer::from_slice(body);
    json.deserialize_map(Object { fields, found })?;
    json.end()
}

/// A JSON object of which only some fields are read.
struct Object<'f> {
    fields: &'f Fields,
    found: &'f mut Found,
}

impl<'de> Visitor<'de> for Object<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut seen = vec![false; self.fields.0.len()];
        while let Some(place) = map.next_key_seed(Place(self.fields))? {
            match place {
                Some(place) if std::mem::replace(&mut seen[place], true) => {
                    return Err(A::Error::custom(Ambiguous));
                }
                Some(place) => self.found[place] = map.next_value_seed(Text)?,
                None => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(())
    }
}

/// A key: the place of the field of that name.
struct Place<'f>(&'f Fields);

impl<'de> DeserializeSeed<'de> for Place<'_> {
    type Value = Option<usize>;

    fn deserialize<D: Deserializer<'de>>(self, key: D) -> Result<Self::Value, D::Error> {
        key.deserialize_str(self)
    }
}

impl Visitor<'_> for Place<'_> {
    type Value = Option<usize>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E: Error>(self, key: &str) -> Result<Self::Value, E> {
        self.0.place(key).map_err(E::custom)
    }
}

/// A text; nothing of any other value.
struct Text;

impl<'de> DeserializeSeed<'de> for Text {
    type Value = Option<Zeroizing<String>>;

    fn deserialize<D: Deserializer<'de>>(self, value: D) -> Result<Self::Value, D::Error> {
        value.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Text {
    type Value = Option<Zeroizing<String>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_str<E>(self, value: &str) -> Result<Self::Value, E> {
        Ok(Some(Zeroizing::new(value.to_owned())))
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(None)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FORM: &[u8] = b"application/x-www-form-urlencoded; charset=utf-8";

    fn first(content_type: &[u8], body: &str, fields: &str) -> Option<String> {
        let fields = Fields::parse(fields).unwrap();
        Values::read(content_type, body.as_bytes(), &fields).first(&fields).map(str::to_owned)
    }

    #[test]
    fn the_first_field_with_a_value_counts() {
        for (body, account) in [
            (r#"{"login_id":"ann","password":"5ecret"}"#, Some("ann")),
            (r#"{"id":"i","login_id":"","device_id":"","token":""}"#, Some("i")),
            (r#" {"password":"\"login_id\":\"x\"","login\u005fid":"a\u00e9\"b"} "#, Some("aé\"b")),
            (r#"{"login_id":7,"id":"i"}"#, Some("i")),
            (r#"{"login_id":{"login_id":"no"},"deep":{"id":"no"},"list":["id",{"id":1}]}"#, None),
            (r#"{"login_id":"  ann ","password":""}"#, Some("ann")),
            (r#"["login_id"]"#, None),
            ("{", None),
            ("", None),
        ] {
            assert_eq!(first(b"", body, "login_id,id").as_deref(), account, "{body}");
            assert_eq!(first(b"text/plain", body, "login_id,id").as_deref(), account, "{body}");
            assert_eq!(first(FORM, body, "login_id,id"), None, "{body}");
        }
        for (body, account) in [
            ("login_id=a%40b.c&password=5ecret", Some("a@b.c")),
            ("password=login_id=no&id=x+y", Some("x y")),
            ("login%5Fid=ann", Some("ann")),
            ("login_id", None),
            ("", None),
        ] {
            assert_eq!(first(FORM, body, "login_id,id").as_deref(), account, "{body}");
            assert_eq!(first(b"application/json", body, "login_id,id"), None, "{body}");
        }
        assert_eq!(first(FORM, "user%5Blogin%5D=ann", "user[login]").as_deref(), Some("ann"));
    }

    #[test]
    fn what_applications_could_read_in_another_way_is_nothing() {
        for body in [
            r#"{"login_id":"victim","login_id":"me"}"#,
            r#"{"login_id":"victim","Login_ID":"me"}"#,
            r#"{"login_id":"victim","\ud800":"","login_id":"me"}"#,
            r#"{"login_id":"victim"} {"login_id":"me"}"#,
            r#"{"login_id":"victim","password":"unfinish"#,
            r#"{"login_id":"victim","id":{"a":}}"#,
        ] {
            assert_eq!(first(b"", body, "login_id,id"), None, "{body}");
        }
        for body in [
            "login_id=victim&login_id=me",
            "login_id=victim&+login_id=me",
            "login_id=victim&login.id=me",
            "login_id=victim&LOGIN%20ID=me",
            "login_id=victim&login_id%00=me",
        ] {
            assert_eq!(first(FORM, body, "login_id"), None, "{body}");
        }
        let part =
            "--x\r\nContent-Disposition: form-data; name=\"p\"\r\n\r\npw&login_id=no&z\r\n--x--";
        assert_eq!(first(b"multipart/form-data; boundary=x", part, "login_id"), None);
    }

    #[test]
    fn no_bytes_make_it_panic() {
        let fields = Fields::parse("login_id").unwrap();
        for body in [&b"{\"login_id\":\"\xff\"}"[..], b"login_id=%ff%", b"\xff\x00=&&=", b"{\x00"] {
            for content_type in [&b""[..], FORM] {
                let values = Values::read(content_type, body, &fields);
                assert!(values.first(&fields).is_none_or(|value| value.contains('\u{fffd}')));
            }
        }
        let deep = "{\"a\":".repeat(100_000);
        assert!(Values::read(b"", deep.as_bytes(), &fields).first(&fields).is_none());
    }

    #[test]
    fn passwords_are_no_users() {
        for name in ["password", "Passwd", "new_password", "user[password]", "pwd", "token", "code"]
        {
            assert_eq!(Fields::parse(name), Err(FieldError::Secret), "{name}");
        }
        assert_eq!(Fields::parse("login_id,"), Err(FieldError::Empty));
        assert_eq!(Fields::parse("$arg_user"), Err(FieldError::Variable));
        assert!(Fields::parse("login_id,id,username,user[login],log,email,passenger").is_ok());
    }
}
