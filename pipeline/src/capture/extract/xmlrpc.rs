//! Reads a call of XML-RPC from a body in chunks of any size, as WordPress does.
//!
//! Its fields are `methodName` and the parameters in order, `params.0`, `params.1`, …. An array or a struct
//! is one parameter, and unreadable; but if it is the only one, its elements are the parameters. In a
//! `system.multicall`, the parameters are all single values in document order, at any depth: first the name
//! of the first call, then its parameters. The field `calls` is the number of calls in a
//! `system.multicall`, and is absent in other calls.
//!
//! WordPress looks at elements one by one, wherever they stand: the end of `<string>` or of another type is
//! a value, and so is the end of a `<value>` with text since the last tag. Text before a tag within an
//! element is not part of it, comments and attributes are skipped, and `CDATA` is text. Blanks and line ends
//! around a name, and around a value that has a type, are not part of it.
//!
//! What WordPress would not accept (elements that do not match, entities of a document type) is unreadable.

use std::hash::Hasher;

use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{GeneralPurpose, GeneralPurposeConfig};
use siphasher::sip::SipHasher13;
use zeroize::Zeroizing;

use super::kept::{Kept, Share};
use super::{FieldError, Slot, State, Step, Values};

/// The longest name of an entity, in bytes.
const MAX_ENTITY: usize = 16;

/// The longest name of an element that counts, in bytes.
const MAX_NAME: usize = 16;

/// How deep it is known which elements are open. PHP's parser has no limit; further inside, elements may end
/// in any order here.
const MAX_DEPTH: usize = 64;

/// The most memory that a reader takes beside its own, in bytes.
pub(super) const MOST_FOR_STACKS: usize =
    MAX_DEPTH * (size_of::<u32>() + 2 * size_of::<Option<u8>>());

/// The number of parameters that a field can name.
const MAX_PARAMS: usize = 100;

/// The name of a call, and of the member with the name of a call in a `system.multicall`.
const METHOD_NAME: &str = "methodName";

/// The number of calls in a `system.multicall`.
const CALLS: &str = "calls";

/// The members of a call in a `system.multicall`. In another order, its name would pass for a parameter.
const MEMBERS: [&str; 2] = [METHOD_NAME, "params"];

/// PHP's `base64_decode` ignores padding and the last bits.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(base64::engine::DecodePaddingMode::RequireNone)
        .with_decode_allow_trailing_bits(true),
);

/// The steps of a field.
pub(super) fn steps(text: &str) -> Result<Vec<Step>, FieldError> {
    if matches!(text, METHOD_NAME | CALLS) {
        return Ok(vec![Step::Name(text.into())]);
    }
    let number = text.strip_prefix("params.").ok_or(FieldError::Empty)?;
    place(number.as_bytes()).ok_or(FieldError::Empty)?;
    Ok(vec![Step::Name("params".into()), Step::Name(number.into())])
}

/// The number of a parameter as PHP writes it.
fn place(text: &[u8]) -> Option<usize> {
    let text = str::from_utf8(text).ok()?;
    let number: usize = text.parse().ok()?;
    (number < MAX_PARAMS && number.to_string() == text).then_some(number)
}

/// Reads a call.
#[derive(Debug)]
pub(super) struct XmlRpc {
    expect: Expect,
    /// The name of the tag that is being read.
    tag: Name,
    /// The name of the entity that is being read.
    entity: Kept,
    /// The hashes of the names of the open elements.
    open: Stack<u32>,
    /// The number of `]` at the end of the text so far: `]]>` is no text.
    brackets: usize,
    call: Call,
}

/// The part of the body that is being read.
#[derive(Debug)]
enum Expect {
    Text,
    /// After `&`.
    Entity,
    /// After `<`: the name of a tag, or what else begins so.
    Tag,
    /// After the name of a tag: the quote that is open, and whether the last byte was `/`.
    Attributes {
        quote: Option<u8>,
        slash: bool,
    },
    /// After `<!`.
    Exclamation,
    /// A comment, with the number of `-` at its end so far.
    Comment(usize),
    /// `CDATA`, with the number of `]` at its end so far.
    CData(usize),
    /// An instruction, and whether the last byte was `?`.
    Instruction(bool),
    /// A document type without declarations of its own.
    DocumentType,
}

/// The name of an element.
#[derive(Debug, Default)]
struct Name {
    /// Its first bytes, and how many these are; elements with longer names mean nothing.
    start: [u8; MAX_NAME + 1],
    len: usize,
    hash: SipHasher13,
    is_closing: bool,
}

impl Name {
    fn push(&mut self, byte: u8) {
        if let Some(place) = self.start.get_mut(self.len) {
            *place = byte;
            self.len += 1;
        }
        self.hash.write_u8(byte);
    }

    fn bytes(&self) -> &[u8] {
        &self.start[..self.len]
    }

    /// Whether the tag has only begun.
    fn is_empty(&self) -> bool {
        self.len == 0 && !self.is_closing
    }
}

/// The body is no call that WordPress would accept.
#[derive(Debug)]
struct Broken;

/// A stack that forgets what lies deeper than [`MAX_DEPTH`].
#[derive(Debug)]
struct Stack<T> {
    items: Vec<T>,
    forgotten: usize,
}

impl<T> Default for Stack<T> {
    fn default() -> Self {
        Self { items: Vec::new(), forgotten: 0 }
    }
}

impl<T> Stack<T> {
    fn push(&mut self, item: T) {
        match self.items.len() {
            MAX_DEPTH => self.forgotten += 1,
            _ => self.items.push(item),
        }
    }

    /// `Ok(None)`: it was forgotten.
    fn pop(&mut self) -> Result<Option<T>, Broken> {
        match self.forgotten.checked_sub(1) {
            Some(forgotten) => self.forgotten = forgotten,
            None => return self.items.pop().map(Some).ok_or(Broken),
        }
        Ok(None)
    }

    fn last(&self) -> Option<&T> {
        self.items.last().filter(|_| self.forgotten == 0)
    }
}

impl XmlRpc {
    pub(super) fn new() -> Self {
        Self {
            expect: Expect::Text,
            tag: Name::default(),
            entity: Kept::default(),
            open: Stack::default(),
            brackets: 0,
            call: Call::default(),
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
        if !matches!(self.expect, Expect::Text) {
            self.brackets = 0;
        }
        match (&mut self.expect, byte) {
            (Expect::Text, b'<') => {
                self.tag = Name::default();
                self.expect = Expect::Tag;
            }
            (Expect::Text, b'&') => {
                self.entity.clear();
                self.expect = Expect::Entity;
            }
            (Expect::Text, b'>') if self.brackets >= 2 => return Err(Broken),
            (Expect::Text, byte) => {
                self.brackets = if byte == b']' { self.brackets + 1 } else { 0 };
                self.text(&[byte], share)?;
            }
            (Expect::Entity, b';') => {
                let character = character(self.entity.bytes()).ok_or(Broken)?;
                self.expect = Expect::Text;
                self.text(character.encode_utf8(&mut [0; 4]).as_bytes(), share)?;
            }
            // A number may begin with any number of zeros.
            (Expect::Entity, b'0') if matches!(self.entity.bytes(), b"#" | b"#x") => {}
            (Expect::Entity, byte) if self.entity.bytes().len() < MAX_ENTITY => {
                self.entity.push(&[byte], share).map_err(|_| Broken)?;
            }
            (Expect::Entity, _) => return Err(Broken),
            (Expect::Tag, b'!') if self.tag.is_empty() => self.expect = Expect::Exclamation,
            (Expect::Tag, b'?') if self.tag.is_empty() => self.expect = Expect::Instruction(false),
            (Expect::Tag, b'/') if self.tag.is_empty() => self.tag.is_closing = true,
            (Expect::Tag, b'>') => self.end_tag(false, values, share)?,
            (Expect::Tag, b'/') => {
                self.expect = Expect::Attributes { quote: None, slash: true };
            }
            (Expect::Tag, b' ' | b'\t' | b'\r' | b'\n') => {
                self.expect = Expect::Attributes { quote: None, slash: false };
            }
            (Expect::Tag, b'<') => return Err(Broken),
            (Expect::Tag, byte) => self.tag.push(byte),
            (Expect::Attributes { quote: None, slash }, b'>') => {
                let is_empty = *slash;
                self.end_tag(is_empty, values, share)?;
            }
            (Expect::Attributes { .. }, b'<') => return Err(Broken),
            (Expect::Attributes { quote, slash }, byte) => {
                *quote = match (*quote, byte) {
                    (None, b'"' | b'\'') => Some(byte),
                    (Some(open), byte) if open == byte => None,
                    (quote, _) => quote,
                };
                *slash = byte == b'/';
            }
            (Expect::Exclamation, byte) => {
                self.tag.push(byte);
                self.expect = match self.tag.bytes() {
                    b"--" => Expect::Comment(0),
                    b"[CDATA[" => Expect::CData(0),
                    text if b"--".starts_with(text) || b"[CDATA[".starts_with(text) => {
                        return Ok(());
                    }
                    b"D" | b"d" if self.open.items.is_empty() => Expect::DocumentType,
                    _ => return Err(Broken),
                };
            }
            (Expect::Comment(dashes), byte) => match (*dashes, byte) {
                (2, b'>') => self.expect = Expect::Text,
                (2, _) => return Err(Broken),
                (_, b'-') => *dashes += 1,
                _ => *dashes = 0,
            },
            (Expect::CData(brackets), b']') => *brackets += 1,
            (Expect::CData(brackets), byte) => {
                let brackets = std::mem::take(brackets);
                let ends = brackets >= 2 && byte == b'>';
                for _ in 0..brackets - if ends { 2 } else { 0 } {
                    self.text(b"]", share)?;
                }
                if ends {
                    self.expect = Expect::Text;
                } else {
                    self.text(&[byte], share)?;
                }
            }
            (Expect::Instruction(true), b'>') | (Expect::DocumentType, b'>') => {
                self.expect = Expect::Text;
            }
            (Expect::Instruction(is_last), byte) => *is_last = byte == b'?',
            (Expect::DocumentType, b'[') => return Err(Broken),
            (Expect::DocumentType, _) => {}
        }
        Ok(())
    }

    fn text(&mut self, bytes: &[u8], share: &mut Share) -> Result<(), Broken> {
        if self.open.items.is_empty() {
            return if bytes.trim_ascii().is_empty() { Ok(()) } else { Err(Broken) };
        }
        self.call.text.push(bytes, share);
        Ok(())
    }

    fn end_tag(
        &mut self,
        is_empty: bool,
        values: &mut Values,
        share: &mut Share,
    ) -> Result<(), Broken> {
        self.expect = Expect::Text;
        let name = std::mem::take(&mut self.tag);
        let (bytes, hash, is_closing) = (name.bytes(), name.hash.finish() as u32, name.is_closing);
        if is_closing && (is_empty || self.open.pop()?.is_some_and(|open| open != hash)) {
            return Err(Broken);
        }
        if !is_closing {
            if self.open.items.is_empty() && bytes != b"methodCall" {
                return Err(Broken);
            }
            self.call.open(bytes, share);
            if !is_empty {
                self.open.push(hash);
            }
        }
        if is_closing || is_empty {
            self.call.close(bytes, values, share)?;
        }
        self.call.text.clear(share);
        if self.open.items.is_empty() {
            self.call.finish(values, share);
            values.state = State::Read;
        }
        Ok(())
    }
}

/// What a call says so far.
#[derive(Debug, Default)]
struct Call {
    text: Text,
    has_name: bool,
    is_multicall: bool,
    /// The number of parameters.
    params: usize,
    /// Whether the first parameter is an array or a struct.
    is_list: bool,
    /// The open arrays, with the number of their elements, and structs.
    lists: Stack<Option<u8>>,
    /// The names of the open members, where they are numbers.
    members: Stack<Option<u8>>,
    /// The number of names of members in a `system.multicall`, and how many of them are `methodName`.
    names: usize,
    calls: usize,
}

/// The text since the last tag.
#[derive(Debug, Default)]
struct Text {
    kept: Kept,
    /// Whether there was no room for all of it.
    is_long: bool,
    /// Whether it has more than blanks.
    has_text: bool,
}

impl Text {
    fn push(&mut self, bytes: &[u8], share: &mut Share) {
        self.has_text |= !bytes.trim_ascii().is_empty();
        if !self.is_long && self.kept.push(bytes, share).is_err() {
            self.kept.release(share);
            self.is_long = true;
        }
    }

    fn clear(&mut self, share: &mut Share) {
        self.kept.release(share);
        (self.is_long, self.has_text) = (false, false);
    }

    /// Replaces base64 by what it says.
    fn decode(&mut self, share: &mut Share) {
        let is_base64 = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/');
        let digits = self.kept.bytes().iter().copied().filter(is_base64);
        let mut digits: Zeroizing<Vec<u8>> = Zeroizing::new(digits.collect());
        if digits.len() % 4 == 1 {
            digits.pop();
        }
        let bytes = Zeroizing::new(BASE64.decode(&*digits).unwrap_or_default());
        self.kept.clear();
        // It is shorter than before.
        self.is_long |= self.kept.push(&bytes, share).is_err();
    }

    /// Whether it is an integer as PHP writes it.
    fn is_integer(&self) -> bool {
        let text = self.kept.text().value();
        text.is_some_and(|text| text.parse().is_ok_and(|number: i64| number.to_string() == text))
    }
}

impl Call {
    fn open(&mut self, name: &[u8], share: &mut Share) {
        self.text.clear(share);
        match name {
            b"data" => self.lists.push(Some(0)),
            b"struct" => self.lists.push(None),
            _ => {}
        }
    }

    /// The number of the next value among the parameters, if it is one.
    fn number(&self) -> Option<usize> {
        match &self.lists.items[..] {
            _ if self.is_multicall => Some(self.params),
            [] => Some(self.params),
            [Some(elements)] if self.params == 0 => Some((*elements).into()),
            [None] if self.params == 0 => self.members.last().copied().flatten().map(Into::into),
            _ => None,
        }
    }

    /// The index of the field `params.NUMBER`, if it is wanted.
    fn slot(number: usize, values: &Values) -> Option<usize> {
        values.fields.iter().position(|field| number_of(field.as_str()) == Some(number))
    }

    fn close(&mut self, name: &[u8], values: &mut Values, share: &mut Share) -> Result<(), Broken> {
        match name {
            b"string" | b"int" | b"i4" | b"double" | b"boolean" | b"dateTime.iso8601" => {
                self.text.kept.trim();
                let says = match name {
                    b"string" => true,
                    b"int" | b"i4" => self.text.is_integer(),
                    b"boolean" => self.text.kept.bytes() == b"1",
                    // PHP writes such numbers in its own way, and a time is an object to it.
                    _ => false,
                };
                self.value(says, values, share);
            }
            b"base64" => {
                self.text.decode(share);
                self.value(true, values, share);
            }
            b"value" if self.text.has_text => self.value(true, values, share),
            b"data" | b"struct" => {
                self.lists.pop()?;
                if self.is_multicall {
                    // Its elements were values themselves.
                } else if self.lists.items.is_empty() && self.params == 0 {
                    // Its elements stay, for the case that no other parameter follows.
                    (self.params, self.is_list) = (1, true);
                } else {
                    self.value(false, values, share);
                }
            }
            b"name" => self.member()?,
            b"member" => {
                let _ = self.members.pop();
            }
            b"methodName" => self.method(values, share)?,
            _ => {}
        }
        Ok(())
    }

    /// The text is the name of a member.
    fn member(&mut self) -> Result<(), Broken> {
        self.text.kept.trim();
        let name = self.text.kept.bytes();
        if self.is_multicall {
            if MEMBERS.get(self.names).is_some_and(|member| member.as_bytes() != name) {
                return Err(Broken);
            }
            self.names += 1;
            self.calls += usize::from(name == METHOD_NAME.as_bytes());
        }
        self.members.push(place(name).map(|number| number as u8));
        Ok(())
    }

    /// The text is the name of the call; the last one counts.
    fn method(&mut self, values: &mut Values, share: &mut Share) -> Result<(), Broken> {
        let was_known = std::mem::replace(&mut self.has_name, true);
        self.text.kept.trim();
        if self.text.is_long || self.text.kept.text().value().is_none() {
            return Err(Broken);
        }
        self.is_multicall |= self.text.kept.bytes() == b"system.multicall";
        // The parameters before it were counted as those of another call.
        if self.is_multicall && (was_known || self.params > 0 || !self.lists.items.is_empty()) {
            return Err(Broken);
        }
        self.found(
            values.fields.iter().position(|field| field.as_str() == METHOD_NAME),
            true,
            values,
            share,
        );
        Ok(())
    }

    /// The text is a value, which `says` whether it can be read.
    fn value(&mut self, says: bool, values: &mut Values, share: &mut Share) {
        let number = self.number();
        match &mut self.lists.items[..] {
            [Some(elements)] => *elements = elements.saturating_add(1),
            _ if self.is_multicall => {}
            [] if self.params == 1 && self.is_list => {
                // The list before it is the first parameter.
                for (field, slot) in values.fields.iter().zip(&mut values.slots) {
                    match number_of(field.as_str()) {
                        Some(0) => set(slot, Slot::Unreadable, share),
                        Some(_) => set(slot, Slot::Absent, share),
                        None => {}
                    }
                }
            }
            _ => {}
        }
        if self.is_multicall || self.lists.items.is_empty() {
            self.params += 1;
        }
        self.found(number.and_then(|number| Self::slot(number, values)), says, values, share);
    }

    /// Stores the text as the value of a field.
    fn found(&mut self, at: Option<usize>, says: bool, values: &mut Values, share: &mut Share) {
        let Some(slot) = at.and_then(|at| values.slots.get_mut(at)) else { return };
        let new = match says && !self.text.is_long {
            true => Slot::Text(std::mem::take(&mut self.text.kept)),
            false => Slot::Unreadable,
        };
        set(slot, new, share);
    }

    /// The call is complete.
    fn finish(&mut self, values: &mut Values, share: &mut Share) {
        let calls = values.fields.iter().position(|field| field.as_str() == CALLS);
        if self.is_multicall && calls.is_some() {
            self.text.push(self.calls.to_string().as_bytes(), share);
            self.found(calls, true, values, share);
        }
    }
}

/// Replaces what was found before.
fn set(slot: &mut Slot, new: Slot, share: &mut Share) {
    if let Slot::Text(mut old) = std::mem::replace(slot, new) {
        old.release(share);
    }
}

/// The number N of a field `params.N`.
fn number_of(field: &str) -> Option<usize> {
    field.strip_prefix("params.")?.parse().ok()
}

/// The character of an entity.
fn character(entity: &[u8]) -> Option<char> {
    Some(match entity {
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
    fn an_array_or_struct_is_one_parameter_unless_it_is_the_only_one() {
        let value = |value: &str| format!("<param><value>{value}</value></param>");
        let list = |values: &str| format!("<array><data>{values}</data></array>");
        let (me, array) = (value("me"), value(&list("<value>victim</value>")));
        let member =
            |name: &str| format!("<member><name>{name}</name><value>victim</value></member>");
        let two = format!("<struct>{}{}</struct>", member("0"), member("1"));
        let nested = list(&format!("<value>{two}</value>"));
        for (params, found) in [
            (format!("{array}{me}"), "=me"),
            (format!("{}{me}", value(&two)), "=me"),
            (format!("{}{me}", value(&nested)), "=me"),
            (format!("{me}{array}"), "Unreadable"),
            (value(&list("<value>a</value><value><string>b</string></value>")), "=b"),
            (value(&list(&format!("<value>a</value><value>{}</value>", list("")))), "Unreadable"),
            (value(&two), "=victim"),
            (value(&nested), "Absent"),
            // What WordPress does not count.
            (format!("{}{}{me}", value(""), value("victim")), "=me"),
            (format!("{}{}{me}", value("<nil/>"), value("victim")), "=me"),
            (format!("{}{me}", value("<i8>1</i8>")), "Absent"),
            (value("a<string>b</string>c"), "=c"),
        ] {
            assert_eq!(read(&call("wp.newPost", &params), "params.1"), found, "{params}");
        }
        let first = value(&list("<value>victim</value>"));
        for more in [me, value("<struct/>"), value("<base64/>")] {
            let body = call("wp.newPost", &format!("{first}{more}"));
            assert_eq!(read(&body, "params.0"), "Unreadable", "{more}");
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

    /// In another order, a password would pass for the name behind that of the call.
    #[test]
    fn the_members_of_a_call_stand_in_their_order() {
        let (name, params) = (
            "<member><name>methodName</name><value>wp.x</value></member>",
            "<member><name>params</name><value><array><data><value>ann</value><value>5ecret</value></data></array></value></member>",
        );
        for (members, found) in [
            (format!("{name}{params}"), "=ann"),
            (format!("{params}{name}"), "Unreadable"),
            (format!("{name}{name}{params}"), "Unreadable"),
        ] {
            let value = format!("<param><value><struct>{members}</struct></value></param>");
            assert_eq!(read(&call("system.multicall", &value), "params.1"), found, "{members}");
        }
    }

    #[test]
    fn more_of_xml_hides_nobody() {
        let param = |value: &str| call("a", &format!("<param><value>{value}</value></param>"));
        let plain = param("<string>ann</string>");
        for body in [
            param("<string><![CDATA[ann]]></string>"),
            param("<string>a<!-- <string>bob</string> - -->nn</string>"),
            param("<string>a<?x <string> > ?>nn</string>"),
            param("<string a=\"/>\" b='\">'>ann</string\n>"),
            param("<string>bob<b/>ann</string>"),
            param("bob<string>ann</string>"),
            param("<string>&#0000000000000000000097;&#x6e;&#110;</string>"),
            param("<base64>YW 5u</base64>"),
            param("<base64>YW5u==!</base64>"),
            param(&format!("{}<string>ann</string>", "x".repeat(10_000))),
            param(&format!("{}{}ann", "<b>".repeat(1000), "</b>".repeat(1000))),
            plain.replace("UTF-8", "UTF-16"),
            plain.replace("<methodCall>", "<!DOCTYPE x><methodCall>"),
            plain.replace("<params>", "<methodName>b</methodName><params>"),
            plain
                .replace("<methodName>a</methodName>", "")
                .replace("</params>", "</params><methodName>a</methodName>"),
        ] {
            assert_eq!(read(&body, "params.0"), "=ann", "{body}");
        }
        assert_eq!(read(&param("<string><![CDATA[a]]]b]]]]></string>"), "params.0"), "=a]]]b]]");
    }

    #[test]
    fn what_is_no_call_is_unreadable() {
        let param = |value: &str| call("a", &format!("<param><value>{value}</value></param>"));
        let plain = param("<string>ann</string>");
        for body in [
            String::new(),
            "ann".into(),
            plain.replace("</methodCall>", ""),
            plain.replace("methodCall", "methodResponse"),
            plain.replace("<methodCall>", "<!DOCTYPE x [<!ENTITY y 'z'>]><methodCall>"),
            param("<string>ann</int>"),
            param("<string>a<b>nn</string></b>"),
            param("<string/>ann</string>"),
            param("<string>&ann;</string>"),
            param("<string>&#X61;nn</string>"),
            param("<string>ann]]></string>"),
            param("<string>ann<!-- -- --></string>"),
            param("<string>ann<!x></string>"),
            param("<string>a\0nn</string>"),
            param("<string>ann<</string>"),
            param("<int>007</int>"),
            param("<double>1e3</double>"),
            param("<double>inf</double>"),
            param("<double>NaN</double>"),
            param("<double>100000000000000000000</double>"),
            param("<boolean>0</boolean>"),
            param("<dateTime.iso8601>20200101T00:00:00</dateTime.iso8601>"),
            param(&format!("<string>{}</string>", "x".repeat(10_000))),
            call("a\u{1}", "<param><value>ann</value></param>"),
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
