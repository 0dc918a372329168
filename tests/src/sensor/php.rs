//! How PHP reads a form: what reaches Tirreno is what PHP made of the body.

use std::collections::BTreeMap;

use chrono::{Days, Months, NaiveDate, NaiveDateTime, TimeDelta};
use serde_json::{Map, Value};

/// A form's parameters by their PHP names.
pub type Params = BTreeMap<String, Param>;

/// A parameter as PHP's `$_POST` holds it.
#[derive(Clone, Debug, PartialEq)]
pub enum Param {
    /// `name=value`: the decoded bytes.
    Text(Vec<u8>),
    /// `name[key]=value`: an array, bytes that are not UTF-8 replaced by `?`.
    Array(Map<String, Value>),
}

/// A form body as `$_POST`: split at `&`, the name ends at the first `=`, `+` is a space, the last
/// of equal names wins, and names are made fit for PHP variables.
pub fn parse_form(body: &[u8]) -> Params {
    let mut params = Params::new();
    for pair in body.split(|&byte| byte == b'&').filter(|pair| !pair.is_empty()) {
        let mut halves = pair.splitn(2, |&byte| byte == b'=');
        let name = url_decode(halves.next().unwrap_or_default());
        let value = url_decode(halves.next().unwrap_or_default());
        register(&mut params, &name, value);
    }
    params
}

/// PHP's `urldecode`: `+` is a space; a `%` without two hex digits stays as it is.
pub fn url_decode(text: &[u8]) -> Vec<u8> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text;
    while let [first, tail @ ..] = rest {
        rest = tail;
        match (first, tail) {
            (b'+', _) => decoded.push(b' '),
            (b'%', [high, low, after @ ..]) => match (hex(*high), hex(*low)) {
                (Some(high), Some(low)) => {
                    decoded.push(high << 4 | low);
                    rest = after;
                }
                _ => decoded.push(b'%'),
            },
            (byte, _) => decoded.push(*byte),
        }
    }
    decoded
}

/// PHP's `mb_convert_encoding($text, 'UTF-8', 'UTF-8')`: each byte that is no part of a character
/// becomes `?`.
pub fn clean_utf8(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        text.extend(chunk.invalid().iter().map(|_| '?'));
    }
    text
}

/// PHP's `DateTimeImmutable::createFromFormat` for `Y-m-d H:i:s.v`, `Y-m-d H:i:s` and
/// `Y-m-d H:i:s.u`: an impossible date or time of day rolls over, microseconds are cut to
/// milliseconds. `None` for anything else.
pub fn parse_time(text: &str) -> Option<NaiveDateTime> {
    let (date, time) = text.split_once(' ')?;
    let (year, date) = date.split_once('-')?;
    let (month, day) = date.split_once('-')?;
    let (hour, time) = time.split_once(':')?;
    let (minute, time) = time.split_once(':')?;
    let (second, fraction) = match time.split_once('.') {
        Some((second, fraction)) => (second, Some(fraction)),
        None => (time, None),
    };
    let millis = match fraction {
        None => 0,
        Some(fraction) => {
            digits(fraction, 1..=6)?;
            digits(&format!("{fraction:0<3}")[..3], 3..=3)?
        }
    };
    let first = NaiveDate::from_ymd_opt(i32::try_from(digits(year, 1..=4)?).ok()?, 1, 1)?;
    // Month 0 is December of the year before, day 0 the last day of the month before.
    let month = first
        .checked_sub_months(Months::new(1))?
        .checked_add_months(Months::new(u32::try_from(digits(month, 1..=2)?).ok()?))?;
    let day = month
        .checked_sub_days(Days::new(1))?
        .checked_add_days(Days::new(u64::try_from(digits(day, 1..=2)?).ok()?))?;
    let time = TimeDelta::hours(digits(hour, 1..=2)?)
        + TimeDelta::minutes(digits(minute, 2..=2)?)
        + TimeDelta::seconds(digits(second, 2..=2)?)
        + TimeDelta::milliseconds(millis);
    day.and_hms_opt(0, 0, 0)?.checked_add_signed(time)
}

fn digits(text: &str, length: std::ops::RangeInclusive<usize>) -> Option<i64> {
    let fits = length.contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
    fits.then(|| text.parse().ok()).flatten()
}

fn hex(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

/// PHP's `php_register_variable`: the name is a C string, loses leading spaces, and has `_` for
/// spaces and dots; `[key]` after it makes an array.
fn register(params: &mut Params, name: &[u8], value: Vec<u8>) {
    let end = name.iter().position(|&byte| byte == 0).unwrap_or(name.len());
    let name = clean_utf8(&name[..end]);
    let name = name.trim_start_matches(' ');
    let (base, keys) = match name.split_once('[') {
        Some(("", _)) => return,
        Some((base, rest)) => match array_keys(rest) {
            Some(keys) => (base.to_owned(), keys),
            None => (format!("{base}_{}", rest.replace('[', "_")), Vec::new()),
        },
        None => (name.to_owned(), Vec::new()),
    };
    let base = base.replace([' ', '.'], "_");
    if base.is_empty() {
        return;
    }
    if keys.is_empty() {
        params.insert(base, Param::Text(value));
        return;
    }
    let param = params.entry(base).or_insert_with(|| Param::Array(Map::new()));
    if !matches!(param, Param::Array(_)) {
        *param = Param::Array(Map::new());
    }
    if let Param::Array(array) = param {
        insert(array, &keys, Value::String(clean_utf8(&value)));
    }
}

/// The keys of `a][b]…` (what follows the first bracket); `None` where the bracket never closes.
/// Whatever stands between two brackets' pairs ends the list.
fn array_keys(mut rest: &str) -> Option<Vec<&str>> {
    let mut keys = Vec::new();
    loop {
        let Some((key, tail)) = rest.split_once(']') else {
            return (!keys.is_empty()).then_some(keys);
        };
        keys.push(key);
        match tail.strip_prefix('[') {
            Some(next) => rest = next,
            None => return Some(keys),
        }
    }
}

fn insert(array: &mut Map<String, Value>, keys: &[&str], value: Value) {
    let Some((first, rest)) = keys.split_first() else { return };
    let key = if first.is_empty() {
        let next = array.keys().filter_map(|key| key.parse::<u64>().ok()).max();
        next.map_or(0, |last| last + 1).to_string()
    } else {
        (*first).to_owned()
    };
    if rest.is_empty() {
        array.insert(key, value);
        return;
    }
    let inner = array.entry(key).or_insert_with(|| Value::Object(Map::new()));
    if !inner.is_object() {
        *inner = Value::Object(Map::new());
    }
    if let Value::Object(inner) = inner {
        insert(inner, rest, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(value: &str) -> Param {
        Param::Text(value.as_bytes().to_vec())
    }

    #[test]
    fn pairs_are_decoded() {
        let params = parse_form(b"a=1+2&b=%26%3D%2b&c&d=x=y&&=lost&e=%zz%4&f=%E9%00");
        assert_eq!(params["a"], text("1 2"));
        assert_eq!(params["b"], text("&=+"));
        assert_eq!(params["c"], text(""));
        assert_eq!(params["d"], text("x=y"));
        assert_eq!(params["e"], text("%zz%4"));
        assert_eq!(params["f"], Param::Text(vec![0xE9, 0]));
        assert_eq!(params.len(), 6);
    }

    #[test]
    fn the_last_of_equal_names_wins() {
        assert_eq!(parse_form(b"a=1&a=2")["a"], text("2"));
        assert_eq!(parse_form(b"a.b=1&a+b=2&a_b=3")["a_b"], text("3"));
    }

    #[test]
    fn names_are_made_fit_for_php() {
        let params = parse_form(b"++user.Name=1&a%00b=2&x%5By=3&%5Bz%5D=4");
        assert_eq!(params.keys().collect::<Vec<_>>(), ["a", "user_Name", "x_y"]);
    }

    #[test]
    fn brackets_make_arrays() {
        let params = parse_form(b"p[a]=1&p[b][]=2&p[b][]=3&q=x&q[]=%FF&r[k]tail=4");
        let array = |name: &str| match &params[name] {
            Param::Array(array) => Value::Object(array.clone()),
            Param::Text(_) => panic!("{name} is text"),
        };
        assert_eq!(array("p"), serde_json::json!({"a": "1", "b": {"0": "2", "1": "3"}}));
        assert_eq!(array("q"), serde_json::json!({"0": "?"}));
        assert_eq!(array("r"), serde_json::json!({"k": "4"}));
    }

    #[test]
    fn bytes_that_are_not_utf8_become_question_marks() {
        assert_eq!(clean_utf8(b"a\xFFb\xE9"), "a?b?");
        assert_eq!(clean_utf8(b"\xC0\xAF"), "??", "overlong");
        assert_eq!(clean_utf8(b"\xED\xA0\x80"), "???", "a surrogate");
        assert_eq!(clean_utf8("é😀".as_bytes()), "é😀");
    }

    #[test]
    fn times_are_read_as_php_reads_them() {
        let read = |text| parse_time(text).map(|time| time.format("%F %T%.3f").to_string());
        let same = "2026-02-03 04:05:06.789";
        assert_eq!(read(same).as_deref(), Some(same));
        assert_eq!(read("2026-02-03 04:05:06").as_deref(), Some("2026-02-03 04:05:06.000"));
        assert_eq!(read("2026-02-03 04:05:06.789999").as_deref(), Some(same));
        assert_eq!(read("2026-02-31 00:00:00").as_deref(), Some("2026-03-03 00:00:00.000"));
        assert_eq!(read("2026-13-01 25:00:00").as_deref(), Some("2027-01-02 01:00:00.000"));
        for bad in [
            "",
            "2026-02-03T04:05:06.789",
            "2026-02-03 04:05:06Z",
            "2026-02-03 04:05:06.789+01:00",
            "2026-02-03 04:05:06.7890000",
            "2026-02-03 04:05:06.",
            "2026-02-03",
            "1770000000",
            "2026-02-03 04:05",
            "+026-02-03 04:05:06",
        ] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }
}
