//! Reads an XML-RPC call from a body in chunks of any size.
//!
//! Its fields are `methodName` and the parameters in order, `params.0`, `params.1`, …. An array or a struct
//! is one parameter, and unreadable. In a `system.multicall`, the parameters are all single values in
//! document order, at any depth: first the name of the first call, then its parameters. The field `calls`
//! is the number of calls in a `system.multicall`, and is absent in other calls.
//!
//! Blanks and line ends around a name, and around a value with a type, are not part of it, as in WordPress.
//!
//! Servers count differently after an empty `<value>`, which WordPress skips and others count; the
//! parameters after it are unreadable.
//!
//! Only plain calls are read: the elements of the specification without attributes, and text. No client
//! sends more of XML (comments, CDATA, document types, other encodings than UTF-8), and a body with any of
//! it is unreadable.

use super::kept::{Kept, Share};
use super::{FieldError, Slot, State, Step, Values};

/// The longest tag, entity name or XML declaration, in bytes.
const MAX_MARKUP: usize = 128;

/// The number of parameters that a field can name.
const MAX_PARAMS: usize = 100;

/// Elements whose text is the value.
const SCALARS: [&[u8]; 6] = [b"string", b"int", b"i4", b"double", b"boolean", b"dateTime.iso8601"];

/// Elements that only contain other elements.
const CONTAINERS: [&[u8]; 8] =
    [b"methodCall", b"params", b"param", b"array", b"data", b"struct", b"member", b"nil"];

/// The name of a call, and of the member with the name of a call in a `system.multicall`.
const METHOD_NAME: &str = "methodName";

/// The number of calls in a `system.multicall`.
const CALLS: &str = "calls";

/// The steps of a field.
pub(super) fn steps(text: &str) -> Result<Vec<Step>, FieldError> {
    if matches!(text, METHOD_NAME | CALLS) {
        return Ok(vec![Step::Name(text.into())]);
    }
    let number = text.strip_prefix("params.").ok_or(FieldError::Empty)?;
    let is_place = number.parse().is_ok_and(|n: usize| n < MAX_PARAMS && n.to_string() == number);
    if !is_place {
        return Err(FieldError::Empty);
    }
    Ok(vec![Step::Name("params".into()), Step::Name(number.into())])
}

/// Reads a call.
#[derive(Debug)]
pub(super) struct XmlRpc {
    expect: Expect,
    /// The markup or the text that is being read.
    markup: Kept,
    text: Kept,
    element: Element,
    /// Whether the element's text is wanted, and whether it has more than blanks.
    is_wanted: bool,
    has_text: bool,
    /// The number of values so far.
    values: usize,
    /// The number of open arrays and structs.
    nested: usize,
    /// Whether servers differ on the number of values so far.
    is_uncertain: bool,
    has_name: bool,
    is_multicall: bool,
    /// The number of members with the name `methodName`.
    calls: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expect {
    Text,
    /// After `<`.
    Tag,
    /// After `&`.
    Entity,
}

/// The element whose text is being read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Element {
    /// None: such text must be blank.
    None,
    MethodName,
    /// The name of a member.
    Name,
    /// `<value>` without a type: a string, if no element follows.
    Value,
    Scalar,
    /// Base64, which is not read as text.
    Base64,
}

/// The body is not a plain call.
#[derive(Debug)]
struct Broken;

impl XmlRpc {
    pub(super) fn new() -> Self {
        Self {
            expect: Expect::Text,
            markup: Kept::default(),
            text: Kept::default(),
            element: Element::None,
            is_wanted: false,
            has_text: false,
            values: 0,
            nested: 0,
            is_uncertain: false,
            has_name: false,
            is_multicall: false,
            calls: 0,
        }
    }

    /// Reads a chunk of the body. Once `values` is read, further chunks change nothing.
    pub(super) fn push(&mut self, chunk: &[u8], values: &mut Values, share: &mut Share) {
        for byte in chunk {
            if values.is_read() {
                return;
            }
            if self.read(*byte, values, share).is_err() {
                values.give_up();
            }
        }
    }

    /// The body is complete.
    pub(super) fn finish(&mut self, values: &mut Values) {
        if !values.is_read() {
            values.give_up();
        }
    }

    fn read(&mut self, byte: u8, values: &mut Values, share: &mut Share) -> Result<(), Broken> {
        match (self.expect, byte) {
            (Expect::Text, b'<') => {
                self.markup.clear();
                self.expect = Expect::Tag;
            }
            (Expect::Text, b'&') => {
                self.markup.clear();
                self.expect = Expect::Entity;
            }
            (Expect::Text, byte) => self.keep(&[byte], share)?,
            (Expect::Tag, b'>') => {
                self.expect = Expect::Text;
                let markup = std::mem::take(&mut self.markup);
                self.tag(markup.bytes(), values, share)?;
                self.markup = markup;
            }
            (Expect::Entity, b';') => {
                self.expect = Expect::Text;
                let character = entity(self.markup.bytes()).ok_or(Broken)?;
                self.keep(character.encode_utf8(&mut [0; 4]).as_bytes(), share)?;
            }
            (_, byte) => {
                if self.markup.bytes().len() == MAX_MARKUP || byte == b'<' {
                    return Err(Broken);
                }
                self.markup.push(&[byte], share).map_err(|_| Broken)?;
            }
        }
        Ok(())
    }

    /// Keeps a piece of the element's text.
    fn keep(&mut self, bytes: &[u8], share: &mut Share) -> Result<(), Broken> {
        match self.element {
            Element::None if bytes.trim_ascii().is_empty() => Ok(()),
            Element::None => Err(Broken),
            _ => {
                self.has_text |= !bytes.trim_ascii().is_empty();
                match self.is_wanted {
                    true => self.text.push(bytes, share).map_err(|_| Broken),
                    false => Ok(()),
                }
            }
        }
    }

    fn tag(&mut self, markup: &[u8], values: &mut Values, share: &mut Share) -> Result<(), Broken> {
        if let Some(declaration) = markup.strip_prefix(b"?xml ") {
            let text = String::from_utf8_lossy(declaration).to_ascii_lowercase();
            let is_utf8 = !text.contains("encoding") || text.contains("utf-8");
            return if is_utf8 && text.ends_with('?') { Ok(()) } else { Err(Broken) };
        }
        let is_empty = markup.ends_with(b"/");
        let name = markup.strip_suffix(b"/").unwrap_or(markup).trim_ascii_end();
        match name.strip_prefix(b"/") {
            Some(_) if is_empty => Err(Broken),
            Some(name) => self.close(name, values, share),
            None => {
                self.open(name, values, share)?;
                if is_empty { self.close(name, values, share) } else { Ok(()) }
            }
        }
    }

    fn open(&mut self, name: &[u8], values: &Values, share: &mut Share) -> Result<(), Broken> {
        // Text before an element belongs to no value.
        if std::mem::take(&mut self.has_text) {
            return Err(Broken);
        }
        self.text.release(share);
        self.element = match (name, self.element) {
            (b"methodName", Element::None) => Element::MethodName,
            (b"name", Element::None) => Element::Name,
            (b"value", Element::None) => Element::Value,
            (b"base64", Element::Value) => Element::Base64,
            (name, Element::Value) if SCALARS.contains(&name) => Element::Scalar,
            (name, Element::None | Element::Value) if CONTAINERS.contains(&name) => {
                self.nested += usize::from(is_nesting(name));
                Element::None
            }
            _ => return Err(Broken),
        };
        self.is_wanted = match self.element {
            Element::MethodName => true,
            Element::Name => self.is_multicall && Self::place(CALLS, values).is_some(),
            Element::Value | Element::Scalar => self.place_of_value(values).is_some(),
            _ => false,
        };
        Ok(())
    }

    fn place(field: &str, values: &Values) -> Option<usize> {
        values.fields.iter().position(|own| own.as_str() == field)
    }

    /// The index of the wanted field of the next value.
    fn place_of_value(&self, values: &Values) -> Option<usize> {
        // Most calls have more values than wanted fields.
        values.fields.iter().position(|own| number_of(own.as_str()) == Some(self.values))
    }

    fn close(&mut self, name: &[u8], values: &mut Values, share: &mut Share) -> Result<(), Broken> {
        match (name, self.element) {
            (b"methodName", Element::MethodName) => {
                // Of several names, servers take different ones.
                self.text.trim();
                if std::mem::replace(&mut self.has_name, true) || self.text.text().value().is_none()
                {
                    return Err(Broken);
                }
                self.is_multicall = self.text.bytes() == b"system.multicall";
                self.found(Self::place(METHOD_NAME, values), true, values, share);
            }
            (b"value", Element::Value) if !self.has_text && !self.is_multicall => {
                self.text.release(share);
                self.is_uncertain |= self.nested == 0;
            }
            (b"value", Element::Value) => self.value(true, values, share),
            (b"base64", Element::Base64) => self.value(false, values, share),
            (name, Element::Scalar) if SCALARS.contains(&name) => {
                self.text.trim();
                self.value(true, values, share);
            }
            (b"name", Element::Name) => {
                self.has_text = false;
                let name = self.text.bytes().trim_ascii();
                self.calls += usize::from(name == METHOD_NAME.as_bytes());
            }
            (b"value", Element::None) => self.has_text = false,
            (b"methodCall", Element::None) => {
                self.text.release(share);
                if self.is_multicall && Self::place(CALLS, values).is_some() {
                    self.is_wanted = true;
                    self.text.push(self.calls.to_string().as_bytes(), share).map_err(|_| Broken)?;
                    self.found(Self::place(CALLS, values), true, values, share);
                }
                values.state = State::Read;
            }
            (name, Element::None) if is_nesting(name) => {
                self.nested = self.nested.checked_sub(1).ok_or(Broken)?;
                if self.nested == 0 && !self.is_multicall {
                    self.value(false, values, share);
                }
            }
            (name, Element::None) if CONTAINERS.contains(&name) => {}
            _ => return Err(Broken),
        }
        self.element = Element::None;
        Ok(())
    }

    fn value(&mut self, is_text: bool, values: &mut Values, share: &mut Share) {
        if self.nested > 0 && !self.is_multicall {
            self.has_text = false;
            self.text.release(share);
            return;
        }
        if self.is_uncertain {
            // This value, and all after it, may be other parameters to the server.
            self.has_text = false;
            self.text.release(share);
            for (own, slot) in values.fields.iter().zip(&mut values.slots) {
                if number_of(own.as_str()).is_some_and(|number| number >= self.values) {
                    *slot = Slot::Unreadable;
                }
            }
            return;
        }
        let place = self.place_of_value(values);
        self.values += 1;
        self.found(place, is_text, values, share);
    }

    /// Stores the text as the value of the field at `place`.
    fn found(
        &mut self,
        place: Option<usize>,
        is_text: bool,
        values: &mut Values,
        share: &mut Share,
    ) {
        self.has_text = false;
        if let Some(slot) = place.and_then(|place| values.slots.get_mut(place)) {
            *slot = match is_text {
                true => Slot::Text(std::mem::take(&mut self.text)),
                false => Slot::Unreadable,
            };
        } else {
            self.text.release(share);
        }
    }
}

/// The number N of a field `params.N`.
fn number_of(field: &str) -> Option<usize> {
    field.strip_prefix("params.")?.parse().ok()
}

/// Whether the values inside the element are parts of one value.
fn is_nesting(name: &[u8]) -> bool {
    matches!(name, b"data" | b"struct")
}

/// The character of an entity `&name;`.
fn entity(name: &[u8]) -> Option<char> {
    Some(match name {
        b"lt" => '<',
        b"gt" => '>',
        b"amp" => '&',
        b"quot" => '"',
        b"apos" => '\'',
        [b'#', b'x', digits @ ..] => number(digits, 16)?,
        [b'#', digits @ ..] => number(digits, 10)?,
        _ => return None,
    })
}

fn number(digits: &[u8], radix: u32) -> Option<char> {
    let is_number = digits.iter().all(|b| char::from(*b).is_digit(radix));
    let digits = str::from_utf8(digits).ok().filter(|_| is_number)?;
    char::from_u32(u32::from_str_radix(digits, radix).ok()?)
}

#[cfg(test)]
mod tests {
    use super::super::{BUDGET, BodyFormat, BodyReader, Field, Found, Head, Room, Wanted};

    /// The field's value in a body, which must be the same for chunks of any size.
    fn read(body: &str, field: &str) -> String {
        let field = Field::parse(field, BodyFormat::XmlRpc).unwrap();
        let wanted = Wanted::new(BodyFormat::XmlRpc, [&field]);
        let head = Head { method: b"POST", content_types: &[], length: None };
        let read = |size: usize| {
            let mut reader = BodyReader::new(&wanted, &head, &Room::new(&BUDGET));
            body.as_bytes().chunks(size).for_each(|chunk| reader.push(chunk));
            reader.finish();
            match reader.values().get(field.as_str()) {
                Found::Value(value) => format!("={value}"),
                other => format!("{other:?}"),
            }
        };
        let whole = read(body.len().max(1));
        for size in [1, 2, 5] {
            assert_eq!(read(size), whole, "{size} {body}");
        }
        whole
    }

    fn call(name: &str, params: &str) -> String {
        format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<methodCall>\n <methodName>{name}</methodName>\n\
             <params>{params}</params></methodCall>"
        )
    }

    #[test]
    fn a_call_has_a_name_and_values() {
        let one = "<param><value><string>ann&#46;&amp;</string></value></param>
            <param><value>5ecret</value></param><param><value><i4>7</i4></value></param>
            <param><value><string/></value></param><param><value></value></param>";
        let body = call("wp.getUsersBlogs", one);
        let long = format!("<param><value>{}</value></param>", "long ".repeat(10_000));
        assert_eq!(read(&call("wp.newPost", &format!("{one}{long}")), "params.0"), "=ann.&");
        for (field, found) in [
            ("methodName", "=wp.getUsersBlogs"),
            ("params.0", "=ann.&"),
            ("params.1", "=5ecret"),
            ("params.2", "=7"),
            ("params.3", "="),
            ("params.4", "Absent"),
            ("params.5", "Absent"),
        ] {
            assert_eq!(read(&body, field), found, "{field}");
        }
    }

    /// Otherwise the parameter behind the name, a password, would pass for it: only the name of the call says which
    /// one names the user.
    #[test]
    fn blanks_around_names_and_values_are_no_part_of_them() {
        let one = "<param><value><string>\n ann\t</string></value></param>
            <param><value> bob </value></param><param><value><int> 7&#10;</int></value></param>";
        for name in ["wp.getUsersBlogs ", "\n\twp.getUsersBlogs\r\n", "&#32;wp.getUsersBlogs&#x0a;"]
        {
            let body = call(name, one);
            assert_eq!(read(&body, "methodName"), "=wp.getUsersBlogs");
            assert_eq!(read(&body, "params.0"), "=ann");
            assert_eq!(read(&body, "params.1"), "= bob ");
            assert_eq!(read(&body, "params.2"), "=7");
        }
        let body = call("wp.get\nUsersBlogs", one);
        assert_eq!(read(&body, "params.0"), "Unreadable");
        let member = "<value><struct><member><name> methodName\n</name><value>x</value></member></struct></value>";
        let array = format!("<param><value><array><data>{member}</data></array></value></param>");
        assert_eq!(read(&call(" system.multicall ", &array), "calls"), "=1");
        assert_eq!(read(&call(" system.multicall ", &array), "methodName"), "=system.multicall");
    }

    /// If the module read another parameter than the server, an attacker could act under a victim's name.
    #[test]
    fn an_array_or_struct_is_one_parameter() {
        let value = |value: &str| format!("<param><value>{value}</value></param>");
        let (me, array) = (value("me"), value("<array><data><value>victim</value></data></array>"));
        let member = "<member><name>a</name><value><string>victim</string></value></member>";
        let two = format!("<struct>{member}{member}</struct>");
        for (params, found) in [
            (format!("{array}{me}"), "=me"),
            (format!("{}{me}", value(&two)), "=me"),
            (
                format!(
                    "{}{me}",
                    value(&format!("<array><data><value>{two}</value></data></array>"))
                ),
                "=me",
            ),
            (format!("{me}{array}"), "Unreadable"),
            (format!("{}{}{me}", value(""), value("victim")), "Unreadable"),
            (format!("{}{}{me}", value(" "), value("victim")), "Unreadable"),
            (format!("{}{}{me}", value("<nil/>"), value("victim")), "=me"),
            (format!("{}{me}", value("<i8>1</i8>")), "Unreadable"),
        ] {
            assert_eq!(read(&call("wp.newPost", &params), "params.1"), found, "{params}");
        }
    }

    #[test]
    fn of_several_calls_the_first_comes_first() {
        let one = "<value><struct><member><name>methodName</name><value><string>wp.getUsersBlogs</string></value>
            </member><member><name>params</name><value><array><data><value><array><data><value><string>ann
            </string></value></data></array></value></data></array></value></member></struct></value>"
            .replace("\n            ", "");
        let body = call(
            "system.multicall",
            &format!("<param><value><array><data>{one}{one}</data></array></value></param>"),
        );
        assert_eq!(read(&body, "methodName"), "=system.multicall");
        assert_eq!(read(&body, "params.0"), "=wp.getUsersBlogs");
        assert_eq!(read(&body, "params.1"), "=ann");
        assert_eq!(read(&body, "params.3"), "=ann");
        assert_eq!(read(&body, "calls"), "=2");
        assert_eq!(read(&body.replace("system.multicall", "wp.newPost"), "calls"), "Absent");
        assert_eq!(read(&call("system.multicall", ""), "calls"), "=0");
    }

    #[test]
    fn what_is_no_plain_call_is_unreadable() {
        let param = |value: &str| call("a", &format!("<param><value>{value}</value></param>"));
        for body in [
            String::new(),
            "ann".into(),
            param("<string>ann</string>").replace("</methodCall>", ""),
            param("<string><![CDATA[ann]]></string>"),
            param("<string>ann<!-- x --></string>"),
            param("<string a=\"b\">ann</string>"),
            param("<string>a<b>nn</b></string>"),
            param("ann<string>bob</string>"),
            param("<string>&ann;</string>"),
            param("<base64>YW5u</base64>"),
            param("<string>ann</string>").replace("UTF-8", "UTF-16"),
            param("<string>ann</string>").replace("<methodCall>", "<!DOCTYPE x><methodCall>"),
            param("<string>ann</string>").replace("<params>", "<methodName>b</methodName><params>"),
            param("<string>a\0nn</string>"),
        ] {
            assert_eq!(read(&body, "params.0"), "Unreadable", "{body}");
        }
    }

    #[test]
    fn a_field_is_the_name_or_a_place() {
        for wrong in
            ["", "name", "params", "params.", "params.01", "params.x", "params.100", "params[0]"]
        {
            assert!(Field::parse(wrong, BodyFormat::XmlRpc).is_err(), "{wrong}");
        }
    }
}
