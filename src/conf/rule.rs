//! `tirreno_event`: which event a request is.

use std::rc::Rc;

use nginx_sys::{ngx_conf_t, ngx_http_request_t, ngx_str_t};
use tirreno_pipeline::capture::body::Fields;
use tirreno_pipeline::capture::level::Level;
use tirreno_pipeline::capture::rules::{Methods, Pattern, Rules, StatusKey};
use tirreno_pipeline::event::EventType;

use super::ext::{ConfExt, Place};
use super::value::{Sourced, Value, is_off};
use crate::response;

/// The longest name of an audit record.
const MAX_AUDIT: usize = 100;

/// What a rule says about the requests that it is for.
pub(crate) struct Rule {
    /// The event's type; nothing where such a request is none.
    pub(crate) event: Option<EventType>,
    /// Replace `tirreno_user`, if there are any.
    pub(crate) users: Box<[User]>,
    /// What becomes of an account that a body names and that nothing is known of.
    pub(crate) unknown: Unknown,
    /// Whether it is an event also without a user; the location says so where the rule does not.
    pub(crate) anonymous: Option<bool>,
    /// The names of segments that are secrets.
    pub(crate) redact: Box<[String]>,
    /// The event's name in audit records; the type's where it is empty.
    pub(crate) audit: String,
    /// Its level there; derived where there is none.
    pub(crate) level: Option<Level>,
    status: Option<StatusKey>,
    condition: Option<Value>,
    place: Place,
}

/// Where a rule's user comes from.
pub(crate) enum User {
    Value(Sourced),
    /// The account that the request's body names.
    Body(Fields),
}

/// `unknown=`: people type passwords where their name belongs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unknown {
    Hash,
    Send,
    Omit,
}

/// A rule with what finds it.
pub(crate) type Entry = (Methods, Pattern, Rc<Rule>);

/// The rules of a location in the order in which they are tried.
pub(crate) struct RuleSet {
    entries: Vec<Entry>,
    pub(crate) rules: Rules<Rc<Rule>>,
    /// Those of them that have secret segments, if any.
    pub(crate) redacting: Option<Rules<Rc<Rule>>>,
    /// Those of them that ask for the body, if any.
    pub(crate) bodies: Option<Rules<Rc<Rule>>>,
}

impl Rule {
    /// Whether the rule is for this request, whose method and path match.
    ///
    /// # Safety
    /// `r` is a request that nginx is processing, and that has a response.
    pub(crate) unsafe fn holds(&self, r: *mut ngx_http_request_t, status: u16) -> bool {
        // SAFETY: the caller's promise.
        unsafe {
            let answered = self.status.as_ref().is_none_or(|key| {
                let set_cookie = |name: &[u8]| response::sets_cookie(r, name);
                key.holds(status, set_cookie, |name| response::has_header(r, name))
            });
            answered && self.condition.as_ref().is_none_or(|value| !is_off(value.evaluate(r)))
        }
    }

    /// The fields of the body that it asks for.
    pub(crate) fn body_fields(&self) -> impl Iterator<Item = &Fields> {
        self.users.iter().filter_map(|user| match user {
            User::Value(_) => None,
            User::Body(fields) => Some(fields),
        })
    }

    fn is_unconditional(&self) -> bool {
        self.status.is_none() && self.condition.is_none()
    }
}

impl RuleSet {
    /// `own` rules are tried before the `outer` ones; nothing where there are none.
    pub(crate) fn new(own: &[Entry], outer: Option<&Rc<Self>>) -> Option<Rc<Self>> {
        let outer = outer.map_or(&[][..], |outer| &outer.entries);
        let entries = [own, outer].concat();
        let some = |wanted: fn(&Rule) -> bool| {
            let some: Vec<_> = entries.iter().filter(|(.., rule)| wanted(rule)).cloned().collect();
            (!some.is_empty()).then(|| Rules::new(some))
        };
        let redacting = some(|rule| !rule.redact.is_empty());
        let bodies = some(|rule| rule.body_fields().next().is_some());
        let rules = some(|_| true)?;
        Some(Rc::new(Self { entries, rules, redacting, bodies }))
    }

    /// Whether any request of a rule can have a user, or needs none.
    pub(crate) fn may_capture(&self) -> bool {
        self.entries.iter().any(|(.., rule)| rule.anonymous == Some(true) || !rule.users.is_empty())
    }

    /// Warns of those of a level's `own` rules that no request reaches. That an inner level's rule comes
    /// before an outer one is what levels are for.
    pub(crate) fn check(cf: &mut ngx_conf_t, own: &[Entry]) {
        let rules = Rules::new(own.to_vec());
        for (hidden, hiding) in rules.unreachable(|rule| rule.is_unconditional()) {
            let (hidden, hiding) = (&own[hidden].2.place, &own[hiding].2.place);
            cf.warn_at(
                hidden,
                format_args!("no request reaches this \"tirreno_event\", the one in {hiding} is for all of them,"),
            );
        }
    }
}

/// Reads `type methods path [key=value …]`.
pub(crate) fn read(cf: &mut ngx_conf_t, args: &[ngx_str_t]) -> Result<Entry, String> {
    let [kind, methods, path, keys @ ..] = args else {
        return Err("it must be \"tirreno_event TYPE METHODS PATH [KEY=VALUE ...]\"".into());
    };
    let event = match kind.as_bytes() {
        b"off" => None,
        name => Some(EventType::from_name(name).ok_or_else(|| unknown_type(*kind))?),
    };
    let methods_text = methods.to_string();
    let methods = Methods::parse(&methods_text)
        .map_err(|error| format!("invalid methods \"{methods_text}\", {error}"))?;
    let path_text = path.to_string();
    let pattern = Pattern::parse(&path_text)
        .map_err(|error| format!("invalid path \"{path_text}\", {error}"))?;
    let mut rule = Rule {
        event,
        users: Box::default(),
        unknown: Unknown::Hash,
        anonymous: None,
        redact: Box::default(),
        audit: String::new(),
        level: None,
        status: None,
        condition: None,
        place: cf.place(),
    };
    let (mut users, mut redact, mut seen) = (Vec::new(), Vec::new(), Vec::new());
    for key in keys {
        let text = key.to_string();
        let Some((name, value)) = text.split_once('=') else {
            return Err(format!("invalid \"{text}\", it must be KEY=VALUE"));
        };
        if seen.contains(&name.to_owned()) && !matches!(name, "user" | "redact") {
            return Err(format!("duplicate key \"{name}=\""));
        }
        seen.push(name.to_owned());
        // The argument lives as long as the configuration, unlike its copy.
        let rest = ngx_str_t {
            len: key.len - name.len() - 1,
            // SAFETY: the name and the equals sign are in front.
            data: unsafe { key.data.add(name.len() + 1) },
        };
        let mut compile =
            |what| Value::compile(cf, rest).map_err(|_| format!("invalid {what} \"{value}\""));
        match name {
            "status" => {
                let status = StatusKey::parse(value)
                    .map_err(|error| format!("invalid \"{text}\", {error}"))?;
                rule.status = Some(status);
            }
            "user" => users.push(match value.strip_prefix("body:") {
                Some(names) => User::Body(
                    Fields::parse(names).map_err(|error| format!("invalid \"{text}\", {error}"))?,
                ),
                None => User::Value(Sourced::new(compile("user")?, rest.as_bytes())),
            }),
            "unknown" => {
                rule.unknown = match value {
                    "hash" => Unknown::Hash,
                    "send" => Unknown::Send,
                    "omit" => Unknown::Omit,
                    _ => {
                        return Err(format!(
                            "invalid \"{text}\", it must be \"hash\", \"send\" or \"omit\""
                        ));
                    }
                };
            }
            "if" if !value.is_empty() => rule.condition = Some(compile("condition")?),
            "anonymous" => {
                rule.anonymous = match value {
                    "on" => Some(true),
                    "off" => Some(false),
                    _ => return Err(format!("invalid \"{text}\", it must be \"on\" or \"off\"")),
                };
            }
            "redact" => {
                if !pattern.names().any(|known| known == value) {
                    return Err(format!("\"{text}\" names no segment of \"{path_text}\""));
                }
                redact.push(value.to_owned());
            }
            "audit" if !value.is_empty() => {
                let plain = |c: char| c.is_ascii_alphanumeric() || "_-.:".contains(c);
                if value.len() > MAX_AUDIT || !value.chars().all(plain) {
                    return Err(format!(
                        "invalid \"{text}\", it must be at most {MAX_AUDIT} letters, digits, \"_\", \
                         \"-\", \".\" and \":\""
                    ));
                }
                value.clone_into(&mut rule.audit);
            }
            "level" if !value.is_empty() => {
                let level = Level::parse(value).ok_or_else(|| {
                    let names = Level::ALL.map(Level::name).join(", ");
                    format!("invalid \"{text}\", it must be one of {names}, or 100 to 103")
                });
                rule.level = Some(level?);
            }
            _ => {
                return Err(format!(
                    "invalid \"{text}\", it must be one of \"status=\", \"user=\", \
                     \"unknown=\", \"anonymous=\", \"redact=\", \"audit=\", \"level=\", \"if=\""
                ));
            }
        }
    }
    rule.users = users.into();
    if seen.iter().any(|name| name == "unknown") && rule.body_fields().next().is_none() {
        return Err("\"unknown=\" needs \"user=body:FIELD\"".into());
    }
    rule.redact = redact.into();
    Ok((methods, pattern, Rc::new(rule)))
}

/// What is wrong with an event's type.
pub(crate) fn unknown_type(name: ngx_str_t) -> String {
    let all = EventType::ALL.map(EventType::name).join(", ");
    format!("unknown event type \"{name}\", it must be \"off\" or one of {all}")
}
