//! The account that a login's body names, and nothing else of it: a password stands beside it.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
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
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Empty => "a field's name is missing",
            Self::Secret => "what has such a name is a secret, and no user",
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
            name if is_secret(name) => Err(FieldError::Secret),
            name => Ok(name.into()),
        };
        Ok(Self(text.split(',').map(check).collect::<Result<_, _>>()?))
    }

    /// Both's fields.
    pub fn with(&self, other: &Self) -> Self {
        let new = other.0.iter().filter(|name| !self.0.contains(name));
        Self(self.0.iter().chain(new).cloned().collect())
    }

    fn place(&self, name: &str) -> Option<usize> {
        self.0.iter().position(|own| **own == *name)
    }
}

/// Whether a field of that name may hold a secret: the names, and parts of names, under which
/// applications take passwords, tokens and second factors.
fn is_secret(name: &str) -> bool {
    const PARTS: [&str; 8] =
        ["passw", "passphrase", "passcode", "pwd", "secret", "token", "credential", "private"];
    const NAMES: [&str; 8] = ["pass", "pin", "otp", "totp", "code", "mfa", "key", "answer"];
    let name = name.to_ascii_lowercase();
    // As in "user[password]".
    let inner = name.rsplit('[').next().unwrap_or_default().trim_end_matches(']');
    PARTS.iter().any(|part| name.contains(part)) || NAMES.contains(&inner)
}

/// What a body says in some fields. It is overwritten when it is dropped: people type passwords into
/// the wrong field.
#[derive(Clone, Debug, Default)]
pub struct Values {
    fields: Vec<(Box<str>, Zeroizing<String>)>,
}

impl Values {
    /// Reads the fields of a whole body, a JSON object or a form (`application/x-www-form-urlencoded`).
    /// Of a field that is there twice the last counts, as for most applications. What comes before a
    /// mistake counts.
    pub fn read(body: &[u8], fields: &Fields) -> Self {
        let mut found = vec![None; fields.0.len()];
        if body.trim_ascii_start().starts_with(b"{") {
            let mut json = serde_json::Deserializer::from_slice(body);
            // What is no JSON ends there.
            let _ = json.deserialize_map(Object { fields, found: &mut found });
        } else {
            read_form(body, fields, &mut found);
        }
        let fields = fields.0.iter().cloned().zip(found);
        let fields = fields.filter_map(|(name, value)| Some((name, value?)));
        Self { fields: fields.filter(|(_, value)| !value.trim().is_empty()).collect() }
    }

    /// The first of the fields that has a value.
    pub fn first(&self, fields: &Fields) -> Option<&str> {
        let value = |name| self.fields.iter().find(|(own, _)| own == name).map(|(_, value)| value);
        fields.0.iter().find_map(value).map(|value| value.trim())
    }
}

type Found = [Option<Zeroizing<String>>];

fn read_form(body: &[u8], fields: &Fields, found: &mut Found) {
    for pair in body.split(|b| *b == b'&') {
        let end = pair.iter().position(|b| *b == b'=').unwrap_or(pair.len());
        let (name, value) = pair.split_at(end);
        // Values are decoded only where they are wanted.
        let Some((name, _)) = form_urlencoded::parse(name).next() else { continue };
        if let Some(place) = fields.place(&name) {
            // As the value of an empty name.
            let value = form_urlencoded::parse(value).next().map(|(_, value)| value.into_owned());
            found[place] = value.map(Zeroizing::new);
        }
    }
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
        while let Some(place) = map.next_key_seed(Place(self.fields))? {
            match place {
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

    fn visit_str<E>(self, key: &str) -> Result<Self::Value, E> {
        Ok(self.0.place(key))
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

    fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
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

    fn first(body: &str, fields: &str) -> Option<String> {
        let fields = Fields::parse(fields).unwrap();
        Values::read(body.as_bytes(), &fields).first(&fields).map(str::to_owned)
    }

    #[test]
    fn the_first_field_with_a_value_counts() {
        for (body, account) in [
            (r#"{"login_id":"ann","password":"5ecret"}"#, Some("ann")),
            (r#"{"id":"i","login_id":"","device_id":"","token":""}"#, Some("i")),
            (r#" {"password":"\"login_id\":\"x\"","login\u005fid":"a\u00e9\"b"}"#, Some("aé\"b")),
            (r#"{"login_id":"old","login_id":"new"}"#, Some("new")),
            (r#"{"login_id":7,"id":"i"}"#, Some("i")),
            (r#"{"login_id":{"login_id":"no"},"deep":{"id":"no"},"list":["id",{"id":1}]}"#, None),
            (r#"{"login_id":"  ann ","password":"unfinish"#, Some("ann")),
            (r#"["login_id"]"#, None),
            ("login_id=a%40b.c&password=5ecret", Some("a@b.c")),
            ("password=login_id=no&id=x+y", Some("x y")),
            ("login%5Fid=ann", Some("ann")),
            ("login_id", None),
            ("", None),
            ("{", None),
        ] {
            assert_eq!(first(body, "login_id,id").as_deref(), account, "{body}");
        }
        assert_eq!(first("user%5Blogin%5D=ann", "user[login]").as_deref(), Some("ann"));
    }

    #[test]
    fn no_bytes_make_it_panic() {
        let fields = Fields::parse("login_id").unwrap();
        for body in [&b"{\"login_id\":\"\xff\"}"[..], b"login_id=%ff%", b"\xff\x00=&&=", b"{\x00"] {
            let values = Values::read(body, &fields);
            assert!(values.first(&fields).is_none_or(|value| value.contains('\u{fffd}')));
        }
        let deep = "{\"a\":".repeat(100_000);
        assert!(Values::read(deep.as_bytes(), &fields).first(&fields).is_none());
    }

    #[test]
    fn passwords_are_no_users() {
        for name in ["password", "Passwd", "new_password", "user[password]", "pwd", "token", "code"]
        {
            assert_eq!(Fields::parse(name), Err(FieldError::Secret), "{name}");
        }
        assert_eq!(Fields::parse("login_id,"), Err(FieldError::Empty));
        assert!(Fields::parse("login_id,id,username,user[login],log,email,passenger").is_ok());
    }
}
